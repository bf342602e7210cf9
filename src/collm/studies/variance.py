"""Analysis of variance of rewards to go: the shares that the task, the history and a critic explain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from collm.metrics import percentile_interval

NUM_RESAMPLES = 2000


def ceiling(returns: np.ndarray, values: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Shares of the variance of the reward to go, at each turn and over all turns, with 95 % bootstrap intervals.

    Args:
        returns: Rewards to go, the episodes' own first, NaN where none was played, [n, E, T, R].
        values: What each critic says of the episodes, [n, E, T].

    Returns:
        For `pooled` and `turn 1`, `turn 2` ...: `ceiling`, `task`, and of each critic `explained` and `share` of the
        ceiling; each an estimate and the two ends of its interval, over tasks.
    """
    chance = np.random.default_rng(0)
    num_tasks = len(returns)
    drawn = np.concatenate([np.arange(num_tasks)[None], chance.integers(num_tasks, size=(NUM_RESAMPLES, num_tasks))])
    parts = variance_parts(returns, drawn)  # [S, T] each
    weight = (~np.isnan(returns[..., 0])).sum((0, 1))  # histories at each turn
    known = {"ceiling": parts["task"] + parts["history"], "task": parts["task"]}
    total = known["ceiling"] + parts["chance"]
    shares = {name: with_pooled(part, total, weight) for name, part in known.items()}
    for name, told in values.items():
        errors, spread = sums_of_squares(returns[..., 0] - told, drawn), sums_of_squares(returns[..., 0], drawn)
        explained = 1 - with_pooled(errors, spread, np.ones(len(weight)))
        shares[f"{name} explained"] = explained
        shares[f"{name} share"] = explained / shares["ceiling"]
    rows = ["pooled", *(f"turn {turn + 1}" for turn in range(len(weight)))]
    return {
        row: {
            name: [float(share[0, column]), *percentile_interval(torch.from_numpy(share[1:, column]))]
            for name, share in shares.items()
        }
        for column, row in enumerate(rows)
    }


def variance_parts(returns: np.ndarray, drawn: np.ndarray) -> dict[str, np.ndarray]:
    """Variance between tasks, between histories of a task, and between continuations of a history: nested ANOVA.

    Estimates are unbiased, so that small ones may be negative; tasks with fewer than two histories at a turn are left
    out there.

    Args:
        returns: Rewards to go, [n, E, T, R].
        drawn: Tasks of each resample, [S, n].

    Returns:
        `task`, `history` and `chance`, [S, T] each.
    """
    num_continuations = returns.shape[-1]
    count = (~np.isnan(returns[..., 0])).sum(1).astype(float)  # histories of each task, [n, T]
    histories = returns.mean(-1)  # [n, E, T]
    several = np.where(count > 1, count, np.nan)
    mean = np.nansum(histories, 1) / several
    between = np.nansum((histories - mean[:, None]) ** 2, 1) / (several - 1)
    within = np.nansum(returns.var(-1, ddof=1), 1) / several
    with np.errstate(invalid="ignore", divide="ignore"):
        chance = _mean(within[drawn])
        history = _mean(between[drawn]) - chance / num_continuations
        means = mean[drawn]
        tasks = (~np.isnan(means)).sum(1)
        spread = np.nansum((means - _mean(means)[:, None]) ** 2, 1) / (tasks - 1)
        task = spread - _mean((between / several)[drawn])
    return {"task": task, "history": history, "chance": chance}


def sums_of_squares(entries: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Squared deviations from the mean of each turn, [n, E, T] -> [S, T]."""
    count, total, squares = (
        part[drawn].sum(1)
        for part in ((~np.isnan(entries)).sum(1), np.nansum(entries, axis=1), np.nansum(entries**2, axis=1))
    )
    return squares - total**2 / np.maximum(count, 1)


def with_pooled(part: np.ndarray, total: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """`part` of `total` over all turns, each with its weight, and then at each turn, [S, 1 + T]."""
    with np.errstate(invalid="ignore", divide="ignore"):
        pooled = np.nansum(part * weight, 1) / np.nansum(np.where(np.isnan(part), np.nan, total) * weight, 1)
        return np.concatenate([pooled[:, None], part / total], axis=1)


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the second axis of what is known, NaN where nothing is."""
    known = (~np.isnan(values)).sum(1)
    return np.where(known > 0, np.nansum(values, 1) / np.maximum(known, 1), np.nan)


def as_table(report: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """The report in Markdown."""
    names = list(next(iter(report.values())))
    lines = [f"| | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    for row, shares in report.items():
        cells = [f"{share:.2f} [{low:.2f}, {high:.2f}]" for share, low, high in shares.values()]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
