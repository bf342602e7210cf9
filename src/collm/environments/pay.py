"""When a team is paid: at every turn, or once at the end of the episode.

With sparse pay the learner has to find out which turns earned the reward; with a threshold, coming near earns nothing.
"""

from __future__ import annotations

DENSITIES = ("dense", "sparse")


def paid(density: str, turn: float, total: float, over: bool, *, least: float = 0.0, most: float = 0.0) -> float:
    """The reward of one turn.

    Args:
        density: `dense`: each turn is paid what it earned. `sparse`: the last turn alone is paid, what the episode is
            worth. `threshold`: the last turn is paid `most` if the episode is worth at least `least`, else nothing.
        turn: What this turn earned.
        total: What the episode is worth if it ends with this turn.
        over: Whether it does.
        least: Worth that an episode has to reach; read for `threshold` only.
        most: Pay of an episode that reaches it; read for `threshold` only.
    """
    if density == "dense":
        return turn
    if not over:
        return 0.0
    if density == "threshold":
        return most if total >= least else 0.0
    return total
