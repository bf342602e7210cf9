"""Lightning hooks around the updates: check and log each rollout, evaluate, and stop a run that cannot go on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.nn.parallel import DistributedDataParallel

from collm.algorithms.agents import Agents
from collm.errors import ConfigurationError, TrainingError
from collm.metrics import BootstrapMean, episode_numbers, group_numbers, groups_of_one, merged, summarized
from collm.runtime.collectives import gather_objects, sum_over_ranks
from collm.runtime.files import write_text
from collm.trajectory import RolloutBatch, Trajectory, distinct_actions

MAX_EMPTY_ROLLOUTS = 3
"""A run stops after this many consecutive rollouts without a turn to learn from."""


class RolloutHooks(Agents):
    """Agents with Lightning's hooks around rollouts and evaluations.

    Args:
        kwargs: Arguments of `Agents`.
    """

    imitates = False  # whether it learns from scripts instead of what its policies sample

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self._evaluation: dict[str, list[float]] = {}
        self._rollout: Sequence[Trajectory] = ()
        self._updated: set[str] = set()  # learners whose optimizer made a step in this rollout
        self._empty_rollouts = 0  # consecutive, including the current one

    def setup(self, stage: str) -> None:
        """Refuse a sampler whose actions the algorithm cannot learn from; runs before any weights load."""
        sampler = self.trainer.datamodule.sampler  # type: ignore[attr-defined]
        if stage == "fit" and sampler.scripted != self.imitates:
            needed = "demonstrations.Demonstrations" if self.imitates else "parallel.Parallel"
            raise ConfigurationError(
                f"data.sampler is {type(sampler).__name__}, but {type(self).__name__} learns from "
                f"{'scripts' if self.imitates else 'what its policies sample'}; use collm.samplers.{needed}."
            )

    def stop(self, reason: str, trajectories: Sequence[Trajectory]) -> None:
        """Raise `TrainingError` on all ranks, after writing `trajectories` to offending_episodes.jsonl."""
        trajectories = list(chain.from_iterable(gather_objects(list(trajectories))))
        path = Path(self.trainer.log_dir or self.trainer.default_root_dir) / "offending_episodes.jsonl"
        if self.trainer.is_global_zero:
            write_text(path, "".join(json.dumps(trajectory.record()) + "\n" for trajectory in trajectories))
        raise TrainingError(f"training stopped: {reason}. The episodes are in {path}.")

    def on_train_batch_start(self, batch: RolloutBatch, batch_idx: int) -> None:
        wrapped = self.trainer.strategy.model
        if isinstance(wrapped, DistributedDataParallel):
            # `optimize` sums gradients once per step; Lightning turns this flag on again after every step
            wrapped.require_backward_grad_sync = False
        self._rollout = batch.trajectories
        finite = batch.rewards.isfinite().all(1).tolist()
        offending = next((path for path, ok in zip(batch.trajectories, finite, strict=True) if not ok), None)
        task_ids = [task_id for task_id in gather_objects(offending and offending.task.task_id) if task_id is not None]
        if task_ids:
            self.stop(f"a reward of task {task_ids[0]!r} is not finite", [offending] if offending else [])
        self.check_policy_versions(batch)
        self.num_rollouts += 1
        played = torch.tensor([batch.joint_samples, int(batch.turn_mask.sum())])
        joint_samples, num_turns = map(int, sum_over_ranks(played, self.device))
        self.joint_samples += joint_samples
        self.weigh(batch)
        self.log_rollout(batch)
        self._empty_rollouts = 0 if num_turns else self._empty_rollouts + 1
        if not num_turns:
            self.skip_update(batch)

    def weigh(self, batch: RolloutBatch) -> None:
        """Scale the weights of trajectories to a mean of 1 over all ranks, so that all rollout trees weigh the same."""
        weights = torch.tensor([trajectory.weight for trajectory in batch.trajectories], device=self.device)
        num_rows, total = sum_over_ranks(torch.stack([torch.ones_like(weights).sum(), weights.sum()]), self.device)
        batch.weights = weights * num_rows / total

    def check_policy_versions(self, batch: RolloutBatch) -> None:
        """Stop if actions were sampled by older policies than `data.max_staleness` allows, by default none."""
        local = [action.policy_version for action in distinct_actions(batch.trajectories)]
        versions = [version for own in gather_objects(local) for version in own if version is not None]
        if any(not 0 <= self.num_rollouts - version <= self.max_staleness for version in versions):
            self.stop(
                f"actions were written by the policies after {', '.join(map(str, sorted(set(versions))))} updates, but "
                f"{self.num_rollouts} were made: the update is not on-policy; sample after each update",
                batch.trajectories,
            )
        if versions:
            mean = sum(versions) / len(versions)
            self.log("rollout/policy_version", mean)
            if self.max_staleness:
                self.log("rollout/staleness", self.num_rollouts - mean)

    def skip_update(self, batch: RolloutBatch) -> None:
        """Skip the update of a rollout without a turn to learn from on any rank; stop after several in a row."""
        episodes = [*batch.trajectories, *batch.left_out]
        told = [(one.error is None, [cause for cause, _ in one.failures]) for one in episodes]
        told = list(chain.from_iterable(gather_objects(told)))
        idle = sum(finished for finished, _ in told)
        causes = Counter(chain.from_iterable(causes for _, causes in told))
        counts = ", ".join(f"{cause}: {count}" for cause, count in sorted(causes.items()))
        message = f"no turn was played, though {idle} of {len(told)} episodes did not fail"
        message = (message if idle else "every episode failed") + f" ({counts})" * bool(counts)
        if self._empty_rollouts == MAX_EMPTY_ROLLOUTS:
            self.stop(f"{message}, as in the {MAX_EMPTY_ROLLOUTS - 1} rollouts before", episodes)
        rank_zero_warn(f"{message}: nothing is learned from this rollout.")

    def on_train_batch_end(self, outputs: Any, batch: RolloutBatch, batch_idx: int) -> None:
        for name, optimizer in self.by_learner(self.optimizers()).items():
            self.log(f"optim/learning_rate/{name}", float(optimizer.param_groups[0]["lr"]))
        # schedules that step on a metric are refused at construction
        for name, schedule in self.by_learner(self.lr_schedulers() or []).items():
            if name in self._updated:  # during `critic_warmup` those of policies wait
                schedule.step()
        self._updated.clear()
        self._rollout = ()

    def by_learner(self, given: Any) -> dict[str, Any]:
        """Optimizers or schedules by the name of the learner, from Lightning's list, or from the only one itself."""
        listed = given if isinstance(given, list) else [given]
        return dict(zip(self.learners, listed, strict=True)) if listed else {}

    def log_rollout(self, batch: RolloutBatch) -> None:
        """Log statistics of the rollout under `rollout/`, with the number of joint samples as `step`, the x axis."""
        self.log("step", float(self.joint_samples))
        self.log("rollout/joint_samples", float(self.joint_samples))
        for name, value in summarized(merged(gather_objects(episode_numbers(batch)))).items():
            self.log(f"rollout/{name}", value, prog_bar=name == "return", batch_size=len(batch.trajectories))
        self.log("rollout/groups_of_one", float(sum_over_ranks(groups_of_one(batch), self.device)))
        equal, groups, replaced = sum_over_ranks(group_numbers(batch), self.device)
        if groups:
            self.log("rollout/equal_groups", equal / groups)
            self.log("rollout/replaced_joint_samples", replaced)
        self.log("time/rollout", batch.seconds)

    def validation_step(self, batch: RolloutBatch, batch_idx: int) -> None:
        self._evaluation = merged([self._evaluation, episode_numbers(batch)])

    def on_validation_epoch_end(self) -> None:
        """Log means over held-out episodes under `eval/`, and a 95% bootstrap interval of the return."""
        self.log("step", float(self.joint_samples))
        numbers, self._evaluation = merged(gather_objects(self._evaluation)), {}
        for name, value in summarized(numbers).items():
            self.log(f"eval/{name}", value, prog_bar=name == "return")
        if numbers.get("return"):
            metric = BootstrapMean(sync_on_compute=False)
            metric.update(torch.tensor(numbers["return"]))
            result = metric.compute()
            self.log("eval/return_low", result["low"])
            self.log("eval/return_high", result["high"])

    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def predict_step(self, batch: RolloutBatch, batch_idx: int) -> list[dict[str, Any]]:
        return [trajectory.record() for trajectory in (*batch.trajectories, *batch.left_out)]
