"""CoLLM-CC with an action-value critic: Q(h, a) in place of the TD error (the paper defines Q_psi and does not run it).

The critic takes the joint history in time order. One value head gives V(h_t) before the joint action of turn t, the
other Q(h_t, a_t) right after it:

    grad J(theta_i) = E[ sum_t rho_{i,t} grad log pi_i(a_{i,t} | h_{i,t}) ( Q(h_t, a_t) - V(h_t) ) ]
    L               = E[ sum_t ( y_t - Q(h_t, a_t) )^2 + ( y_t - V(h_t) )^2 ]
    y_t             = r_t + gamma Q(h_{t+1}, a_{t+1})

y_t is the target of SARSA, or SARSA(lambda) if gae_lambda is above 0. V is the mean of Q over the policies' actions,
E[y_t | h_t], so both heads share the target; as a baseline V leaves the gradient unbiased. Unlike the TD error of
CoLLM-CC, this advantage has no noise from rewards and transitions, but agents learn only what the critic has learned:
where Q is the same for all actions, advantages are 0, and they are biased while Q is.
(The `q` mode of the authors' released code uses the TD residual of Q, which has no baseline.)
"""

from __future__ import annotations

from torch import Tensor

from collm.algorithms.actor_critic import ActorCritic
from collm.critics.action_value import ActionValueEncoder
from collm.trajectory import RolloutBatch


class CoLLMCCQ(ActorCritic):
    """Collaborating agents with one centralized critic of joint actions, Q(h, a) against V(h).

    Args:
        kwargs: Arguments of every actor-critic algorithm; `gae_lambda` changes value targets only.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.add_critic("critic", self.agent_ids, ActionValueEncoder)

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> None:
        pairs = self.critic.differentiable_values(batch)  # [B, T, 2]
        values, action_values = pairs.detach().unbind(-1)  # V(h_t) and Q(h_t, a_t), [B, T]
        next_values = self.critic.next_values(batch, action_values)  # Q(h_{t+1}, a_{t+1})
        errors = self.gae(batch, action_values, next_values)  # the TD error of Q at gae_lambda 0
        targets = self.value_targets(batch, action_values, next_values, errors)
        self.log_critic("critic", batch, action_values, targets)
        self.log_critic("critic/baseline", batch, values, targets)

        self.critic.update(batch, pairs, targets)
        if self.policies_learn:
            advantages = self.shape_advantages(action_values - values, batch.turn_mask, batch.weights)
            self.update_policies(batch, dict.fromkeys(self.agent_ids, advantages))

    def estimates(self, batch: RolloutBatch) -> dict[str, Tensor]:
        values, action_values = self.critic.values(batch).unbind(-1)
        return {"V(h)": values, "Q(h, a)": action_values, "advantage": action_values - values}
