"""Quality of a method's policy gradient estimate at a fixed policy: its noise and its bias.

For the gradients g_1 ... g_n of n tasks with K episodes each, their expectation mu and the reference r, the following
are estimated without bias:

    signal    |mu|^2           mean of g_i g_j over pairs i != j
    noise     K tr Cov(g)      K (mean of |g_i|^2 minus the signal); an update divides it by its number of episodes
    bias      cosine           mu r / |mu| |r|
              kept             mu r / |r|^2, projection of mu on the reference, as a share of the reference
              norm ratio       |mu| / |r|

`noise_to_signal` is the number of episodes at which the noise of an update equals its signal; `update_cosine` is the
cosine between an update from one rollout and the reference, (mu r) / |r| sqrt(|mu|^2 + noise / episodes).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from collm.metrics import percentile_interval
from collm.runtime.files import read_file

NUM_RESAMPLES = 2000
NAMES = ("noise_to_signal", "cosine", "kept", "norm_ratio", "update_cosine")


@dataclass(frozen=True)
class Measured:
    """The record that `collm.studies.record_gradients.MeasureGradients` wrote.

    Args:
        gram: Inner products of the gradients of n tasks, [n, n].
        episodes_per_task: Episodes of each task, K.
        rollout_tasks: Tasks of one rollout.
        dots: Inner products with the reference, [n]; None without a reference.
    """

    gram: Tensor
    episodes_per_task: float
    rollout_tasks: float
    dots: Tensor | None = None


def load(path: str | Path) -> Measured:
    """Read a file of measured gradients."""
    record = read_file(path)
    return Measured(record["gram"], record["episodes_per_task"], record["rollout_tasks"], record.get("dots"))


def statistics(runs: Sequence[Measured], references: Sequence[Measured] = ()) -> dict[str, tuple[float, float, float]]:
    """Mean over runs of every number in `NAMES` and its percentile bootstrap interval over the tasks of each run.

    `noise_to_signal` is a geometric mean. It is infinite if the estimate of the signal is not positive.

    Args:
        runs: Measured gradients, one record for each seed.
        references: The reference of each run; its own error is ignored, so it should be measured on many rollouts.
            Without references only `noise_to_signal` is returned.

    Returns:
        Estimate, low end and high end by name.
    """
    columns: dict[str, list[Tensor]] = {}  # for each run the estimate, then the resamples, [1 + NUM_RESAMPLES]
    generator = torch.Generator().manual_seed(0)
    for index, run in enumerate(runs):
        count = len(run.gram)
        drawn = torch.randint(count, (NUM_RESAMPLES, count), generator=generator)
        weights = torch.ones(1 + NUM_RESAMPLES, count, dtype=torch.float64)
        weights[1:] = torch.zeros(drawn.shape, dtype=torch.float64).scatter_add_(1, drawn, weights[1:])
        length = None
        if references:
            gram = references[index].gram
            length = float(_signal(gram, torch.ones(1, len(gram), dtype=torch.float64)))
        for name, numbers in _numbers(run, weights, length).items():
            columns.setdefault(name, []).append(numbers)
    result = {}
    for name, column in columns.items():
        values = torch.stack(column)
        mean = values.log().mean(0).exp() if name == "noise_to_signal" else values.mean(0)
        result[name] = (float(mean[0]), *percentile_interval(mean[1:]))
    return result


def _signal(gram: Tensor, weights: Tensor) -> Tensor:
    """Estimates of |mu|^2 from pairs of different tasks, which are weighted by each row of `weights` [M, n], [M]."""
    pairs = ((weights @ gram) * weights).sum(1) - weights.square() @ gram.diagonal()
    return pairs / (weights.sum(1).square() - weights.square().sum(1))


def _numbers(measured: Measured, weights: Tensor, reference: float | None) -> dict[str, Tensor]:
    """The statistics for each row of `weights` [M, n], [M] each; `reference` is |r|^2, None without a reference."""
    signal = _signal(measured.gram, weights)
    total = weights.sum(1)
    trace = (weights @ measured.gram.diagonal()) / total - signal
    positive = signal.clamp(min=0)
    ratio = torch.where(signal > 0, measured.episodes_per_task * trace / signal, torch.inf)
    numbers = {"noise_to_signal": ratio}
    if reference is not None and measured.dots is not None:
        along = (weights @ measured.dots) / total
        length = max(reference, 0.0) ** 0.5
        update = (positive + trace.clamp(min=0) / measured.rollout_tasks).sqrt()
        # may exceed 1 because of noise; NaN if the signal is not positive
        numbers["cosine"] = torch.where(signal > 0, along / (positive.sqrt() * length), torch.nan)
        numbers["kept"] = along / length**2
        numbers["norm_ratio"] = positive.sqrt() / length
        numbers["update_cosine"] = along / (update * length)
    return numbers
