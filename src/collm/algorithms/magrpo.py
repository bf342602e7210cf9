"""MAGRPO: the mean of the group as baseline (arXiv 2508.04652; equation 1 of arXiv 2601.21972).

    A_k = G_k - (1 / K) sum_j G_j

The own return is part of the baseline, which shrinks the expected gradient to (K - 1) / K of the true one and leaves
its direction alone: (K - 1) / K times the advantage of MARLOO. With one agent it is GRPO without the division by the
standard deviation, and with `group_standardize` GRPO.
"""

from __future__ import annotations

from torch import Tensor

from collm.algorithms.monte_carlo import MonteCarlo
from collm.returns import group_mean_baseline


class MAGRPO(MonteCarlo):
    """Group-relative Monte-Carlo policy gradient: the return less the group's mean (MAGRPO; GRPO with one agent).

    Args:
        kwargs: Everything that Monte-Carlo algorithms share.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)

    def baseline(self, returns: Tensor, groups: Tensor, turn_mask: Tensor) -> Tensor:
        return group_mean_baseline(returns, groups, turn_mask)
