"""MARLOO: the mean return of the other samples in the group as baseline (RLOO, arXiv 2402.14740, for several agents).

    A_k = G_k - (1 / (K - 1)) sum_{j != k} G_j

The baseline does not depend on joint action k, so the gradient is unbiased: K / (K - 1) times that of MAGRPO. With
crossed joint actions (the sampler `Tree`), other samples contain the same response of an agent. With n agents the
expected gradient is then M / (M - 1) (K - 1) / K times the true one, M = K^n, in the same direction.
"""

from __future__ import annotations

from torch import Tensor

from collm.algorithms.monte_carlo import MonteCarlo
from collm.returns import leave_one_out_baseline


class MARLOO(MonteCarlo):
    """Monte-Carlo policy gradient with a leave-one-out baseline: the return minus the mean of the others (MARLOO)."""

    def baseline(self, returns: Tensor, groups: Tensor, turn_mask: Tensor) -> Tensor:
        return leave_one_out_baseline(returns, groups, turn_mask)
