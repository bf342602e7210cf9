"""CoLLM-CC: decentralized agents, one centralized critic (arXiv 2601.21972, section 4, equations 4 and 5).

The critic V(h) reads the joint history of all agents and is used in training only. Every agent follows its own gradient
with the same advantage:

    grad J(theta_i) = E[ sum_t rho_{i,t} grad log pi_i(a_{i,t} | h_{i,t}) delta_t ]       (4)
    delta_t         = r_t + gamma V(h_{t+1}) - V(h_t)
    L(phi)          = E[ sum_t ( r_t + gamma V(h_{t+1}) - V(h_t) )^2 ]                   (5)
"""

from __future__ import annotations

from collm.algorithms.actor_critic import ActorCritic
from collm.returns import generalized_advantages
from collm.trajectory import RolloutBatch


class CoLLMCC(ActorCritic):
    """Collaborating agents with one centralized critic on the joint history (CoLLM-CC).

    Args:
        kwargs: Everything that actor-critic algorithms share.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)

    def critic_readers(self) -> dict[str, tuple[str, ...]]:
        return {"critic": self.agent_ids}

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> None:
        histories = self.critics["critic"].encode(batch.trajectories)
        values = self.values("critic", histories, batch)  # V(h_t), [B, T]
        later = self.bootstrap_values("critic", values, histories, batch)  # V(h_{t+1}) is read from these
        # delta_t of (4) at gae_lambda 0; with the value added, the target of (5), held fixed
        advantages = generalized_advantages(
            batch.rewards, values, batch.turn_mask, self.discount, self.gae_lambda, later
        )
        targets = self.value_targets(values, advantages, later, batch)
        self.log_critic("critic", values, targets, batch)

        self.update_critic("critic", histories, values, targets, batch)  # (5)
        if self.actors_learn:
            shared = self.shape_advantages(advantages, batch.turn_mask)
            self.update_policies(batch, dict.fromkeys(self.agent_ids, shared))  # (4)
