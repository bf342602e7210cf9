from __future__ import annotations

import numpy as np
import pytest

from collm.studies.statistics import (
    area_under,
    censored_median,
    difference,
    first_reaching,
    improvement,
    interquartile_mean,
    interval,
    saving,
    smoothed,
)

AXIS = np.array([10.0, 20.0, 40.0])
VALUES = np.array([0.0, 1.0, 1.0])


def test_moving_average() -> None:
    np.testing.assert_allclose(smoothed(np.array([2.0, 4.0, 6.0, 8.0]), 2), [2, 3, 5, 7])
    np.testing.assert_allclose(smoothed(np.array([2.0, 4.0, 6.0]), 9), [2, 3, 4])


def test_area_under_a_curve_is_its_mean_height() -> None:
    """0 up to 10, a ramp to 20, 1 up to 40: 0 + 5 + 20, over 40."""
    assert area_under(AXIS, VALUES, 40) == pytest.approx(25 / 40)
    assert area_under(AXIS, VALUES, 15) == pytest.approx(5 * 0.25 / 15)  # halfway up the ramp
    assert area_under(AXIS, VALUES, 20) == pytest.approx(5 / 20)


def test_the_threshold_is_reached_or_the_time_is_censored() -> None:
    assert first_reaching(AXIS, VALUES, 0.8) == (20.0, True)
    assert first_reaching(AXIS, VALUES, 1.1) == (40.0, False)


def test_the_interquartile_mean_leaves_out_both_quarters() -> None:
    assert interquartile_mean(np.array([0.0, 1.0, 3.0, 100.0])) == 2.0
    assert interquartile_mean(np.array([0.0, 3.0, 100.0])) == pytest.approx(103 / 3)


def test_statistics_of_hand_worked_values() -> None:
    first, second = np.array([1.0, 2.0]), np.array([2.0, 4.0])
    assert difference(first, second) == -1.5
    assert saving(first, second) == 0.5
    assert improvement(first, second) == 0.125  # one tie of four pairs
    both = np.stack([first, second])
    np.testing.assert_allclose(improvement(both, both[::-1]), [0.125, 0.875])


def test_censored_median() -> None:
    """Of five, one never arrives: after 2 of 5 by 20, one is gone, then the third of the 2 that are left arrives."""
    assert censored_median([10, 20, 25, 30, 40], [True, True, False, True, False]) == 30
    assert censored_median([10, 20, 30], [True, True, True]) == 20
    assert censored_median([10, 40, 40, 40], [True, False, False, False]) == float("inf")
    assert censored_median([40, 40], [False, False]) == float("inf")


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """The difference of means of ten normal numbers each is 1; percentile intervals of so few are a little short."""
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(60):
        first, second = generator.normal(1, 1, 10), generator.normal(0, 1, 10)
        estimate, low, high = interval([first, second], difference)
        assert low < estimate < high
        held += low <= 1 <= high
    assert 49 <= held <= 60


def test_a_single_run_has_no_interval() -> None:
    estimate, low, high = interval([[1.0], [2.0, 3.0]], difference)
    assert estimate == -1.5
    assert np.isnan([low, high]).all()
