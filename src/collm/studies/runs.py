"""Logs of finished runs: curves over joint samples and over time, and the resources of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from collm.errors import ConfigurationError
from collm.metrics import stratified_interval

GRID = 60


@dataclass(frozen=True)
class Curve:
    """The curve of a metric over one training run.

    Args:
        samples: Joint samples at each point.
        seconds: Seconds of rollouts and updates at each point, without evaluations.
        values: The metric.
    """

    samples: np.ndarray
    seconds: np.ndarray
    values: np.ndarray


@dataclass(frozen=True)
class Band:
    """Mean over runs and its 95 % bootstrap interval over runs, at each point of an axis."""

    axis: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass
class Run:
    """The logs of one run.

    Args:
        folder: Folder of the run.
        scalars: Logged metrics by name, as values by number of joint samples.
        config: The configuration of the run.
    """

    folder: Path
    scalars: dict[str, dict[int, float]]
    config: dict[str, Any] = field(default_factory=dict)

    def curve(self, name: str) -> Curve | None:
        """The curve of `name`; None if it was not logged."""
        points = sorted(self.scalars.get(name, {}).items())
        if not points:
            return None
        samples = np.array([step for step, _ in points])
        spent = sorted(self.seconds_by_step().items())
        steps = np.array([step for step, _ in spent])
        totals = np.concatenate([[0.0], np.cumsum([seconds for _, seconds in spent])])
        seconds = totals[np.searchsorted(steps, samples, side="right")] if spent else np.zeros(len(samples))
        return Curve(samples, seconds, np.array([value for _, value in points]))

    def seconds_by_step(self) -> dict[int, float]:
        """Seconds of each rollout and its update, by the number of joint samples after it."""
        played, updated = (self.scalars.get(f"time/{name}", {}) for name in ("rollout", "update"))
        return {step: played.get(step, 0.0) + updated.get(step, 0.0) for step in {*played, *updated}}

    def overhead(self) -> dict[str, float]:
        """Resources of training: joint samples, rollouts, policy updates of each agent, seconds, peak memory in GB."""
        arguments = self.config.get("model", {}).get("init_args", {})
        steps = arguments.get("num_epochs", 1) * arguments.get("num_minibatches", 1)
        learned = [values for name, values in self.scalars.items() if name.startswith("loss/policy/")]
        spent = self.seconds_by_step()
        peaks = {name: self.scalars.get(f"memory/{name}", {}) for name in ("peak_rss_gb", "peak_cuda_gb")}
        return {
            "joint_samples": float(
                max(self.scalars.get("rollout/joint_samples", {0: 0})),
            ),
            "rollouts": float(len(spent)),
            "policy_updates": float(steps * max(map(len, learned), default=0)),
            "seconds": sum(spent.values()),
        } | {name: max(values.values()) for name, values in peaks.items() if values}


def read_run(folder: str | Path) -> Run:
    """Read the TensorBoard logs of a run; if a resumed run repeats a step, the last logged value counts."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = Path(folder)
    if not list(folder.glob("events.out.tfevents.*")):
        raise ConfigurationError(f"{str(folder)!r} holds no TensorBoard logs; give the folder of a run.")
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    scalars = {
        name: {event.step: event.value for event in sorted(events.Scalars(name), key=lambda event: event.wall_time)}
        for name in events.Tags()["scalars"]
    }
    path = folder / "config.yaml"
    return Run(folder, scalars, yaml.safe_load(path.read_text()) if path.is_file() else {})


def band(curves: Sequence[Curve], axis: str) -> Band:
    """Mean and interval over runs along `axis`, up to the end of the shortest run, with linear interpolation.

    Args:
        curves: One curve for each run.
        axis: `samples` or `seconds`.
    """
    xs = [getattr(curve, axis) for curve in curves]
    start, stop = max(x[0] for x in xs), min(x[-1] for x in xs)
    points = np.unique(np.concatenate(xs)) if axis == "samples" else np.linspace(start, stop, GRID)
    points = np.unique(np.clip(points, start, stop))
    values = np.stack([np.interp(points, x, curve.values) for x, curve in zip(xs, curves, strict=True)])
    intervals = [stratified_interval(list(torch.from_numpy(column)[:, None])) for column in values.T]
    mean, low, high = np.array(intervals).T
    return Band(points, mean, low, high)
