"""MAReMax: the largest return of the group as baseline.

    A_k = G_k - max_j G_j

No advantage is positive: the best joint action of a group has advantage 0, and the others become less likely. The
maximum depends on joint action k itself, so the gradient is biased, and in direction too, unlike that of MAGRPO:

    E[ grad log pi(a_k) A_k ] = grad J - E[ grad log pi(a_k) max_j G_j ] = grad ( J - E[ max_j G_j ] / K ) ,

where the last step holds because the K samples are identically distributed, so that each contributes 1 / K of the
gradient of the expected maximum. Agents maximize their mean return minus 1 / K of their expected best of K, which
favours policies of low variance.
"""

from __future__ import annotations

from torch import Tensor

from collm.algorithms.monte_carlo import MonteCarlo
from collm.returns import group_max_baseline


class MAReMax(MonteCarlo):
    """Monte-Carlo policy gradient with the group's largest return as baseline (MAReMax); biased."""

    def baseline(self, returns: Tensor, groups: Tensor, turn_mask: Tensor) -> Tensor:
        return group_max_baseline(returns, groups, turn_mask)
