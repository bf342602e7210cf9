"""Metrics of evaluations that torchmetrics lacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torchmetrics
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from collm.returns import discounted_returns, equal_groups, node_returns
from collm.trajectory import RolloutBatch

NUM_RESAMPLES = 2000
SEED = 0
CHUNK = 1_000_000


class BootstrapMean(torchmetrics.Metric):
    """Mean of single values with a 95 % percentile bootstrap interval.

    The metric keeps all values, of all ranks, so the interval covers the full evaluation. It resamples with its own
    generator and a fixed seed: the same values give the same interval, and the global random state does not change.

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
        """Add one value or a tensor of values."""
        self.values.append(torch.as_tensor(values, dtype=torch.float32, device=self.device).detach().reshape(-1))

    def compute(self) -> dict[str, Tensor]:
        """`mean` and the interval's `low` and `high`; NaN without values, and equal if there is a single value."""
        values = dim_zero_cat(self.values) if len(self.values) else torch.empty(0)
        numbers = torch.tensor(stratified_interval([values.cpu()]), device=self.device)
        return dict(zip(("mean", "low", "high"), numbers, strict=True))


def percentile_interval(resamples: Tensor) -> tuple[float, float]:
    """Low and high end of the 95 % percentile bootstrap interval of a statistic with values `resamples` [M].

    The ends are resamples themselves, as a statistic may be infinite. NaN, where it is undefined, is left out.
    """
    ends = torch.nanquantile(resamples, resamples.new_tensor([0.025, 0.975]), interpolation="nearest")
    return float(ends[0]), float(ends[1])


def stratified_interval(runs: Sequence[Tensor]) -> tuple[float, float, float]:
    """Mean of several runs and its 95 % bootstrap interval over runs and their episodes: mean, low, high.

    Every run has the same weight, whatever the number of its episodes. A resample draws runs with replacement, then
    the episodes of each drawn run. With one run this is the plain bootstrap; with one episode per run it resamples
    only runs.

    Args:
        runs: Values of the episodes of each run, [n] each; empty runs are left out.
    """
    runs = [values.double() for values in runs if len(values)]
    if not runs:
        return float("nan"), float("nan"), float("nan")
    generator = torch.Generator().manual_seed(SEED)
    drawn = torch.randint(len(runs), (NUM_RESAMPLES, len(runs)), generator=generator)
    means = torch.zeros(drawn.shape, dtype=torch.float64)
    for index, values in enumerate(runs):
        draws = (drawn == index).nonzero()
        for part in draws.split(max(1, CHUNK // len(values))):
            episodes = torch.randint(len(values), (len(part), len(values)), generator=generator)
            means[part[:, 0], part[:, 1]] = values[episodes].mean(1)
    return sum(values.mean().item() for values in runs) / len(runs), *percentile_interval(means.mean(1))


def episode_numbers(batch: RolloutBatch) -> dict[str, list[float]]:
    """Numbers to log about a batch: a list of values for each name, to be reduced by `summarized`.

    `failed` covers all episodes, including those left out. `failed/<cause>` has a 1 for each failure, including those
    that a retry corrected. All other lists cover the episodes of the batch; those of metrics and of `reward/<term>`, a
    sum over the turns, the episodes that have it in any turn.
    """
    numbers: dict[str, list[float]] = {"return": [], "turns": [], "failed": [], **batch.numbers}
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
        for term in dict.fromkeys(term for turn in trajectory.turns for term in turn.terms):
            total = sum(turn.terms.get(term, 0.0) for turn in trajectory.turns)
            numbers.setdefault(f"reward/{term}", []).append(total)
    return numbers


def summarized(numbers: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Reduce each list of `episode_numbers`; empty ones drop out.

    Counts (`failed/<cause>`, `absent/<agent>`, `retries/<agent>`) are summed, `latency/<agent>` becomes its median and
    its 95th percentile, in seconds, and of all others the mean is taken.
    """
    result: dict[str, float] = {}
    for name, values in numbers.items():
        kind = name.partition("/")[0] if "/" in name else ""
        if kind == "latency" and values:
            median, tail = torch.quantile(torch.tensor(values), torch.tensor([0.5, 0.95])).tolist()
            result |= {f"{name}/p50": median, f"{name}/p95": tail}
        elif values:
            result[name] = sum(values) if kind in ("failed", "absent", "retries") else sum(values) / len(values)
    return result


def groups_of_one(batch: RolloutBatch) -> int:
    """Number of groups that are left with a single member, so without a baseline, because episodes failed."""
    if batch.tree is None:
        lost = {trajectory.group for trajectory in batch.left_out}
        sizes = Counter(batch.groups.tolist())
    else:  # the joint actions at a node form a group; a failed path is missing at every node it passed through
        lost = {-1 - trajectory.group for trajectory in batch.left_out}
        lost |= {turn.branch.node for path in batch.left_out for turn in path.turns if turn.branch}
        sizes = Counter(batch.tree.siblings.tolist())
    return sum(sizes[group] == 1 for group in lost)


def group_numbers(batch: RolloutBatch) -> Tensor:
    """Groups of two or more whose returns do not differ, all groups of two or more, and joint samples replaced, [3].

    In a rollout tree, the responses to one history are a group.
    """
    values, groups = batch.rewards, batch.groups
    if batch.tree is not None:
        returns = discounted_returns(batch.rewards, batch.turn_mask, 1.0)
        values = node_returns(returns, batch.tree.nodes, batch.weights, batch.turn_mask)[:, None]
        groups = batch.tree.siblings
    sizes = (groups[:, None] == groups).sum(1)
    equal = equal_groups(values, groups)
    replaced = sum(len(trajectory.turns) for trajectory in batch.replaced)
    return torch.stack([(equal / sizes).sum(), ((sizes > 1) / sizes).sum(), values.new_tensor(replaced)])


def merged(parts: Iterable[Mapping[str, Sequence[float]]]) -> dict[str, list[float]]:
    """Concatenate the lists of the same name; names keep their order."""
    lists: dict[str, list[float]] = {}
    for part in parts:
        for name, values in part.items():
            lists.setdefault(name, []).extend(values)
    return lists
