"""MAReMax: the largest return of the group as baseline.

    A_k = G_k - max_j G_j

No advantage is positive: the best joint action of a group is left alone and the others are pushed away. The maximum
depends on the own joint action, so the gradient is biased, and not only in its length as that of MAGRPO:

    E[ grad log pi(a_k) A_k ] = grad J - E[ grad log pi(a_k) max_j G_j ] = grad ( J - E[ max_j G_j ] / K ) ,

the last step because the K draws are alike, so that each has a K-th part of the gradient of the expected maximum:
agents ascend their mean return less a K-th part of their best of K, and so give up variety for safety.
"""

from __future__ import annotations

from torch import Tensor

from collm.algorithms.monte_carlo import MonteCarlo
from collm.returns import group_max_baseline


class MAReMax(MonteCarlo):
    """Monte-Carlo policy gradient with the group's largest return as baseline (MAReMax); biased.

    Args:
        kwargs: Everything that Monte-Carlo algorithms share.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)

    def baseline(self, returns: Tensor, groups: Tensor, turn_mask: Tensor) -> Tensor:
        return group_max_baseline(returns, groups, turn_mask)
