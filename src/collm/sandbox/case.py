"""A program with what it is judged by, and the verdict."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Case:
    """A program and what it is judged by.

    Args:
        program: Source that defines `entry_point`; runs in a process of its own.
        entry_point: Name of the function that the test calls.
        test: Source that defines `check(candidate)`, or asserts at its top level; runs in another process.
        prelude: Trusted source that the test needs, such as imports; runs before it.
        counted: Name of a function at the top level of the program whose running is noted; empty for none.
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
    """How one assert of the test went: its line and text, whether it held, and if not, why."""

    line: int
    text: str
    passed: bool
    detail: str


@dataclass(frozen=True)
class Verdict:
    """What came of a case.

    Args:
        loaded: The program ran and defined the entry point.
        completed: The test ran to its end.
        units: Every assert of the test.
        error: Why the program did not load or the test did not end, else empty.
        timeouts: Calls that ran out of time.
        calls: Calls that the test made.
        counted: Whether the counted function ran during a call that the test made.
        broke: The program made the sandbox break down every time it was tried; every assert counts as failed.
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
        """How many asserts held."""
        return sum(unit.passed for unit in self.units)

    @property
    def total(self) -> int:
        """How many asserts there are."""
        return len(self.units)

    @property
    def correct(self) -> bool:
        """Whether the test ran to its end and nothing failed."""
        return self.completed and self.passed == self.total


def verdict_of(answer: Mapping[str, Any]) -> Verdict:
    """The verdict in a server's answer."""
    # Half of a surrogate pair, which a program can put into a message, is no text that a tokenizer takes.
    units = tuple(UnitResult(line, text, passed, _clean(detail)) for line, text, passed, detail in answer["units"])
    completed, error = answer["completed"], _clean(answer["error"])
    return Verdict(answer["loaded"], completed, units, error, answer["timeouts"], answer["calls"], answer["counted"])


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def verdict_against(units: Sequence[tuple[int, str]], error: str) -> Verdict:
    """The verdict on a program that made the sandbox break down, which no program has to."""
    failed = tuple(UnitResult(line, text, False, "not reached") for line, text in units)
    return Verdict(False, False, failed, error, 0, 0, broke=True)
