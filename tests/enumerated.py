"""A two-turn game played in every way it can be: exact values and gradients of tabular policies."""

from __future__ import annotations

import torch
from torch import Tensor

from collm.objectives import policy_gradient_loss
from collm.returns import discounted_returns
from collm.trajectory import collate
from tabular import AGENTS, HISTORIES, TabularPolicy, TwoTurns, every_trajectory, log_probs_of

FIRST = torch.tensor([[1.0, -1.0], [0.5, 2.0]])
SECOND = torch.tensor([2.0, 0, 1, -1, 0, 3, -2, 1, 1, 1, 0, 4, -1, 2, 2, 0]).view(4, 2, 2)
FULL = TwoTurns(FIRST, SECOND)
STOPS = TwoTurns(FIRST, SECOND, stop_at=2)


def make_policies() -> dict[str, TabularPolicy]:
    generator = torch.Generator().manual_seed(3)
    return {name: TabularPolicy(torch.randn(len(HISTORIES), 2, generator=generator)) for name in AGENTS}


class Enumerated:
    """All episodes of a two-turn game with the probability of each under the policies."""

    def __init__(self, game: TwoTurns):
        self.policies = make_policies()
        found = every_trajectory(game, self.policies)
        self.batch = collate([trajectory for trajectory, _ in found])
        self.played = [plan for _, plan in found]
        self.log_probs = {name: self.log_probs_under(name, self.policies[name].logits) for name in AGENTS}
        self.probabilities = sum(self.log_probs.values()).sum(1).exp()  # [B]

    def log_probs_under(self, agent_id: str, logits: Tensor) -> Tensor:
        return log_probs_of(self.batch.trajectories, agent_id, logits, self.batch.rewards.shape[1])

    def true_gradient(self, agent_id: str, discount: float) -> Tensor:
        """Gradient of E[sum_t gamma^t r_t], [histories, 2]."""
        logits = self.policies[agent_id].logits.clone().requires_grad_()
        others = sum(table for name, table in self.log_probs.items() if name != agent_id)
        probabilities = (self.log_probs_under(agent_id, logits) + others).sum(1).exp()
        powers = discount ** torch.arange(self.batch.rewards.shape[1])
        (probabilities * (self.batch.rewards * powers).sum(1)).sum().backward()
        return logits.grad

    def estimate(self, agent_id: str, advantages: Tensor) -> Tensor:
        """Expected gradient of the policy loss, [histories, 2]."""
        logits = self.policies[agent_id].logits.clone().requires_grad_()
        log_probs = self.log_probs_under(agent_id, logits)
        weighted = advantages * self.probabilities[:, None]
        policy_gradient_loss(log_probs, log_probs.detach(), weighted, self.batch.turn_mask).backward()
        return -logits.grad

    def values(self, discount: float, known: list[str]) -> Tensor:
        """Expected reward to go given what the agents in `known` have seen and done, [B, T]."""
        return self._mean_returns(discount, known, acted=[])

    def action_values(self, discount: float) -> Tensor:
        """Expected reward to go given the joint history and the joint action, [B, T]."""
        return self._mean_returns(discount, list(AGENTS), acted=list(AGENTS))

    def values_without(self, discount: float, agent_id: str) -> Tensor:
        """Expected reward to go given the joint history and all actions but that of `agent_id`, [B, T]."""
        return self._mean_returns(discount, list(AGENTS), acted=[name for name in AGENTS if name != agent_id])

    def _mean_returns(self, discount: float, known: list[str], acted: list[str]) -> Tensor:
        returns = discounted_returns(self.batch.rewards, self.batch.turn_mask, discount)
        means = torch.zeros_like(returns)
        for turn in range(returns.shape[1]):
            keys: list[tuple | None] = []
            for path in self.batch.trajectories:
                actions = path.turns[turn].actions if turn < len(path.turns) else None
                seen = actions and [tuple(actions[name].prompt_ids) for name in known]
                keys.append(seen and (*seen, *(tuple(actions[name].token_ids) for name in acted)))
            for key in {key for key in keys if key is not None}:
                rows = torch.tensor([other == key for other in keys])
                weight = self.probabilities[rows] / self.probabilities[rows].sum()
                means[rows, turn] = (weight * returns[rows, turn]).sum()
        return means
