"""Statistics that compare methods over a few seeds, as recommended by Agarwal et al. (arXiv 2108.13264).

A run is a curve of one metric over joint samples. They use `scipy`, an optional dependency (extra `studies`).
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
    """Moving average of each value and up to `window` - 1 values before it, [n] -> [n]."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - window)
    return (sums[ends] - sums[starts]) / (ends - starts)


def area_under(axis: np.ndarray, values: np.ndarray, horizon: float) -> float:
    """Mean height of the curve from 0 to `horizon`: linear between points, constant before the first."""
    points = np.concatenate([[0.0], axis[axis < horizon], [horizon]])
    heights = np.interp(points, axis, values)
    return float(((heights[1:] + heights[:-1]) * np.diff(points)).sum() / 2 / horizon)


def first_reaching(axis: np.ndarray, values: np.ndarray, threshold: float) -> tuple[float, bool]:
    """Where the curve first reaches `threshold`, and True; its end, and False, if it never does (censored)."""
    reached = np.flatnonzero(values >= threshold)
    return (float(axis[reached[0]]), True) if len(reached) else (float(axis[-1]), False)


def interquartile_mean(values: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean of the middle half along `axis`; for fewer than four values their mean."""
    return scipy_stats().trim_mean(values, 0.25, axis=axis)


def interval(
    samples: Sequence[Sequence[float] | np.ndarray], statistic: Any, confidence: float = 0.95
) -> tuple[float, float, float]:
    """`statistic` of one or more samples of runs, with its percentile bootstrap interval.

    Each sample is resampled independently.

    Args:
        samples: Values of the runs, one sample for each method.
        statistic: Function of as many arrays [..., n] and `axis`.
        confidence: Level of the interval.

    Returns:
        Estimate, low end and high end; the ends are NaN if a sample has fewer than two runs.
    """
    arrays = tuple(np.asarray(sample, dtype=float) for sample in samples)
    estimate = float(statistic(*arrays, axis=-1))
    if any(len(array) < 2 for array in arrays):
        return estimate, float("nan"), float("nan")
    result = scipy_stats().bootstrap(
        arrays,
        statistic,
        n_resamples=NUM_RESAMPLES,
        confidence_level=confidence,
        method="percentile",
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return estimate, float(result.confidence_interval.low), float(result.confidence_interval.high)


def difference(first: np.ndarray, second: np.ndarray, axis: int = -1) -> np.ndarray:
    """Interquartile mean of the first sample minus that of the second."""
    return interquartile_mean(first, axis) - interquartile_mean(second, axis)


def saving(first: np.ndarray, second: np.ndarray, axis: int = -1) -> np.ndarray:
    """Share that the first sample saves relative to the second, by interquartile means; 0.5 if it needs half."""
    return 1.0 - interquartile_mean(first, axis) / interquartile_mean(second, axis)


def improvement(first: np.ndarray, second: np.ndarray, axis: int = -1) -> np.ndarray:
    """Probability that a run of the first sample exceeds a run of the second; ties count as half."""
    first, second = np.moveaxis(first, axis, -1)[..., :, None], np.moveaxis(second, axis, -1)[..., None, :]
    return ((first > second) + 0.5 * (first == second)).mean((-2, -1))


def censored_median(times: Sequence[float], reached: Sequence[bool]) -> float:
    """Kaplan-Meier median of right-censored times; infinite if fewer than half of the runs reached the event."""
    stats = scipy_stats()
    ends, complete = np.asarray(times, dtype=float), np.asarray(reached, dtype=bool)
    if not complete.any():
        return float("inf")
    survival = stats.ecdf(stats.CensoredData(uncensored=ends[complete], right=ends[~complete])).sf
    below = survival.quantiles[survival.probabilities <= 0.5]
    return float(below[0]) if len(below) else float("inf")
