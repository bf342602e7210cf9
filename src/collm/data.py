"""On-policy data: every training batch is a rollout of the current policies.

The dataset has a length and the loader no workers. Lightning prefetches a batch of datasets without a length, which
would be sampled with the weights before the update (a test checks this).
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import lightning as L
import torch
from torch.utils.data import DataLoader, IterableDataset

from collm.environments.base import Environment, EpisodeFailure, check_tasks
from collm.environments.contract import begun, check_environment, check_size, measured, tasks_of
from collm.errors import ConfigurationError
from collm.inference.actors import Actors, check_engines, engine_class
from collm.returns import equal_groups
from collm.rollouts.epochs import EvalRollouts, TrainRollouts
from collm.runtime.checks import Count, CountOrZero, Seed, checked
from collm.runtime.collectives import sum_over_ranks
from collm.runtime.profiler import meter
from collm.runtime.progress import progress
from collm.samplers.base import Sampler
from collm.samplers.parallel import Parallel
from collm.trajectory import RolloutBatch, Task, Trajectory, collate, without_failed

_REPLACEMENT_SEED = 2**41  # above those of evaluations


class RolloutDataModule(L.LightningDataModule):
    """Plays episodes of an environment with the current policies.

    One batch is one rollout: `num_generations` episodes of each of `tasks_per_rollout` tasks, divided among the
    processes of the run. An epoch has `rollouts_per_epoch` rollouts; `--trainer.max_epochs` sets the length of a run.

    Args:
        environment: The environment.
        sampler: How agents form joint actions in training; by default all agents act at the same time.
        eval_sampler: How agents form joint actions in evaluation and prediction; by default all act at the same time.
        tasks_per_rollout: Number of tasks per rollout, summed over all processes.
        num_generations: Number of episodes per task in a rollout, or of joint actions at each node of a rollout tree:
            the group size K of group baselines.
        replace_equal_groups: Before an update, replace groups whose episodes all have the same return by groups of
            other tasks, at most this many times; 0 turns it off. Such groups have zero advantages in algorithms with a
            group baseline. Replaced episodes count as joint samples; groups that are still equal at the end are kept.
        rollouts_per_epoch: Number of rollouts in an epoch; there is one update per rollout.
        eval_episodes_per_task: Number of episodes per held-out task in an evaluation.
        eval_greedy: Evaluate with greedy decoding instead of sampling.
        eval_batch_size: Number of episodes that an evaluation plays in parallel.
        predict_split: Tasks that `predict` plays: `eval` or `train`.
        episode_retries: How often a turn is repeated after a failure of the environment, such as a broken sandbox; the
            same actions are applied in a new episode.
        max_staleness: How many updates the policies of a training rollout may be behind. 0: every rollout waits for the
            update before it. 1: the next rollout is generated while the learner updates where all agents are on servers
            (`engine: endpoint`), and before the update with engines in this process, which saves no time but shows
            what older policies cost. `sampler_correction` of the policy or, where it is off, the importance ratio
            corrects for it, with the log-probabilities noted while sampling.
        failed_episodes: What to do with an episode that still fails. `drop`: leave it out of the update and of its
            group. `zero`: keep it with the rewards before the failure and 0 after it.
        seed: Seed of the order of tasks, of environments and of sampling.
    """

    setting = "data"

    @checked
    def __init__(
        self,
        environment: Environment,
        sampler: Sampler | None = None,
        eval_sampler: Sampler | None = None,
        tasks_per_rollout: Count = 16,
        num_generations: Count = 1,
        replace_equal_groups: CountOrZero = 0,
        rollouts_per_epoch: Count = 10,
        eval_episodes_per_task: Count = 4,
        eval_greedy: bool = False,
        eval_batch_size: Count = 64,
        predict_split: Literal["train", "eval"] = "eval",
        episode_retries: CountOrZero = 1,
        max_staleness: int = 0,
        failed_episodes: Literal["drop", "zero"] = "drop",
        seed: Seed = 0,
    ):
        super().__init__()
        self.environment = environment
        self.sampler = sampler or Parallel()
        self.eval_sampler = eval_sampler or Parallel()
        self.tasks_per_rollout = tasks_per_rollout
        self.num_generations = num_generations
        self.replace_equal_groups = replace_equal_groups
        self.rollouts_per_epoch = rollouts_per_epoch
        self.eval_episodes_per_task = eval_episodes_per_task
        self.eval_greedy = eval_greedy
        self.eval_batch_size = eval_batch_size
        self.predict_split = predict_split
        self.episode_retries = episode_retries
        self.max_staleness = max_staleness
        self.failed_episodes = failed_episodes
        self.seed = seed
        self.on_turn: Callable[[int, int], None] | None = None  # set by callbacks that show progress
        self.on_progress: Callable[[str], None] | None = None  # the same, within a turn
        self._actors: Actors | None = None
        self._serving = threading.Lock()  # one rollout at a time
        if max_staleness not in (0, 1):
            raise ConfigurationError(
                f"data.max_staleness is {max_staleness!r}; choose 0 or 1: with 1 an iteration takes as long as the "
                "slower of rollout and update, which policies that are older still would not make shorter."
            )
        if replace_equal_groups and (num_generations < 2 or not self.sampler.independent):
            raise ConfigurationError(
                f"data.replace_equal_groups is {replace_equal_groups}, but {type(self.sampler).__name__} with "
                f"data.num_generations {num_generations} does not play groups of independent episodes; set it to 0, or "
                "use Parallel and groups of 2 or more."
            )
        if max_staleness and replace_equal_groups:
            raise ConfigurationError(
                f"data.replace_equal_groups is {replace_equal_groups}, but with data.max_staleness {max_staleness} a "
                "rollout is generated before the update of the one in front of it; set one of them to 0."
            )
        check_environment(environment)
        self.train_tasks = tasks_of(environment, "train")
        self.eval_tasks = tasks_of(environment, "eval")
        self.predict_tasks = self.eval_tasks if predict_split == "eval" else self.train_tasks
        check_tasks(type(environment).__name__, self.train_tasks, self.eval_tasks)
        check_size(environment, "tasks_per_rollout", tasks_per_rollout, "num_generations", num_generations)
        self.sampler.check(environment, tasks_per_rollout, num_generations)
        at_once = min(max(1, eval_batch_size // eval_episodes_per_task), len(self.eval_tasks))
        check_size(environment, "eval_batch_size", at_once, "eval_episodes_per_task", eval_episodes_per_task)
        self.eval_sampler.check(environment, at_once, eval_episodes_per_task)

    @property
    def agent_ids(self) -> list[str]:
        """Names of the environment's agents."""
        return list(self.environment.agent_ids)

    trainer: Any  # Lightning sets it, and its `lightning_module` is an algorithm

    def setup(self, stage: str) -> None:
        """Check the engines, and that every first prompt that `stage` shows fits its agent; loads tokenizers only."""
        check_engines(self.trainer.lightning_module.specs)
        self.trainer.lightning_module.max_staleness = self.max_staleness
        dialogues = self.trainer.lightning_module.dialogues()
        played = {"fit": [*self.train_tasks, *self.eval_tasks], "predict": self.predict_tasks}
        for task in played.get(stage, self.eval_tasks):
            try:
                _, observations = begun(self.environment, task, random.Random(self.seed))
            except EpisodeFailure as failure:
                raise ConfigurationError(
                    f"{type(self.environment).__name__} could not begin task {task.task_id!r}: {failure}. Fix the "
                    "cause, or leave the task out."
                ) from failure
            for agent_id, observation in observations.items():
                dialogues[agent_id].check_fits(agent_id, task.task_id, observation)

    def train_dataloader(self) -> DataLoader:
        return self._loader(TrainRollouts(self))

    def val_dataloader(self) -> DataLoader:
        return self._loader(EvalRollouts(self, self.eval_tasks))

    test_dataloader = val_dataloader

    def predict_dataloader(self) -> DataLoader:
        return self._loader(EvalRollouts(self, self.predict_tasks))

    @staticmethod
    def _loader(dataset: IterableDataset) -> DataLoader:
        return DataLoader(dataset, batch_size=None, num_workers=0)

    def tasks_of(self, rollout: int) -> list[Task]:
        """The tasks of one rollout, over all ranks: passes over the training tasks, each in a new random order."""
        first = rollout * self.tasks_per_rollout
        chosen = []
        for position in range(first, first + self.tasks_per_rollout):
            epoch, index = divmod(position, len(self.train_tasks))
            generator = torch.Generator().manual_seed(self.seed * 7919 + epoch)
            order = torch.randperm(len(self.train_tasks), generator=generator)
            chosen.append(self.train_tasks[order[index]])
        return chosen

    @property
    def actors(self) -> Actors:
        """The agents with the engines that generate their responses."""
        policies = self.trainer.lightning_module.policies
        if self._actors is None or self._actors.policies is not policies:
            self._actors = Actors(policies)
        return self._actors

    @contextmanager
    def ready_to_sample(self, sampler: Sampler) -> Iterator[Actors]:
        """The agents with their current policies, ready for rollouts of `sampler`."""
        with self.trainer.lightning_module.ready_to_sample(), self.serving(sampler) as actors:
            yield actors

    @contextmanager
    def serving(self, sampler: Sampler) -> Iterator[Actors]:
        """The agents with the weights they have when it is entered, once rollouts before it have ended."""
        keep_cache = self.environment.horizon > 1 or not sampler.asks_once
        with self._serving, self.actors.serving(self.trainer.lightning_module.num_rollouts, keep_cache) as actors:
            yield actors

    def play(
        self, sampler: Sampler, tasks: Sequence[Task], seed: int, num_generations: int, greedy: bool = False
    ) -> RolloutBatch:
        """Play `num_generations` episodes of each task with the current policies."""
        began = time.perf_counter()
        with self.ready_to_sample(sampler) as actors, progress.told_to(self.on_progress):
            trajectories = self.episodes(actors, sampler, tasks, seed, num_generations, greedy, self.on_turn)
        return self.batch_of(trajectories, time.perf_counter() - began)

    @property
    def generates_elsewhere(self) -> bool:
        """Whether servers generate the responses of all agents, so that a rollout can be played beside an update."""
        specs = self.trainer.lightning_module.specs
        return all(engine_class(spec.engine).elsewhere for spec in specs.values())

    def play_aside(self, actors: Actors, tasks: Sequence[Task], seed: int) -> RolloutBatch:
        """Play a training rollout with policies that servers hold, in a thread beside the one that updates."""
        began = time.perf_counter()
        trajectories = self.episodes(actors, self.sampler, tasks, seed, self.num_generations)
        return self.batch_of(trajectories, time.perf_counter() - began)

    def episodes(
        self,
        actors: Actors,
        sampler: Sampler,
        tasks: Sequence[Task],
        seed: int,
        num_generations: int,
        greedy: bool = False,
        on_turn: Callable[[int, int], None] | None = None,
    ) -> list[Trajectory]:
        """Episodes of each task, played to their ends."""
        return sampler.rollout(
            self.environment,
            tasks,
            actors,
            seed,
            self.trainer.lightning_module.device,
            num_generations=num_generations,
            greedy=greedy,
            on_turn=on_turn,
            retries=self.episode_retries,
        )

    def batch_of(self, trajectories: list[Trajectory], seconds: float) -> RolloutBatch:
        """A batch of episodes that were played in `seconds`."""
        drop = self.failed_episodes == "drop"
        trajectories, left_out = without_failed(trajectories) if drop else (trajectories, [])
        with meter.phase("environment"):
            for trajectory in trajectories:
                if trajectory.turns:
                    trajectory.metrics = measured(self.environment, trajectory)
        batch = collate(trajectories, seconds, left_out)
        batch.numbers = self.actors.take_numbers()
        return batch

    def play_until_different(self, tasks: Sequence[Task], others: Sequence[Task], seed: int) -> RolloutBatch:
        """A training rollout, in which groups of equal returns are replaced up to `replace_equal_groups` times.

        Args:
            tasks: The tasks of this rank.
            others: Tasks that can replace them.
            seed: Seed of the rollout.
        """
        batch = self.play(self.sampler, tasks, seed, self.num_generations)
        for attempt in range(1, self.replace_equal_groups + 1):
            equal = equal_groups(batch.rewards, batch.groups)
            groups = batch.groups[equal].unique().tolist()
            if not sum_over_ranks(len(groups), self.trainer.lightning_module.device):
                break
            generator = random.Random(f"replace {seed} {attempt}")
            enough = len(groups) <= len(others)
            chosen = generator.sample(others, len(groups)) if enough else generator.choices(others, k=len(groups))
            fresh = self.play(self.sampler, chosen, seed + attempt * _REPLACEMENT_SEED, self.num_generations)
            for trajectory in [*fresh.trajectories, *fresh.left_out]:
                trajectory.group = groups[trajectory.group]
            before = batch
            kept = [path for path, drop in zip(before.trajectories, equal.tolist(), strict=True) if not drop]
            replaced = [path for path, drop in zip(before.trajectories, equal.tolist(), strict=True) if drop]
            together = sorted([*kept, *fresh.trajectories], key=lambda trajectory: trajectory.group)
            batch = collate(together, before.seconds + fresh.seconds, [*before.left_out, *fresh.left_out])
            batch.numbers = {
                name: before.numbers.get(name, []) + fresh.numbers.get(name, [])
                for name in before.numbers | fresh.numbers
            }
            batch.replaced = [*before.replaced, *replaced]
        return batch
