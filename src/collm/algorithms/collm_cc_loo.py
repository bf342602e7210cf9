"""CoLLM-CC with per-agent credit: a counterfactual baseline that leaves out the agent's own action.

CoLLM-CC gives all agents the same advantage, so the actions of the others add noise to it. Here the baseline of agent i
is the expected return given the history and the actions of the others in this turn, a_{-i,t}, but not its own:

    grad J(theta_i) = E[ sum_t rho_{i,t} grad log pi_i(a_{i,t} | h_{i,t}) ( y_t - B_i(h_t, a_{-i,t}) ) ]
    L               = E[ sum_t ( y_t - V(h_t) )^2 + sum_i ( y_t - B_i(h_t, a_{-i,t}) )^2 ]
    y_t             = r_t + gamma V(h_{t+1})           (a lambda-return if gae_lambda is above 0)

The regression averages over the action left out, B_i = E[y_t | h_t, a_{-i,t}]. With exact values this is the
counterfactual baseline of COMA (arXiv 1705.08926), sum_a pi_i(a | h_{i,t}) Q(h_t, a, a_{-i,t}); it is learned here
because the actions of language models cannot be enumerated. Given the history, agents act independently, so B_i does
not depend on a_{i,t} and adds no bias, however inaccurate it is. COMA uses Q - B_i; y_t - B_i needs no action-value
critic. It is biased only if V(h_{t+1}) is, and with `gae_lambda: 1` it is unbiased. With one agent, B depends on the
history alone, as in CoLLM-CC.

One critic computes V and all B_i in N rows per trajectory (`CounterfactualEncoder`), at N times the cost of the critic
of CoLLM-CC.
"""

from __future__ import annotations

from torch import Tensor

from collm.algorithms.actor_critic import ActorCritic
from collm.critics.counterfactual import CounterfactualEncoder
from collm.trajectory import RolloutBatch


class CoLLMCCLeaveOneOut(ActorCritic):
    """Collaborating agents with one centralized critic, and a per-agent baseline given the others' actions.

    Args:
        kwargs: Arguments of every actor-critic algorithm; `gae_lambda` sets the return y_t of advantages and targets.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.add_critic("critic", self.agent_ids, CounterfactualEncoder)

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> None:
        all_values = self.critic.differentiable_values(batch)  # [B, T, N + 1]
        values, *baselines = all_values.detach().unbind(-1)  # V(h_t), and B_i(h_t, a_{-i,t}), [B, T]
        next_values = self.critic.next_values(batch, values)  # V(h_{t+1})
        errors = self.gae(batch, values, next_values)
        estimates = errors + values  # y_t at gae_lambda 0
        targets = self.value_targets(batch, values, next_values, errors)
        self.log_critic("critic", batch, values, targets)
        advantages = {}
        for agent_id, baseline in zip(self.agent_ids, baselines, strict=True):
            self.log_critic(f"critic/without_{agent_id}", batch, baseline, targets)
            advantages[agent_id] = self.shape_advantages(estimates - baseline, batch.turn_mask, batch.weights)

        self.critic.update(batch, all_values, targets)
        if self.policies_learn:
            self.update_policies(batch, advantages)

    def estimates(self, batch: RolloutBatch) -> dict[str, Tensor]:
        values, *baselines = self.critic.values(batch).unbind(-1)
        returns = values + self.gae(batch, values, self.critic.next_values(batch, values))
        by_name = {"V(h)": values}
        for agent_id, baseline in zip(self.agent_ids, baselines, strict=True):
            by_name |= {f"B_{agent_id}(h, a of others)": baseline, f"advantage_{agent_id}": returns - baseline}
        return by_name
