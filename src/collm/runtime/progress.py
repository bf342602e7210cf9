"""How far long work has come: from where it is done to what shows it, without one knowing the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PAUSE = 1.0
"""Least seconds between two reports."""


class Progress:
    """Passes reports on, at most one a second; without a listener a report costs one comparison.

    Args:
        clock: Returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self.clock = clock
        self._listener: Callable[[str], None] | None = None
        self._due = 0.0

    @contextmanager
    def told_to(self, listener: Callable[[str], None] | None) -> Iterator[None]:
        """Pass reports on to `listener` inside of the body, the first after a second."""
        self._listener, self._due = listener, self.clock() + PAUSE
        try:
            yield
        finally:
            self._listener = None

    def tell(self, words: str, *numbers: int) -> None:
        """Report how far the work has come.

        Args:
            words: A phrase with braces for the numbers; it is put together only if it is passed on.
            numbers: The numbers.
        """
        listener = self._listener
        if listener is not None and (now := self.clock()) >= self._due:
            self._due = now + PAUSE
            listener(words.format(*numbers))


progress = Progress()
"""Reports of this process."""
