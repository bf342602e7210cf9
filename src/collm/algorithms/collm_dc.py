"""CoLLM-DC: decentralized agents, each with its own critic (arXiv 2601.21972, section 4, equations 2 and 3).

The critic V_i(h_i) of agent i takes the local history of that agent, so agents share nothing even in training:

    grad J(theta_i) = E[ sum_t rho_{i,t} grad log pi_i(a_{i,t} | h_{i,t}) delta_{i,t} ]          (2)
    delta_{i,t}     = r_t + gamma V_i(h_{i,t+1}) - V_i(h_{i,t})
    L(phi_i)        = E[ sum_t ( r_t + gamma V_i(h_{i,t+1}) - V_i(h_{i,t}) )^2 ]                 (3)

With `gae_lambda: 1` targets are Monte-Carlo returns and advantages are those returns minus the value. The authors'
released code (1.3.2) combines Monte-Carlo targets with the TD errors of (2): `gae_lambda: 0` and `critic_lambda: 1`.
"""

from __future__ import annotations

from collm.algorithms.actor_critic import ActorCritic
from collm.trajectory import RolloutBatch


class CoLLMDC(ActorCritic):
    """Collaborating agents, each with a critic on its local history (CoLLM-DC).

    Args:
        kwargs: Arguments of every actor-critic algorithm; see `ActorCritic`.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.own_critics = {agent_id: self.add_critic(f"critic/{agent_id}", [agent_id]) for agent_id in self.agent_ids}

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> None:
        advantages = {}
        for agent_id, critic in self.own_critics.items():
            fitted = critic.differentiable_values(batch)
            values = fitted.detach()  # V_i(h_{i,t}), [B, T]
            next_values = critic.next_values(batch, values)  # V_i(h_{i,t+1})
            errors = self.gae(batch, values, next_values)  # delta_{i,t} of (2) at gae_lambda 0
            targets = self.value_targets(batch, values, next_values, errors)  # of (3)
            self.log_critic(critic.name, batch, values, targets)

            critic.update(batch, fitted, targets)  # (3)
            advantages[agent_id] = self.shape_advantages(errors, batch.turn_mask, batch.weights)
        if self.policies_learn:
            self.update_policies(batch, advantages)  # (2)
