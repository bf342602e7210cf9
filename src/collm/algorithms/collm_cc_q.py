"""CoLLM-CC with an action-value critic: Q(h, a) in place of the TD error (the paper's Q_psi; not run there).

The critic reads the joint history in time order. One head reads V(h_t) before the joint action of turn t, the other
Q(h_t, a_t) right after it:

    grad J(theta_i) = E[ sum_t rho_{i,t} grad log pi_i(a_{i,t} | h_{i,t}) ( Q(h_t, a_t) - V(h_t) ) ]
    L               = E[ sum_t ( y_t - Q(h_t, a_t) )^2 + ( y_t - V(h_t) )^2 ]
    y_t             = r_t + gamma Q(h_{t+1}, a_{t+1})

y_t is the target of SARSA, with traces if gae_lambda is above 0. V is the mean of Q over the policies' own actions,
E[y_t | h_t], which is why both heads share the target; as a baseline it leaves the gradient unbiased. Against the TD
error of CoLLM-CC the advantage is free of the chance in rewards and transitions, but the agents learn nothing that
the critic does not know: where Q does not tell actions apart, advantages are 0, and they are biased as long as Q is.
(The `q` mode of the authors' released code takes the TD residual of Q instead, which has no baseline.)
"""

from __future__ import annotations

from collm.algorithms.actor_critic import ActorCritic
from collm.critics.action_value import QCritic
from collm.returns import generalized_advantages
from collm.trajectory import RolloutBatch


class CoLLMCCQ(ActorCritic):
    """Collaborating agents with one centralized critic of joint actions, Q(h, a) against V(h).

    Args:
        kwargs: Everything that actor-critic algorithms share; `gae_lambda` shapes the targets alone.
    """

    critic_class = QCritic

    def __init__(self, **kwargs):
        super().__init__(**kwargs)

    def critic_readers(self) -> dict[str, tuple[str, ...]]:
        return {"critic": self.agent_ids}

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> None:
        histories = self.critics["critic"].encode(batch.trajectories)
        pairs = self.values("critic", histories, batch)  # [B, 2T]
        values, action_values = pairs[:, 0::2], pairs[:, 1::2]  # V(h_t) and Q(h_t, a_t), [B, T]
        later = self.bootstrap_values("critic", pairs, histories, batch)[:, 1::2]  # Q(h_{t+1}, a_{t+1}) is among these
        # y_t at gae_lambda 0: the TD error of Q, with Q added
        errors = generalized_advantages(
            batch.rewards, action_values, batch.turn_mask, self.discount, self.gae_lambda, later
        )
        targets = self.value_targets(action_values, errors, later, batch)
        self.log_critic("critic", action_values, targets, batch)
        self.log_critic("critic/baseline", values, targets, batch)

        self.update_critic("critic", histories, pairs, targets.repeat_interleave(2, dim=1), batch)
        if self.actors_learn:
            shared = self.shape_advantages(action_values - values, batch.turn_mask)
            self.update_policies(batch, dict.fromkeys(self.agent_ids, shared))
