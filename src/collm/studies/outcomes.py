"""Outcomes of the runs of a study: their curves as plain data, and the measures that a rule uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from collm.errors import ConfigurationError
from collm.studies.claims import Rule
from collm.studies.runs import Curve, read_run
from collm.studies.statistics import area_under, first_reaching, smoothed


@dataclass
class Outcome:
    """One finished run.

    Args:
        cell: Label of the cell.
        method: Label of the method.
        seed: Random seed.
        samples: Joint samples at every point of the curve.
        seconds: Seconds of rollouts and updates at every point.
        values: The logged metric at every point.
        explained_variance: Median over the run of every critic's explained variance, by critic name.
    """

    cell: str
    method: str
    seed: int
    samples: list[float]
    seconds: list[float]
    values: list[float]
    explained_variance: dict[str, float] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """The outcome as plain data with rounded numbers."""
        rounded = {"seconds": [round(s, 2) for s in self.seconds], "values": [round(v, 5) for v in self.values]}
        return asdict(self) | rounded

    def curve(self, window: int) -> Curve:
        """The curve of the metric, smoothed by a moving average."""
        values = smoothed(np.array(self.values), window)
        return Curve(np.array(self.samples), np.array(self.seconds), values)

    def measures(self, rule: Rule, horizon: float) -> dict[str, float]:
        """All measures up to `horizon` joint samples, and whether the run reached the threshold."""
        curve = self.curve(rule.window)
        kept = curve.samples <= horizon
        samples, seconds, values = curve.samples[kept], curve.seconds[kept], curve.values[kept]
        needed, reached = first_reaching(samples, values, rule.threshold)
        return {
            "auc": area_under(samples, values, horizon),
            "final": float(values[-1]),
            "samples": needed,
            "seconds": first_reaching(seconds, values, rule.threshold)[0],
            "reached": float(reached),
        }


def read_outcome(folder: Path, cell: str, method: str, seed: int, metric: str) -> Outcome:
    """Read the logs of a run."""
    run = read_run(folder)
    curve = run.curve(metric)
    if curve is None:
        raise ConfigurationError(f"{folder} has no {metric!r} in its logs; it has {', '.join(sorted(run.scalars))}.")
    if "time/update" not in run.scalars:
        raise ConfigurationError(
            f"{folder} has no update times in its logs; add collm.callbacks.resources.LogResources to the "
            "trainer.callbacks of the study."
        )
    explained = {}
    for name, points in run.scalars.items():
        known = [value for value in points.values() if np.isfinite(value)]  # NaN where returns do not vary
        if name.endswith("/explained_variance") and known:
            explained[name.removesuffix("/explained_variance")] = float(np.median(known))
    samples, seconds, values = (x.tolist() for x in (curve.samples, curve.seconds, curve.values))
    return Outcome(cell, method, seed, samples, seconds, values, explained)


def horizons(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Joint samples that all runs of a cell have reached, by cell."""
    ends: dict[str, float] = {}
    for outcome in outcomes:
        ends[outcome.cell] = min(ends.get(outcome.cell, float("inf")), outcome.samples[-1])
    return ends


def measured(outcomes: Sequence[Outcome], rule: Rule) -> dict[str, dict[str, dict[str, list[float]]]]:
    """The measures of all runs, by cell, method and measure."""
    ends = horizons(outcomes)
    numbers: dict[str, dict[str, dict[str, list[float]]]] = {}
    for outcome in outcomes:
        measures = numbers.setdefault(outcome.cell, {}).setdefault(outcome.method, {})
        for name, value in outcome.measures(rule, ends[outcome.cell]).items():
            measures.setdefault(name, []).append(value)
    return numbers
