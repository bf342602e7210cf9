"""The ceiling: how much of the return can be known before a turn is played, and how much of that a critic knows.

Policies are held still. Episodes are branched before every turn, and an analysis of variance of the rewards to go tells
chance that is still to come (between continuations of one history) from what the history, or the task alone, decides.
No critic explains more than that; its explained variance on the same episodes is its share of it.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import lightning as L
import numpy as np
import torch

from collm.environments.base import Environment
from collm.errors import ConfigurationError
from collm.runtime.checks import LARGEST_COUNT, Count, Range, checked
from collm.samplers.base import Actors, Episode, Sampler, act_all
from collm.studies.record_gradients import take_policies
from collm.studies.variance import as_table, ceiling
from collm.trajectory import Task, Trajectory, collate

Two = Annotated[int, Range(2, LARGEST_COUNT, whole=True)]  # an analysis of variance needs at least as many
_SEED = 2**42  # far from training and evaluation


class MeasureCeiling(L.Callback):
    """Lets critics learn for some rollouts while policies are held still, then measures the ceiling, and ends the run.

    Writes `ceiling.json` and `ceiling.md`, and prints the latter.

    Args:
        out: Folder to write to.
        policies: Checkpoint of a run with the same agents whose policies are taken; null for those the run begins with.
        tasks: Training tasks that are played; at most as many as there are.
        episodes: Episodes of each task, at least 2.
        continuations: Courses of play from every history, the episode's own included, at least 2.
        fit_rollouts: Rollouts in which critics learn before, if there are any.
        batch_size: Episodes played side by side.
    """

    @checked
    def __init__(
        self,
        out: str,
        policies: str | None = None,
        tasks: Two = 64,
        episodes: Two = 4,
        continuations: Two = 2,
        fit_rollouts: Count = 8,
        batch_size: Count = 256,
    ):
        self.out = Path(out)
        self.policies = policies
        self.tasks = tasks
        self.episodes = episodes
        self.continuations = continuations
        self.fit_rollouts = fit_rollouts
        self.batch_size = batch_size
        self._rollouts = 0

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        if trainer.world_size > 1:
            raise ConfigurationError("the ceiling is measured by one process; set trainer.devices to 1.")
        if getattr(pl_module, "critics_share_weights", False):
            raise ConfigurationError(
                f"{type(pl_module).__name__} has its values on the policies' weights, so they cannot be learned while "
                "the policies are held still; use CoLLMDC."
            )
        if self.policies is not None:
            take_policies(pl_module, self.policies)
        pl_module.frozen |= set(pl_module.policy_learners)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self._rollouts += 1
        if self._rollouts < self.fit_rollouts:
            return
        trainer.should_stop = True
        data = trainer.datamodule
        tasks = data.train_tasks[: self.tasks]
        if len(tasks) < 2:
            raise ConfigurationError("there is one task to train on; an analysis of variance needs at least 2.")
        with data.ready_to_sample(data.sampler) as actors:
            played, returns = branch(
                data.environment,
                data.sampler,
                actors,
                tasks,
                (self.episodes, self.continuations),
                pl_module.discount,
                _SEED + data.seed,
                pl_module.device,
                self.batch_size,
            )
        own = returns[..., 0]
        size = max(2, data.tasks_per_rollout * data.num_generations // self.episodes) * self.episodes
        values = {
            name: critic_values(critic, played, size, pl_module.device).reshape(own.shape)
            for name, critic in getattr(pl_module, "critics", {}).items()
        }
        report = ceiling(returns, values)
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "ceiling.json").write_text(json.dumps(report, indent=1))
        (self.out / "ceiling.md").write_text(as_table(report))
        print(as_table(report))


def branch(
    environment: Environment,
    sampler: Sampler,
    actors: Actors,
    tasks: Sequence[Task],
    sizes: tuple[int, int],
    discount: float,
    seed: int,
    device: torch.device | str,
    batch_size: int,
) -> tuple[list[Trajectory], np.ndarray]:
    """Episodes of every task, and further continuations of each before every turn.

    Args:
        environment: The game.
        sampler: How joint actions are formed.
        actors: The agents.
        tasks: What is played, n tasks; the E episodes of a task share the environment's chance.
        sizes: E episodes of each, R continuations of every history.
        discount: Discount from one turn to the next.
        seed: Fixes everything that is drawn.
        device: Where chance is drawn.
        batch_size: Episodes played side by side.

    Returns:
        The episodes, those of one task next to each other, and rewards to go, those of the episodes themselves first
        and NaN at turns that an episode did not reach, [n, E, T, R].
    """
    num_episodes, num_continuations = sizes
    generator = torch.Generator(device).manual_seed(seed)
    first = [
        Episode(environment, task, group, seed * 1_000_003 + group)
        for group, task in enumerate(tasks)
        for _ in range(num_episodes)
    ]
    others: list[tuple[int, int, int, Episode]] = []  # of which episode, from which turn on, number
    for turn in range(environment.horizon):
        for index, episode in enumerate(first):
            if not episode.done:
                others += [(index, turn, number, fork(episode)) for number in range(1, num_continuations)]
        active = [episode for episode in [*first, *(other for *_, other in others)] if not episode.done]
        for start in range(0, len(active), batch_size):
            part = active[start : start + batch_size]
            act_all(part, sampler.joint_actions(part, actors, generator, greedy=False))
    returns = np.full((len(first), environment.horizon, num_continuations), np.nan)
    for index, episode in enumerate(first):
        for turn in range(len(episode.trajectory.turns)):
            returns[index, turn, 0] = reward_to_go(episode.trajectory, turn, discount)
    for index, turn, number, other in others:
        if len(other.trajectory.turns) > turn and len(first[index].trajectory.turns) > turn:  # unless the game failed
            returns[index, turn, number] = reward_to_go(other.trajectory, turn, discount)
    returns[np.isnan(returns).any(-1)] = np.nan
    return [episode.trajectory for episode in first], returns.reshape(len(tasks), num_episodes, *returns.shape[1:])


def fork(episode: Episode) -> Episode:
    """A copy that goes on from where `episode` stands, on its own."""
    child = copy.copy(episode)
    child.state, child.rng, child.messages = copy.deepcopy((episode.state, episode.rng, episode.messages))
    child.trajectory = copy.copy(episode.trajectory)
    child.trajectory.turns = list(episode.trajectory.turns)
    return child


def reward_to_go(trajectory: Trajectory, turn: int, discount: float) -> float:
    return sum(discount**step * played.reward for step, played in enumerate(trajectory.turns[turn:]))


def critic_values(critic: Any, played: Sequence[Trajectory], size: int, device: torch.device) -> np.ndarray:
    """Values of the episodes' turns, asked for as many episodes at a time as a rollout has, [B, T]."""
    horizon = played[0].horizon
    values = np.full((len(played), horizon), np.nan)
    for start in range(0, len(played), size):
        part = collate(played[start : start + size]).to(device)
        told = critic.values(part)
        told = told[..., 0] if told.dim() == 3 else told  # V of a critic of several kinds of values
        values[start : start + size, : told.shape[1]] = told.double().cpu().numpy()
    return values
