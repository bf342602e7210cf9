"""Hand-worked rewards of one three-turn episode at every reward density."""

from __future__ import annotations

import pytest

from collm.environments.pay import paid

EARNED = (0.5, 0.0, 1.5)  # worth 0.5, 0.5 and 2.0 after each turn


@pytest.mark.parametrize(
    ("density", "least", "expected"),
    [
        ("dense", 9.0, [0.5, 0.0, 1.5]),
        ("sparse", 9.0, [0.0, 0.0, 2.0]),
        ("threshold", 2.0, [0.0, 0.0, 3.0]),
        ("threshold", 2.1, [0.0, 0.0, 0.0]),
    ],
)
def test_rewards_of_an_episode(density: str, least: float, expected: list[float]) -> None:
    worth = [sum(EARNED[: turn + 1]) for turn in range(3)]
    assert [paid(density, EARNED[t], worth[t], t == 2, least=least, most=3.0) for t in range(3)] == expected
