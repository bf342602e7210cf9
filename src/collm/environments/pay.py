"""Reward densities: a reward at every turn, or one at the end of the episode.

With sparse rewards the learner has to assign credit to turns; with a threshold, near misses have no reward.
"""

from __future__ import annotations

from typing import Literal

Density = Literal["dense", "sparse"]


def paid(density: str, turn: float, total: float, over: bool, *, least: float = 0.0, most: float = 1.0) -> float:
    """The reward of one turn.

    Args:
        density: `dense`: the reward of each turn is `turn`. `sparse`: the reward of the last turn is `total`, others
            are 0. `threshold`: the reward of the last turn is `most` if `total` is at least its share `least`, others
            are 0.
        turn: Score of this turn.
        total: Score of the episode if it ends with this turn.
        over: Whether the episode ends with this turn.
        least: Share of `most` that an episode has to reach; used by `threshold` only.
        most: Largest score, the reward of an episode that reaches that share; used by `threshold` only.
    """
    if density == "dense":
        return turn
    if not over:
        return 0.0
    if density == "threshold":
        return most if total / most >= least else 0.0  # 7 / 25 is 0.28, but 0.28 * 25 is more than 7
    return total
