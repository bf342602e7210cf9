"""MAGRPO: the mean return of the group as baseline (arXiv 2508.04652; equation 1 of arXiv 2601.21972).

    A_k = G_k - (1 / K) sum_j G_j

The baseline contains G_k itself, which scales the expected gradient by (K - 1) / K and leaves its direction unchanged:
the advantage is (K - 1) / K times that of MARLOO. With one agent and `group_standardize` this is GRPO; without
`group_standardize`, GRPO without the division by the standard deviation.
"""

from __future__ import annotations

from torch import Tensor

from collm.algorithms.monte_carlo import MonteCarlo
from collm.returns import group_mean_baseline


class MAGRPO(MonteCarlo):
    """Group-relative Monte-Carlo policy gradient: the return minus the group's mean (MAGRPO; GRPO with one agent)."""

    def baseline(self, returns: Tensor, groups: Tensor, turn_mask: Tensor) -> Tensor:
        return group_mean_baseline(returns, groups, turn_mask)
