"""CoLLM-DC: decentralized agents, each with a critic of its own (arXiv 2601.21972, section 4, equations 2 and 3).

The critic V_i(h_i) of agent i reads that agent's own history, so nothing is shared even in training:

    grad J(theta_i) = E[ sum_t rho_{i,t} grad log pi_i(a_{i,t} | h_{i,t}) delta_{i,t} ]          (2)
    delta_{i,t}     = r_t + gamma V_i(h_{i,t+1}) - V_i(h_{i,t})
    L(phi_i)        = E[ sum_t ( r_t + gamma V_i(h_{i,t+1}) - V_i(h_{i,t}) )^2 ]                 (3)

`gae_lambda: 1` makes both the target and the advantage Monte-Carlo ones. The authors' released code (1.3.2) mixed the
two: its critics regressed on Monte-Carlo returns while its advantages were the TD errors of (2).
"""

from __future__ import annotations

from collm.algorithms.actor_critic import ActorCritic
from collm.returns import generalized_advantages
from collm.trajectory import RolloutBatch


class CoLLMDC(ActorCritic):
    """Collaborating agents, each with a critic on its own history (CoLLM-DC).

    Args:
        kwargs: Everything that actor-critic algorithms share.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)

    def critic_readers(self) -> dict[str, tuple[str, ...]]:
        return {f"critic/{agent_id}": (agent_id,) for agent_id in self.agent_ids}

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> None:
        shaped = {}
        for agent_id in self.agent_ids:
            name = f"critic/{agent_id}"
            histories = self.critics[name].encode(batch.trajectories)
            values = self.values(name, histories, batch)  # V_i(h_{i,t}), [B, T]
            later = self.bootstrap_values(name, values, histories, batch)  # V_i(h_{i,t+1}) is read from these
            # delta_{i,t} of (2) at gae_lambda 0; with the value added, the target of (3), held fixed
            advantages = generalized_advantages(
                batch.rewards, values, batch.turn_mask, self.discount, self.gae_lambda, later
            )
            targets = self.value_targets(values, advantages, later, batch)
            self.log_critic(name, values, targets, batch)

            self.update_critic(name, histories, values, targets, batch)  # (3)
            shaped[agent_id] = self.shape_advantages(advantages, batch.turn_mask)
        if self.actors_learn:
            self.update_policies(batch, shaped)  # (2)
