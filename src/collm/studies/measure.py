"""What an evaluation costs, episode by episode: tokens, and the time an answer takes.

Episodes are played side by side, so their own time says nothing about how long a user would wait for one. It is
measured in a pass of its own, one episode at a time, each agent asked alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import lightning as L
import torch

from collm.runtime.checks import COUNT_OR_ZERO, check_number
from collm.runtime.files import write_text
from collm.trajectory import Action, RolloutBatch, Trajectory

_TIMING_SEED = 2**41  # far from training and evaluation


class MeasureEpisodes(L.Callback):
    """Writes return, metrics, tokens and response time of every episode of a validation to a JSON file.

    Response time is that of one episode played alone: each agent's answers are generated with batch size 1 and timed
    one after another; of agents that answer at once the slowest counts, and rounds of messages and turns add up. Only
    the model's work is timed (prefill, decoding, detokenization), not the environment. The first episode is played
    twice and timed the second time, so that nothing is counted that happens only once.

    Args:
        path: File to write.
        timed_episodes: Episodes that are played for the response time, of the held-out tasks in turn; 0 for none.
    """

    def __init__(self, path: str, timed_episodes: int = 0):
        self.path = path
        self.timed_episodes = check_number("MeasureEpisodes.timed_episodes", timed_episodes, COUNT_OR_ZERO)
        self._trajectories: list[Trajectory] = []

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: RolloutBatch, *args: Any
    ) -> None:
        self._trajectories.extend(batch.trajectories)

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        trajectories, self._trajectories = self._trajectories, []
        record = {
            "tasks": [trajectory.task.task_id for trajectory in trajectories],
            "episodes": [episode_record(trajectory) for trajectory in trajectories],
            "seconds": self.time_episodes(trainer, pl_module) if self.timed_episodes else [],
            "joint_samples": pl_module.joint_samples,
        }
        write_text(self.path, json.dumps(record))

    def time_episodes(self, trainer: L.Trainer, pl_module: Any) -> list[float]:
        """Response times of episodes that are played one at a time."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        policies = {agent_id: _Stopwatch(policy) for agent_id, policy in pl_module.policies.items()}
        seconds = []
        for index in range(-1, self.timed_episodes):  # the first one warms up
            number = max(0, index)
            task = data.eval_tasks[number % len(data.eval_tasks)]
            with pl_module.acting():
                (trajectory,) = data.eval_sampler.rollout(
                    data.environment, [task], policies, _TIMING_SEED + number, pl_module.device, greedy=data.eval_greedy
                )
            if index >= 0:
                seconds.append(response_time(trajectory))
        return seconds


def episode_record(trajectory: Trajectory) -> dict[str, Any]:
    """Return, metrics and tokens of one episode; without turns only the return."""
    written = [
        message.action
        for turn in trajectory.turns
        for agent_id in turn.actions
        for message in turn.written_by(agent_id)
    ]
    tokens = sum(len(action.token_ids) for action in written)
    num_answers = sum(len(turn.actions) for turn in trajectory.turns)
    costs = {"cost": tokens / num_answers, "message_tokens": tokens / len(written)} if written else {}
    return {"return": trajectory.total_reward, **trajectory.metrics, **costs}


def response_time(trajectory: Trajectory) -> float:
    """Seconds from the first observation to the last action: the slowest agent of each round, rounds in sequence."""
    total = 0.0
    for turn in trajectory.turns:
        rounds: dict[int, dict[str, float]] = {}
        for agent_id in turn.actions:
            for message in turn.written_by(agent_id):
                spent = rounds.setdefault(message.round, {})
                spent[agent_id] = spent.get(agent_id, 0.0) + message.action.seconds
        total += sum(max(spent.values()) for spent in rounds.values())
    return total


class _Stopwatch:
    """A policy that notes on every action how long it took."""

    def __init__(self, policy: Any):
        self.policy = policy

    def __getattr__(self, name: str) -> Any:
        return getattr(self.policy, name)

    @property
    def decoder(self) -> int:
        """Its own: agents are timed one by one."""
        return id(self)

    @property
    def device(self) -> None:
        """Not said, so that none are asked at the same time."""
        return None

    def sample(self, prompts: Sequence[Sequence[int]], generator: torch.Generator, greedy: bool) -> list[Action]:
        began = _now(self.policy.device)
        actions = self.policy.sample(prompts, generator, greedy)
        seconds = _now(self.policy.device) - began
        return [replace(action, seconds=seconds) for action in actions]


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
