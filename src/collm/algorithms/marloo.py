"""MARLOO: the mean of the others in the group as baseline (RLOO, arXiv 2402.14740, for several agents).

    A_k = G_k - (1 / (K - 1)) sum_{j != k} G_j

The baseline does not depend on the own joint action, so the gradient is unbiased: K / (K - 1) times that of MAGRPO.
Not so with crossed joint actions (the sampler `Tree`), where others share the own response: with n agents the length
is M / (M - 1) (K - 1) / K of the true one, M = K^n, and the direction the same.
"""

from __future__ import annotations

from torch import Tensor

from collm.algorithms.monte_carlo import MonteCarlo
from collm.returns import leave_one_out_baseline


class MARLOO(MonteCarlo):
    """Monte-Carlo policy gradient with a leave-one-out baseline: the return less the mean of the others (MARLOO).

    Args:
        kwargs: Everything that Monte-Carlo algorithms share.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)

    def baseline(self, returns: Tensor, groups: Tensor, turn_mask: Tensor) -> Tensor:
        return leave_one_out_baseline(returns, groups, turn_mask)
