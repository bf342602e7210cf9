"""Profile of this process: seconds by phase, and the share of the computed tokens that is padding.

Phases do not overlap: a nested phase pauses the outer one, and time outside of all phases counts as `other`, so the
phases add up to the wall time. The overhead is two clock readings for each phase.

A thread for which another thread waits works inside `aside()`: the waiting thread already counts the time.
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
    """Measurements since the previous reading.

    Args:
        seconds: Wall time of each phase; `other` is always present.
        useful: Tokens that each phase computed, without padding.
        computed: Tokens that each phase computed, with padding and finished rows.
    """

    seconds: dict[str, float]
    useful: dict[str, int]
    computed: dict[str, int]

    @property
    def wall_time(self) -> float:
        """Seconds of all phases."""
        return sum(self.seconds.values())

    def padding_share(self, *phases: str) -> float:
        """Share of padding among the tokens computed in `phases` and their sub-phases (`update` includes
        `update/policy`); 0 if nothing was computed."""
        names = [name for name in self.computed if any(f"{name}/".startswith(f"{phase}/") for phase in phases)]
        computed = sum(self.computed[name] for name in names)
        return 1 - sum(self.useful[name] for name in names) / computed if computed else 0.0


class _Aside(threading.local):
    phase: str | None = None  # phase of this thread while it is in `aside()`


class Meter:
    """A profiler that counts seconds and tokens by phase.

    Args:
        clock: Returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self.clock = clock
        self.synchronize = False  # wait for the GPU at the start and end of phases: exact, but slower
        self._phase = OTHER
        self._aside = _Aside()
        self._counting = threading.Lock()
        self._seconds: Counter[str] = Counter()
        self._useful: Counter[str] = Counter()
        self._computed: Counter[str] = Counter()
        self._since = clock()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time of the body as `name`; also usable as a decorator."""
        previous = self._enter(name)
        try:
            yield
        finally:
            self._enter(previous)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """For a thread for which another one waits: count its tokens by its own phases, but not its time."""
        self._aside.phase = self._phase
        try:
            yield
        finally:
            self._aside.phase = None

    def each(self, name: str, items: Iterable[Item]) -> Iterator[Item]:
        """Yield `items`; the time to compute them counts as `name`, not as the phase that iterates."""
        iterator = iter(items)
        while True:
            with self.phase(name):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def count(self, useful: int, computed: int) -> None:
        """Count `computed` tokens, `useful` of them without padding, for the current phase."""
        phase = self._aside.phase or self._phase
        with self._counting:
            self._useful[phase] += useful
            self._computed[phase] += computed

    def take(self) -> Reading:
        """Return the measurements since the last call, and start over."""
        self._enter(self._phase)
        reading = Reading({OTHER: 0.0, **self._seconds}, dict(self._useful), dict(self._computed))
        for counter in (self._seconds, self._useful, self._computed):
            counter.clear()
        return reading

    def put(self, reading: Reading) -> None:
        """Add the measurements of an earlier reading."""
        self._seconds.update(reading.seconds)
        self._useful.update(reading.useful)
        self._computed.update(reading.computed)

    def _enter(self, name: str) -> str:
        """Switch to the phase `name`; returns the previous one."""
        if self._aside.phase:
            previous, self._aside.phase = self._aside.phase, name
            return previous
        if self.synchronize and torch.cuda.is_available():
            torch.cuda.synchronize()
        now = self.clock()
        previous, self._phase = self._phase, name
        self._seconds[previous] += now - self._since  # type: ignore[assignment]  # a Counter of floats adds as well
        self._since = now
        return previous


meter = Meter()
"""The profiler of this process."""
