"""Numbers that compare methods over a handful of seeds, as Agarwal et al. (arXiv 2108.13264) ask for them.

A run is a curve of one metric over joint samples. `scipy` does the statistics; it comes with the extra `studies`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from collm.errors import ConfigurationError

NUM_RESAMPLES = 9999


def scipy_stats() -> Any:
    """The module `scipy.stats`."""
    try:
        import scipy.stats
    except ImportError as error:
        raise ConfigurationError(
            "reports of studies need scipy, which is not installed; pip install 'collm[studies]'."
        ) from error
    return scipy.stats


def smoothed(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of each value and up to `window` - 1 before it, [n] -> [n]."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return (sums[ends] - sums[starts]) / (ends - starts)


def area_under(axis: np.ndarray, values: np.ndarray, horizon: float) -> float:
    """Mean height of the curve from 0 to `horizon`, straight between points and level before the first."""
    places = np.concatenate([[0.0], axis[axis < horizon], [horizon]])
    heights = np.interp(places, axis, values)
    return float(np.diff(places) @ (heights[1:] + heights[:-1]) / 2 / horizon)


def first_reaching(axis: np.ndarray, values: np.ndarray, threshold: float) -> tuple[float, bool]:
    """Where the curve first is at `threshold`, and True; the end of it, and False, where it never is (censored)."""
    reached = np.flatnonzero(values >= threshold)
    return (float(axis[reached[0]]), True) if len(reached) else (float(axis[-1]), False)


def interquartile_mean(values: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean of the middle half, along `axis`; of fewer than four values it is their mean."""
    return scipy_stats().trim_mean(values, 0.25, axis=axis)


def interval(
    samples: Sequence[Sequence[float] | np.ndarray], statistic: Any, confidence: float = 0.95
) -> tuple[float, float, float]:
    """`statistic` of one or more samples of runs and its percentile bootstrap interval, each sample resampled alone.

    Args:
        samples: Numbers of the runs of each method.
        statistic: Takes as many arrays [..., n] and `axis`.
        confidence: Level of the interval.

    Returns:
        Estimate, low end and high end; all the same where no sample has two runs.
    """
    arrays = tuple(np.asarray(sample, dtype=float) for sample in samples)
    estimate = float(statistic(*arrays, axis=-1))
    if any(len(array) < 2 for array in arrays):
        return estimate, float("nan"), float("nan")
    found = scipy_stats().bootstrap(
        arrays,
        statistic,
        n_resamples=NUM_RESAMPLES,
        confidence_level=confidence,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return estimate, float(found.confidence_interval.low), float(found.confidence_interval.high)


def difference(first: np.ndarray, second: np.ndarray, axis: int = -1) -> np.ndarray:
    """Interquartile mean of the first sample less that of the second."""
    return interquartile_mean(first, axis) - interquartile_mean(second, axis)


def saving(first: np.ndarray, second: np.ndarray, axis: int = -1) -> np.ndarray:
    """Share that the first sample saves of the second, by interquartile means: 0.5 where it needs half as much."""
    return 1.0 - interquartile_mean(first, axis) / interquartile_mean(second, axis)


def improvement(first: np.ndarray, second: np.ndarray, axis: int = -1) -> np.ndarray:
    """Probability that a run of the first sample is above one of the second; ties count half."""
    first, second = np.moveaxis(first, axis, -1)[..., :, None], np.moveaxis(second, axis, -1)[..., None, :]
    return ((first > second) + 0.5 * (first == second)).mean((-2, -1))


def censored_median(times: Sequence[float], reached: Sequence[bool]) -> float:
    """Kaplan-Meier median of times some of which were cut off before the event; infinite if under half had it."""
    stats = scipy_stats()
    ends, complete = np.asarray(times, dtype=float), np.asarray(reached, dtype=bool)
    if not complete.any():
        return float("inf")
    survival = stats.ecdf(stats.CensoredData(uncensored=ends[complete], right=ends[~complete])).sf
    below = survival.quantiles[survival.probabilities <= 0.5]
    return float(below[0]) if len(below) else float("inf")
