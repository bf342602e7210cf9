"""MAREINFORCE: returns without a baseline (equation 1 of arXiv 2601.21972 with b = 0).

    A_k = G_k

The gradient is unbiased for every K, also K = 1, and has a high variance: adding a constant to all rewards changes the
gradient of each sample but not its expectation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from collm.algorithms.monte_carlo import MonteCarlo


class MAREINFORCE(MonteCarlo):
    """Monte-Carlo policy gradient without baseline (MAREINFORCE)."""

    min_generations = 1

    def baseline(self, returns: Tensor, groups: Tensor, turn_mask: Tensor) -> Tensor:
        return torch.zeros_like(returns)
