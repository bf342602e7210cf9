"""Numbers about evaluations that torchmetrics lacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torchmetrics
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from collm.trajectory import RolloutBatch

NUM_RESAMPLES = 2000
SEED = 0
CHUNK = 1_000_000


class BootstrapMean(torchmetrics.Metric):
    """Mean of single values with a 95 % percentile bootstrap interval.

    All values are kept, over all ranks, so that the interval is the one of the whole evaluation. Resampling draws from
    a generator of its own with a fixed seed: the same values give the same interval, and the global random state is
    not touched.

    Args:
        kwargs: Options of every metric, such as `process_group`.
    """

    full_state_update = False
    higher_is_better = None
    is_differentiable = False
    values: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("values", default=[], dist_reduce_fx="cat")

    def update(self, values: Tensor | float) -> None:
        """Add one value or a tensor of them."""
        self.values.append(torch.as_tensor(values, dtype=torch.float32, device=self.device).detach().reshape(-1))

    def compute(self) -> dict[str, Tensor]:
        """`mean`, and `low` and `high` of the interval; all NaN without values, all the mean of a single one."""
        values = dim_zero_cat(self.values) if len(self.values) else torch.empty(0)
        numbers = torch.tensor(stratified_interval([values.cpu()]), device=self.device)
        return dict(zip(("mean", "low", "high"), numbers, strict=True))


def percentile_interval(resamples: Tensor, confidence: float = 0.95) -> tuple[float, float]:
    """Low and high end of the percentile bootstrap interval of a statistic that is `resamples` [M] in M resamples.

    A resample in which it does not exist, NaN, is left out.
    """
    tail = (1 - confidence) / 2
    ends = torch.nanquantile(resamples, resamples.new_tensor([tail, 1 - tail]), interpolation="nearest")
    return float(ends[0]), float(ends[1])


def stratified_interval(runs: Sequence[Tensor]) -> tuple[float, float, float]:
    """Mean of several runs and its 95 % bootstrap interval over runs and their episodes: mean, low, high.

    Every run counts alike, whatever the number of its episodes. A resample draws as many runs as there are, then from
    each as many episodes as it has; one run is the plain bootstrap, and one episode per run resamples runs only.

    Args:
        runs: Values of the episodes of each run, [n] each; runs without any are left out.
    """
    runs = [values.double() for values in runs if len(values)]
    if not runs:
        return float("nan"), float("nan"), float("nan")
    generator = torch.Generator().manual_seed(SEED)
    drawn = torch.randint(len(runs), (NUM_RESAMPLES, len(runs)), generator=generator)
    means = torch.zeros(drawn.shape, dtype=torch.float64)
    for index, values in enumerate(runs):
        places = (drawn == index).nonzero()
        for part in places.split(max(1, CHUNK // len(values))):  # so that the memory does not grow with the evaluation
            episodes = torch.randint(len(values), (len(part), len(values)), generator=generator)
            means[part[:, 0], part[:, 1]] = values[episodes].mean(1)
    return sum(values.mean().item() for values in runs) / len(runs), *percentile_interval(means.mean(1))


def episode_numbers(batch: RolloutBatch) -> dict[str, list[float]]:
    """What is logged of a batch, a list for each name.

    `failed` is over all episodes, those left out included. `failed/<cause>` has a 1 for each failure, also for those
    that a retry made good. All else is over the episodes of the batch. See `summarized`.
    """
    numbers: dict[str, list[float]] = {"return": [], "turns": [], "failed": []}
    for trajectory in (*batch.trajectories, *batch.left_out):
        numbers["failed"].append(float(trajectory.error is not None))
        for cause, _ in trajectory.failures:
            numbers.setdefault(f"failed/{cause}", []).append(1.0)
    for trajectory in batch.trajectories:
        numbers["return"].append(trajectory.total_reward)
        numbers["turns"].append(float(len(trajectory.turns)))
        for name, value in trajectory.metrics.items():
            numbers.setdefault(name, []).append(value)
        for agent_id in trajectory.turns[0].actions if trajectory.turns else ():
            actions = [turn.actions[agent_id] for turn in trajectory.turns]
            lengths = [len(action.token_ids) for action in actions]
            numbers.setdefault(f"action_tokens/{agent_id}", []).append(sum(lengths) / len(lengths))
            cut = [action.truncated for action in actions]
            numbers.setdefault(f"truncated/{agent_id}", []).append(sum(cut) / len(cut))
        for term in trajectory.turns[0].terms if trajectory.turns else ():
            total = sum(turn.terms.get(term, 0.0) for turn in trajectory.turns)
            numbers.setdefault(f"reward/{term}", []).append(total)
    return numbers


def summarized(numbers: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Each list of `episode_numbers` as one number: counts of failures by cause, means of all else; none if empty."""
    return {
        name: sum(values) if name.startswith("failed/") else sum(values) / len(values)
        for name, values in numbers.items()
        if values
    }


def groups_of_one(batch: RolloutBatch) -> int:
    """Number of groups that failed episodes have left with one member, which has nothing to be compared with."""
    if batch.tree is None:
        lost = {trajectory.group for trajectory in batch.left_out}
        sizes = Counter(batch.groups.tolist())
    else:  # the joint actions at a node are a group, and a path that failed is missing at every node that it passed
        lost = {-1 - trajectory.group for trajectory in batch.left_out}
        lost |= {turn.branch.node for path in batch.left_out for turn in path.turns if turn.branch}
        sizes = Counter(batch.tree.siblings.tolist())
    return sum(sizes[group] == 1 for group in lost)


def merged(parts: Iterable[Mapping[str, Sequence[float]]]) -> dict[str, list[float]]:
    """Lists of the same name put together; names keep their order."""
    together: dict[str, list[float]] = {}
    for part in parts:
        for name, values in part.items():
            together.setdefault(name, []).extend(values)
    return together
