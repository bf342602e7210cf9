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


@pytest.mark.parametrize("turns", range(1, 51))
def test_every_number_of_turns_reaches_its_own_share(turns: int) -> None:
    for number in range(turns + 1):
        share = float(f"{number / turns:.17g}")  # as it is written in a configuration
        assert paid("threshold", 0.0, number, True, least=share, most=turns) == turns, number
        if number:
            assert paid("threshold", 0.0, number - 1, True, least=share, most=turns) == 0, number
