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
        ("threshold", 0.5, [0.0, 0.0, 4.0]),
        ("threshold", 0.51, [0.0, 0.0, 0.0]),
    ],
)
def test_rewards_of_an_episode(density: str, least: float, expected: list[float]) -> None:
    worth = [sum(EARNED[: turn + 1]) for turn in range(3)]
    assert [paid(density, EARNED[t], worth[t], t == 2, least=least, most=4.0) for t in range(3)] == expected


@pytest.mark.parametrize(("share", "number", "turns"), [(0.28, 7, 25), (0.14, 7, 50), (0.07, 7, 100), (0.56, 14, 25)])
def test_a_share_is_reached_although_rounding_is_against_it(share: float, number: int, turns: int) -> None:
    assert share * turns > number
    paid_for = [paid("threshold", 0.0, count, True, least=share, most=turns) for count in (number - 1, number)]
    assert paid_for == [0, turns]
