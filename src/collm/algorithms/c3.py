"""C3: each agent's credit from counterfactual responses, all else equal (arXiv 2603.06859).

At a visited history h_t, agent i gives K responses a^1 ... a^K. Each is combined with the same actions of the other
agents, the current policies play the rest of the episode, and the mean return of the other K - 1 is the baseline:

    A_k = G(h_t, a^k, a_{-i}) - (1 / (K - 1)) sum_{j != k} G(h_t, a^j, a_{-i})
    grad J(theta_i) = E[ sum_t (1 / K) sum_k rho grad log pi_i(a^k | h_{i,t}) A_k ]

The baseline depends on the history and the others' actions only, so the gradient is unbiased, and the effect of the
others' actions cancels in A_k. Agents learn only from responses in main episodes; the turns after a counterfactual
response serve to estimate its return. `collm.samplers.counterfactual.Counterfactual` samples the responses.
"""

from __future__ import annotations

import torch
from torch import Tensor

from collm.algorithms.base import MultiAgentModule
from collm.errors import ConfigurationError
from collm.returns import discounted_returns, leave_one_out_baseline
from collm.runtime.checks import COUNT, check_number
from collm.runtime.collectives import sum_over_ranks
from collm.trajectory import RolloutBatch


class C3(MultiAgentModule):
    """Agents that learn from the returns of their counterfactual responses, one advantage for each agent (C3).

    Needs the sampler `collm.samplers.counterfactual.Counterfactual`.

    Args:
        num_generations: Number of responses of an agent that are compared; the command line takes it from
            `data.num_generations`.
        kwargs: Arguments of every algorithm; see `MultiAgentModule` and `Agents`.
    """

    def __init__(self, num_generations: int = 2, **kwargs):
        super().__init__(**kwargs)
        if check_number("data.num_generations", num_generations, COUNT) < 2:
            raise ConfigurationError(
                f"data.num_generations is {num_generations}, but C3 compares that many responses of an agent; set it "
                "to 2 or more."
            )

    def setup(self, stage: str) -> None:
        super().setup(stage)
        sampler = self.trainer.datamodule.sampler  # type: ignore[attr-defined]
        if stage == "fit" and not sampler.counterfactual:
            raise ConfigurationError(
                f"C3 compares counterfactual responses, and {type(sampler).__name__} plays none; set data.sampler to "
                "collm.samplers.counterfactual.Counterfactual."
            )

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> None:
        returns = discounted_returns(batch.rewards, batch.turn_mask, self.discount)  # G_t, [B, T]
        advantages = {}
        for agent_id in self.agent_ids:
            groups = counterfactual_groups(batch, agent_id)  # [B, T]
            compared = groups >= 0
            rows = returns.flatten()[:, None], groups.flatten(), compared.flatten()[:, None]
            baseline = leave_one_out_baseline(*rows).view_as(returns)
            own = self.shape_advantages(torch.where(compared, returns - baseline, 0.0), compared)  # A_k
            advantages[agent_id] = own * self.shares(batch, groups)
        self.update_policies(batch, advantages)

    def shares(self, batch: RolloutBatch, groups: Tensor) -> Tensor:
        """Factors that turn the mean over trajectories into a sum over turns of means over K, [B, T].

        `update_policies` averages over the B trajectories with the weights of paths in a random descent; here every
        main episode counts once, however many trajectories compare responses with its own.
        """
        played = [len(batch.trajectories), len(batch.groups.unique())]
        rows, episodes = sum_over_ranks(torch.tensor(played), groups.device).clamp(min=1)
        members = (groups.flatten()[:, None] == groups.flatten()).sum(1).view_as(groups)
        return torch.where(groups >= 0, rows / episodes / members / batch.weights[:, None], 0.0)


def counterfactual_groups(batch: RolloutBatch, agent_id: str) -> Tensor:
    """Groups of responses of one agent to the same history, with the same actions of the others, [B, T].

    An action that several trajectories share has its group in the first of them. All other turns are -1, and so are
    responses that are alone in their group.
    """
    nodes: set[int] = set()
    members: dict[tuple, list[tuple[int, int]]] = {}
    for row, trajectory in enumerate(batch.trajectories):
        for index, turn in enumerate(trajectory.turns):
            if turn.branch is None or turn.branch.node in nodes:
                continue
            nodes.add(turn.branch.node)
            others = tuple(action.uid for name, action in turn.actions.items() if name != agent_id)
            members.setdefault((turn.branch.parent, others), []).append((row, index))
    groups = torch.full(batch.rewards.shape, -1, dtype=torch.long)
    for number, turns in enumerate(group for group in members.values() if len(group) > 1):
        for row, index in turns:
            groups[row, index] = number
    return groups.to(batch.rewards.device)
