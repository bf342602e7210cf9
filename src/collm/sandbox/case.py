"""A program with its test, and the verdict on it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Case:
    """A program and its test.

    Args:
        program: Source that defines `entry_point`; runs in its own process.
        entry_point: Name of the function that the test calls.
        test: Source that defines `check(candidate)`, or has asserts at its top level; runs in another process.
        prelude: Trusted source that the test needs, such as imports; runs before it.
        counted: Name of a top-level function of the program; the verdict says whether it ran. Empty for none.
    """

    program: str
    entry_point: str
    test: str
    prelude: str = ""
    counted: str = ""

    @property
    def key(self) -> str:
        """Content hash."""
        content = (self.program, self.entry_point, self.test, self.prelude, self.counted)
        return hashlib.sha256(repr(content).encode()).hexdigest()


@dataclass(frozen=True)
class UnitResult:
    """Result of one assert of the test: its line and source, whether it passed, and if not, why."""

    line: int
    text: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Verdict:
    """The verdict on a case.

    Args:
        loaded: Whether the program ran and defined the entry point.
        completed: Whether the test ran to its end.
        units: Results of all asserts of the test.
        error: Why the program did not load or the test did not end, else empty.
        timeouts: Number of calls that timed out.
        calls: Number of calls that the test made.
        counted: Whether the counted function ran during a call from the test.
        broke: Whether the program crashed the sandbox every time it was tried; then every assert counts as failed.
    """

    loaded: bool
    completed: bool
    units: tuple[UnitResult, ...]
    error: str
    timeouts: int
    calls: int
    counted: bool = False
    broke: bool = False

    @property
    def passed(self) -> int:
        """Number of asserts that passed."""
        return sum(unit.passed for unit in self.units)

    @property
    def total(self) -> int:
        """Number of asserts."""
        return len(self.units)

    @property
    def correct(self) -> bool:
        """Whether the test ran to its end and all asserts passed."""
        return self.completed and self.passed == self.total


def verdict_of(answer: Mapping[str, Any]) -> Verdict:
    """The verdict in a server's answer."""
    # A program can put half of a surrogate pair into a message, which tokenizers refuse.
    units = tuple(UnitResult(line, text, passed, _clean(detail)) for line, text, passed, detail in answer["units"])
    completed, error = answer["completed"], _clean(answer["error"])
    return Verdict(answer["loaded"], completed, units, error, answer["timeouts"], answer["calls"], answer["counted"])


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def verdict_against(units: Sequence[tuple[int, str]], error: str) -> Verdict:
    """The verdict on a program that crashed the sandbox: all asserts failed."""
    failed = tuple(UnitResult(line, text, False, "not reached") for line, text in units)
    return Verdict(False, False, failed, error, 0, 0, broke=True)
