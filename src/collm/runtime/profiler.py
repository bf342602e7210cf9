"""Where the time of this process goes: seconds by phase, and how many of the computed tokens were padding.

Phases do not overlap. One that begins within another stops its clock until it ends, and what lies in none of them is
`other`, so that they add up to the wall time. Two readings of a clock for each phase are all it costs.

Threads that work while another one waits for them do so `aside`: the time is that of who waits.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

OTHER = "other"
Item = TypeVar("Item")


@dataclass(frozen=True)
class Reading:
    """What was measured since the reading before.

    Args:
        seconds: Wall time of each phase; `other` is always there.
        useful: Tokens that were computed by each phase and belong to a sequence.
        computed: Tokens that were computed by each phase, padding and finished rows included.
    """

    seconds: dict[str, float]
    useful: dict[str, int]
    computed: dict[str, int]

    @property
    def wall_time(self) -> float:
        """Seconds of all phases."""
        return sum(self.seconds.values())

    def padding_share(self, *phases: str) -> float:
        """Share of the tokens computed in `phases` (and in those below them, `update` names `update/policy` too) that
        belong to no sequence; 0 where nothing was computed."""
        under = [name for name in self.computed if any(f"{name}/".startswith(f"{phase}/") for phase in phases)]
        computed = sum(self.computed[name] for name in under)
        return 1 - sum(self.useful[name] for name in under) / computed if computed else 0.0


class _Aside(threading.local):
    phase: str | None = None  # of this thread, if it works aside


class Meter:
    """Seconds and tokens by phase since the last reading.

    Args:
        clock: Seconds now.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self.clock = clock
        self.synchronize = False  # wait for the GPU at the borders of phases: exact, and slower
        self._phase = OTHER
        self._aside = _Aside()
        self._counting = threading.Lock()
        self._seconds: Counter[str] = Counter()
        self._useful: Counter[str] = Counter()
        self._computed: Counter[str] = Counter()
        self._since = clock()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time spent inside belongs to `name`; also a decorator."""
        before = self._enter(name)
        try:
            yield
        finally:
            self._enter(before)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """For a thread that another one waits for: what it computes counts in phases of its own, its time does not."""
        self._aside.phase = self._phase
        try:
            yield
        finally:
            self._aside.phase = None

    def each(self, name: str, items: Iterable[Item]) -> Iterator[Item]:
        """`items`; the time it takes to make them belongs to `name`, not to the phase that asks for them."""
        iterator = iter(items)
        while True:
            with self.phase(name):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def count(self, useful: int, computed: int) -> None:
        """Note that the phase that runs computes this many tokens, `useful` of them of sequences."""
        phase = self._aside.phase or self._phase
        with self._counting:
            self._useful[phase] += useful
            self._computed[phase] += computed

    def take(self) -> Reading:
        """What was measured since the last call."""
        self._enter(self._phase)
        reading = Reading({OTHER: 0.0, **self._seconds}, dict(self._useful), dict(self._computed))
        for counter in (self._seconds, self._useful, self._computed):
            counter.clear()
        return reading

    def put(self, reading: Reading) -> None:
        """Add what an earlier reading measured."""
        self._seconds.update(reading.seconds)
        self._useful.update(reading.useful)
        self._computed.update(reading.computed)

    def _enter(self, name: str) -> str:
        """Go on to the phase `name`; returns the one that ends."""
        if self._aside.phase:
            before, self._aside.phase = self._aside.phase, name
            return before
        if self.synchronize and torch.cuda.is_available():
            torch.cuda.synchronize()
        now = self.clock()
        before, self._phase = self._phase, name
        self._seconds[before] += now - self._since  # type: ignore[assignment]  # a Counter of floats adds as well
        self._since = now
        return before


meter = Meter()
"""The meter of this process; whatever takes time reports to it."""
