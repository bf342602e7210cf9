"""MAREINFORCE: returns as they are (equation 1 of arXiv 2601.21972 with b = 0).

    A_k = G_k

Unbiased for any K, one included, and of large variance: a constant added to every reward changes each gradient though
not its mean.
"""

from __future__ import annotations

import torch
from torch import Tensor

from collm.algorithms.monte_carlo import MonteCarlo


class MAREINFORCE(MonteCarlo):
    """Monte-Carlo policy gradient without baseline (MAREINFORCE).

    Args:
        kwargs: Everything that Monte-Carlo algorithms share.
    """

    min_generations = 1

    def __init__(self, **kwargs):
        super().__init__(**kwargs)

    def baseline(self, returns: Tensor, groups: Tensor, turn_mask: Tensor) -> Tensor:
        return torch.zeros_like(returns)
