"""CoLLM-CC: decentralized agents, one centralized critic (arXiv 2601.21972, section 4, equations 4 and 5).

The critic V(h) takes the joint history of all agents and is used in training only. Every agent follows its own policy
gradient, and all agents share one advantage:

    grad J(theta_i) = E[ sum_t rho_{i,t} grad log pi_i(a_{i,t} | h_{i,t}) delta_t ]       (4)
    delta_t         = r_t + gamma V(h_{t+1}) - V(h_t)
    L(phi)          = E[ sum_t ( r_t + gamma V(h_{t+1}) - V(h_t) )^2 ]                   (5)
"""

from __future__ import annotations

from collm.algorithms.actor_critic import ActorCritic
from collm.errors import ConfigurationError
from collm.returns import leave_one_out_baseline
from collm.runtime.checks import COUNT, check_numbers
from collm.trajectory import RolloutBatch


class CoLLMCC(ActorCritic):
    """Collaborating agents with one centralized critic on the joint history (CoLLM-CC).

    Args:
        center_groups: Subtract from each advantage the mean advantage of the other episodes of the same task at the
            same turn. It removes differences between tasks that the critic does not predict, and adds variance if the
            critic predicts them. Needs `data.num_generations` of 2 or more.
        num_generations: Number of episodes per task; the command line takes it from `data.num_generations`.
        kwargs: Arguments of every actor-critic algorithm; see `ActorCritic`.
    """

    def __init__(self, center_groups: bool = False, num_generations: int = 1, **kwargs):
        super().__init__(**kwargs)
        self.add_critic("critic", self.agent_ids)
        self.center_groups = center_groups
        self.num_generations = num_generations
        check_numbers("model", self, num_generations=COUNT)
        if center_groups and num_generations < 2:
            raise ConfigurationError(
                f"model.center_groups is true, but data.num_generations is {num_generations}; set it to 2 or more, so "
                "that there are other episodes to compare with, or set center_groups to false."
            )

    def setup(self, stage: str) -> None:
        super().setup(stage)
        sampler = self.trainer.datamodule.sampler  # type: ignore[attr-defined]
        if self.center_groups and not sampler.independent:
            raise ConfigurationError(
                f"model.center_groups is true, but episodes of {type(sampler).__name__} share actions, so that none is "
                "independent of the others; set it to false, or set data.sampler to collm.samplers.parallel.Parallel."
            )

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> None:
        fitted = self.critic.differentiable_values(batch)
        values = fitted.detach()  # V(h_t), [B, T]
        next_values = self.critic.next_values(batch, values)  # V(h_{t+1})
        advantages = self.gae(batch, values, next_values)  # delta_t of (4) at gae_lambda 0
        targets = self.value_targets(batch, values, next_values, advantages)  # of (5)
        self.log_critic("critic", batch, values, targets)

        self.critic.update(batch, fitted, targets)  # (5)
        if self.policies_learn:
            if self.center_groups:
                advantages = advantages - leave_one_out_baseline(advantages, batch.groups, batch.turn_mask)
            advantages = self.shape_advantages(advantages, batch.turn_mask, batch.weights)
            self.update_policies(batch, dict.fromkeys(self.agent_ids, advantages))  # (4)
