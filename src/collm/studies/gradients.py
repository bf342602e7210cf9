"""How good an estimate of the policy gradient a method has: its noise, and its bias, at a fixed policy.

With g_1 ... g_n the gradients of n tasks of K episodes each, mu their expectation and r the reference, all unbiased:

    signal    |mu|^2           mean of g_i g_j over pairs i != j
    noise     K tr Cov(g)      K (mean of |g_i|^2, less the signal): the variance that an update divides by its episodes
    bias      cosine           mu r / |mu| |r|
              kept             mu r / |r|^2, the share of the reference that is left along it
              norm ratio       |mu| / |r|

`noise_to_signal` is how many episodes an update needs until its noise is as large as its signal; `update_cosine` is
that of an update of one rollout with the reference, (mu r) / |r| sqrt(|mu|^2 + noise / episodes).
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
    """What `collm.studies.record_gradients.MeasureGradients` wrote.

    Args:
        gram: Products of the gradients of n tasks, [n, n].
        episodes_per_task: Episodes behind each of them, K.
        rollout_tasks: Tasks of one rollout.
        dots: Products with the reference, [n]; None where there was none.
    """

    gram: Tensor
    episodes_per_task: float
    rollout_tasks: float
    dots: Tensor | None = None


def load(path: str | Path) -> Measured:
    """Read a file of measured gradients."""
    record = read_file(path)
    return Measured(record["gram"], record["episodes_per_task"], record["rollout_tasks"], record.get("dots"))


def statistics(
    runs: Sequence[Measured], references: Sequence[Measured] = (), confidence: float = 0.95
) -> dict[str, tuple[float, float, float]]:
    """Mean over runs of every number in `NAMES` and its percentile bootstrap interval over the tasks of each run.

    Noise to signal is averaged in logarithms. It is infinite where no signal was found beside the noise.

    Args:
        runs: What was measured, one for each seed.
        references: The reference of each run, taken as it is: its own error is to be made small by measuring more of
            it. Without references only `noise_to_signal` is found.
        confidence: Level of the interval.

    Returns:
        Estimate, low end and high end by name.
    """
    found: dict[str, list[Tensor]] = {}  # first the estimate, then the resamples, [1 + NUM_RESAMPLES] for each run
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
            found.setdefault(name, []).append(numbers)
    result = {}
    for name, columns in found.items():
        values = torch.stack(columns)
        mean = values.log().mean(0).exp() if name == "noise_to_signal" else values.mean(0)
        result[name] = (float(mean[0]), *percentile_interval(mean[1:], confidence))
    return result


def _signal(gram: Tensor, weights: Tensor) -> Tensor:
    """|mu|^2 from pairs of different tasks, each counted as often as `weights` [M, n] says, [M]."""
    pairs = ((weights @ gram) * weights).sum(1) - weights.square() @ gram.diagonal()
    return pairs / (weights.sum(1).square() - weights.square().sum(1))


def _numbers(measured: Measured, weights: Tensor, reference: float | None) -> dict[str, Tensor]:
    """The statistics under each row of `weights` [M, n], [M] each; `reference` is |r|^2, None where there is none."""
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
        # beyond 1 by chance alone, and not there where no signal was found
        numbers["cosine"] = torch.where(signal > 0, along / (positive.sqrt() * length), torch.nan)
        numbers["kept"] = along / length**2
        numbers["norm_ratio"] = positive.sqrt() / length
        numbers["update_cosine"] = along / (update * length)
    return numbers
