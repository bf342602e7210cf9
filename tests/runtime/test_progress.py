"""Reports of long work reach who shows them: none without a listener, at most one a second with one."""

from __future__ import annotations

import pytest

from collm.runtime.progress import Progress


class Clock:
    """A clock on which every reading takes `tick` seconds."""

    def __init__(self, tick: float) -> None:
        self.tick, self.now = tick, 0.0

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


def test_reports_come_at_most_once_a_second_and_to_a_listener_only() -> None:
    told: list[str] = []
    reports = Progress(Clock(0.3))
    reports.tell("step {}", 0)
    with reports.told_to(told.append):  # at 0.3
        for step in range(1, 9):  # at 0.6, 0.9, ...
            reports.tell("step {} of {}", step, 8)
    reports.tell("step {}", 9)
    assert told == ["step 4 of 8", "step 8 of 8"]


def test_a_listener_is_forgotten_after_an_error() -> None:
    told: list[str] = []
    reports = Progress(Clock(2.0))
    with pytest.raises(RuntimeError), reports.told_to(told.append):
        raise RuntimeError
    reports.tell("late")
    with reports.told_to(None):
        reports.tell("to nobody")
    assert told == []
