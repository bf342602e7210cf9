"""Deadlines from measured answer times, so that a busy server is not taken for a dead one."""

from __future__ import annotations

from collections import deque

_KEPT = 256  # answers
_ENOUGH = 8  # answers before their times say something
_TIMES = 5.0
_LEAST_SECONDS = 2.0


class Latency:
    """Answer times of the servers of one agent, and how long an attempt may take.

    Args:
        patience: Seconds that an attempt may take while too little was measured.
    """

    def __init__(self, patience: float):
        self.patience = patience
        self._seconds: deque[float] = deque(maxlen=_KEPT)
        self._loads: deque[int] = deque(maxlen=_KEPT)

    def record(self, seconds: float, load: int) -> None:
        """Note an answer: its time, and how many requests were on their way when it was asked for."""
        self._seconds.append(seconds)
        self._loads.append(load)

    def limit(self, load: int, attempt: int) -> float:
        """Seconds that an attempt may take.

        5 times the 95th percentile of the times before, in proportion for a load higher than any before, and doubled
        with every further attempt.

        Args:
            load: How many requests are on their way.
            attempt: Number of attempts before it.
        """
        if len(self._seconds) < _ENOUGH:
            return self.patience
        tail = sorted(self._seconds)[int(0.95 * (len(self._seconds) - 1))]
        growth = max(1.0, load / max(self._loads))
        return min(self.patience, max(_LEAST_SECONDS, _TIMES * tail) * growth * 2 ** min(attempt, 30))
