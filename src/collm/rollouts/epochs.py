"""The rollouts of an epoch: which tasks are played with which seeds.

The datasets have a length, and a seed for every rollout, so that a resumed run repeats it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.data import IterableDataset

from collm.rollouts.ahead import before_updates, beside_updates
from collm.trajectory import RolloutBatch, Task

_EVALUATION_SEED = 2**40  # above the seeds of all training rollouts


class TrainRollouts(IterableDataset):
    """The rollouts of one epoch, each sampled when the loader asks for it.

    Args:
        data: The `RolloutDataModule` that plays them.
    """

    def __init__(self, data: Any):
        self.data = data

    def __len__(self) -> int:
        return self.data.rollouts_per_epoch

    def __iter__(self) -> Iterator[RolloutBatch]:
        data = self.data
        first = data.trainer.current_epoch * data.rollouts_per_epoch
        played = data.trainer.fit_loop.epoch_loop.batch_progress.current.ready  # before the run was resumed
        rollouts = map(self._seed_and_tasks, range(first + played, first + data.rollouts_per_epoch))
        if not data.max_staleness:
            yield from self._on_policy(rollouts)
        elif data.generates_elsewhere:
            aside = ((seed, partial(data.play_aside, tasks=own, seed=seed)) for seed, _, own in rollouts)
            yield from beside_updates(aside, lambda: data.serving(data.sampler))
        else:
            play = partial(data.play, data.sampler, num_generations=data.num_generations)
            yield from before_updates((seed, partial(play, tasks=own, seed=seed)) for seed, _, own in rollouts)

    def _on_policy(self, rollouts: Iterable[tuple[int, list[Task], list[Task]]]) -> Iterator[RolloutBatch]:
        """Rollouts of the policies after the update before."""
        data = self.data
        for seed, tasks, own in rollouts:
            # One seed per rollout, so that a resumed run repeats it.
            torch.manual_seed(seed)
            used = {task.task_id for task in tasks}
            others = [task for task in data.train_tasks if task.task_id not in used] or data.train_tasks
            yield data.play_until_different(own, others, seed)

    def _seed_and_tasks(self, rollout: int) -> tuple[int, list[Task], list[Task]]:
        """The seed of a rollout on this rank, its tasks over all ranks, and those of this rank."""
        data, rank, num_ranks = self.data, self.data.trainer.global_rank, self.data.trainer.world_size
        tasks = data.tasks_of(rollout)
        return (data.seed * 1_000_003 + rollout) * num_ranks + rank, tasks, tasks[rank::num_ranks]


class EvalRollouts(IterableDataset):
    """Held-out episodes, with the same seeds in every evaluation.

    Args:
        data: The `RolloutDataModule` that plays them.
        tasks: The held-out tasks, over all ranks.
    """

    def __init__(self, data: Any, tasks: Sequence[Task]):
        self.data = data
        rank, num_ranks = data.trainer.global_rank, data.trainer.world_size
        size = max(1, data.eval_batch_size // data.eval_episodes_per_task)
        self.batches = [tasks[start : start + size][rank::num_ranks] for start in range(0, len(tasks), size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[RolloutBatch]:
        data = self.data
        for index, tasks in enumerate(self.batches):
            seed = (data.seed * 1_000_003 + index) * data.trainer.world_size + data.trainer.global_rank
            seed += _EVALUATION_SEED
            yield data.play(data.eval_sampler, tasks, seed, data.eval_episodes_per_task, data.eval_greedy)
