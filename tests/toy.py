"""A game small enough that a run through the command line takes a second, and samplers that write what a test needs."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch

from collm.environments.base import Environment, EpisodeFailure, Step
from collm.packing import TokenSequence, pad_sequences
from collm.samplers.base import Actors, Episode, Sampler
from collm.trajectory import Action, Task, Trajectory

REPOSITORY = Path(__file__).parents[1]


class Toy(Environment):
    """Every agent should write a digit; the reward is the share of agents that do.

    Args:
        num_agents: Agents, named a1, a2, ...
        horizon: Turns of an episode.
        num_tasks: Tasks to train on.
        num_eval: Held-out tasks.
        first: What stands in front of the task's number in the first observation.
        later: What stands in front of the reward in later observations.
        bad_reward: Reward in place of the share: `nan` or `inf`.
        fail_turn: Turn, from 0, in which episodes fail.
        fail_every: Which episodes do: those of every `fail_every`th task.
        stop_at: Reward that ends the episode.
    """

    def __init__(
        self,
        num_agents: int = 2,
        horizon: int = 2,
        num_tasks: int = 4,
        num_eval: int = 2,
        first: str = "task",
        later: str = "reward",
        bad_reward: str | None = None,
        fail_turn: int | None = None,
        fail_every: int = 2,
        stop_at: float | None = None,
    ):
        self.agent_ids = tuple(f"a{index + 1}" for index in range(num_agents))
        self.horizon = horizon
        self.min_reward, self.max_reward = 0.0, 1.0
        self.sizes = {"train": num_tasks, "eval": num_eval}
        self.first = first
        self.later = later
        self.bad_reward = bad_reward
        self.fail_turn = fail_turn
        self.fail_every = fail_every
        self.stop_at = stop_at

    def tasks(self, split: str) -> Sequence[Task]:
        return [Task(f"{split}_{index}", {"index": index}) for index in range(self.sizes[split])]

    def reset(self, task: Task, rng: random.Random) -> tuple[tuple[Task, int], dict[str, str]]:
        return (task, 0), {agent_id: f"{self.first} {task.data['index']} {agent_id}" for agent_id in self.agent_ids}

    def step(self, state: tuple[Task, int], joint_action: Mapping[str, str]) -> Step:
        task, turn = state
        if self.fail_turn == turn and task.data["index"] % self.fail_every == 0:
            raise EpisodeFailure("the toy broke")
        share = sum(any(c in "0123456789" for c in text) for text in joint_action.values()) / len(self.agent_ids)
        reward = float(self.bad_reward) if self.bad_reward else share
        observations = {agent_id: f"{self.later} {share:.1f}" for agent_id in self.agent_ids}
        terminated = self.stop_at is not None and share >= self.stop_at
        return Step(
            (task, turn + 1), observations, reward, {"digits": reward}, terminated, {"lines": len(joint_action)}
        )

    def metrics(self, trajectory: Trajectory) -> dict[str, float]:
        return {"last": trajectory.turns[-1].reward}

    def render(self, trajectory: Trajectory) -> np.ndarray:
        return np.full((8, 8, 3), 200, dtype=np.uint8)


class TellToStop(L.Callback):
    """The last process of a run is told to stop in the middle of the second epoch."""

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        last = trainer.global_rank == trainer.world_size - 1
        if (trainer.current_epoch, args[-1]) == (1, 1) and last:
            os.kill(os.getpid(), signal.SIGTERM)


class Perish(L.Callback):
    """The last process of a run is killed at the beginning of the second epoch and leaves the time it was."""

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.current_epoch == 1 and trainer.global_rank == trainer.world_size - 1:
            Path("killed").write_text(str(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)


class Scripted(Sampler):
    """Every agent writes `text`, or nothing at all if it is None, whatever its policy thinks."""

    def __init__(self, text: str | None = None, times: int = 1):
        self.text = None if text is None else text * times

    def joint_actions(
        self, episodes: Sequence[Episode], actors: Actors, generator: torch.Generator, greedy: bool
    ) -> list[dict[str, Action]]:
        return [
            {
                agent_id: actors.encode_action(
                    agent_id, self.text or "", actors.prompt(agent_id, *episode.history(agent_id))
                )
                for agent_id in actors.policies
            }
            for episode in episodes
        ]


def toy_config(tiny_folder: str) -> dict[str, Any]:
    """Two agents that play the toy game for two updates."""
    return {
        "model": {
            "class_path": "collm.algorithms.collm_cc.CoLLMCC",
            "init_args": {
                "policy": {"path": tiny_folder, "learning_rate": 1e-3, "max_new_tokens": 4},
                "critic": {
                    "class_path": "collm.critics.language_model.LanguageModelCritic",
                    "init_args": {"model": {"path": tiny_folder, "learning_rate": 1e-3}},
                },
            },
        },
        "data": {
            "environment": {"class_path": "toy.Toy"},
            "tasks_per_rollout": 2,
            "rollouts_per_epoch": 1,
            "eval_episodes_per_task": 1,
        },
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "enable_model_summary": False},
    }


class Replayed(Sampler):
    """What an agent writes follows from the task and its place in the group, whatever is drawn and wherever it runs."""

    def joint_actions(
        self, episodes: Sequence[Episode], actors: Actors, generator: torch.Generator, greedy: bool
    ) -> list[dict[str, Action]]:
        numbers = []
        numbers_in_group: dict[int, int] = {}
        for episode in episodes:
            group = episode.trajectory.group
            place = numbers_in_group[group] = numbers_in_group.get(group, -1) + 1
            numbers.append(episode.trajectory.task.data["index"] + place + len(episode.trajectory.turns))
        answers = {}
        for index, agent_id in enumerate(actors.policies):
            prompts = [actors.prompt(agent_id, *episode.history(agent_id)) for episode in episodes]
            texts = [("7", "no", "x")[(number + index) % 3] for number in numbers]
            answers[agent_id] = self.actions(actors.policies[agent_id], prompts, texts)
        return [{agent_id: answers[agent_id][index] for agent_id in answers} for index in range(len(episodes))]

    @staticmethod
    def actions(policy: Any, prompts: Sequence[Sequence[int]], texts: Sequence[str]) -> list[Action]:
        """Responses with the log-probabilities they have under the policy now, as if they had been sampled."""
        actions = [policy.encode_action(text, prompt) for text, prompt in zip(texts, prompts, strict=True)]
        sequences = [
            TokenSequence(row, [*prompt, *action.token_ids], [-1] * len(prompt) + [0] * len(action.token_ids))
            for row, (prompt, action) in enumerate(zip(prompts, actions, strict=True))
        ]
        with torch.no_grad():
            log_probs, _ = policy.log_probs(pad_sequences(sequences, 0, policy.device))
        return [
            replace(action, log_probs=row[len(prompt) : len(prompt) + len(action.token_ids)])
            for action, prompt, row in zip(actions, prompts, log_probs.tolist(), strict=True)
        ]
