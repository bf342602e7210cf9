"""Costs of each episode of an evaluation: tokens and response time.

An evaluation plays episodes in parallel, which says nothing about how long a user would wait for one response. So
response times are measured separately, one episode and one agent at a time.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import lightning as L
import torch

from collm.runtime.checks import COUNT_OR_ZERO, check_number
from collm.runtime.files import write_text
from collm.trajectory import Action, RolloutBatch, Trajectory

_TIMING_SEED = 2**41  # far from the seeds of training and evaluation


class MeasureEpisodes(L.Callback):
    """Writes return, metrics, tokens and response time of every episode of a validation to a JSON file.

    Of episodes that failed and are dropped, it writes the tasks and the number.

    The response time is that of one episode played alone with batch size 1: each agent's responses are timed
    separately. Of agents that respond at the same time the slowest counts; message rounds and turns add up. The time
    includes the model (prefill, decoding, detokenization), not the environment. The first episode is played twice and
    timed the second time, as a warm-up.

    Args:
        path: File to write.
        timed_episodes: Number of episodes played for the response time, cycling through the held-out tasks; 0 for
            none.
    """

    def __init__(self, path: str, timed_episodes: int = 0):
        self.path = path
        self.timed_episodes = check_number("MeasureEpisodes.timed_episodes", timed_episodes, COUNT_OR_ZERO)
        self._trajectories: list[Trajectory] = []
        self._dropped: list[Trajectory] = []

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: RolloutBatch, *args: Any
    ) -> None:
        self._trajectories.extend(batch.trajectories)
        self._dropped.extend(batch.left_out)

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        trajectories, self._trajectories = self._trajectories, []
        dropped, self._dropped = self._dropped, []
        timed = self.time_episodes(trainer, pl_module) if self.timed_episodes else []
        record = {
            "tasks": [trajectory.task.task_id for trajectory in (*trajectories, *dropped)],
            "dropped": len(dropped),
            "episodes": [episode_record(trajectory) for trajectory in trajectories],
            "seconds": [response_time(trajectory) for trajectory in timed],
            "timing": [timing(trajectory) for trajectory in timed if trajectory.turns],
            "joint_samples": pl_module.joint_samples,
        }
        write_text(self.path, json.dumps(record))

    def time_episodes(self, trainer: L.Trainer, pl_module: Any) -> list[Trajectory]:
        """Episodes that are played one at a time, with the time of every response."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        timed = []
        for index in range(-1, self.timed_episodes):  # the first episode is a warm-up
            number = max(0, index)
            task = data.eval_tasks[number % len(data.eval_tasks)]
            with data.ready_to_sample(data.eval_sampler) as actors:
                (trajectory,) = data.eval_sampler.rollout(
                    data.environment,
                    [task],
                    _Stopwatch(actors),
                    _TIMING_SEED + number,
                    pl_module.device,
                    greedy=data.eval_greedy,
                )
            if index >= 0:
                timed.append(trajectory)
        return timed


def episode_record(trajectory: Trajectory) -> dict[str, Any]:
    """Return, metrics, and what one episode cost.

    There are no counts of tokens without turns and where a server kept the tokens of its texts to itself, and no
    bytes where no server was asked.
    """
    written = [
        message.action
        for turn in trajectory.turns
        for agent_id in turn.actions
        for message in turn.written_by(agent_id)
    ]
    tokens = sum(len(action.token_ids) for action in written)
    num_answers = sum(len(turn.actions) for turn in trajectory.turns)
    counted = tokens_are_known(written)
    costs = {"cost": tokens / num_answers, "message_tokens": tokens / len(written)} if counted else {}
    sent = [action.wire_bytes for action in written if action.wire_bytes is not None]
    if sent:
        costs["wire_bytes"] = float(sum(sent))
    return {"return": trajectory.total_reward, **trajectory.metrics, **costs}


def response_time(trajectory: Trajectory) -> float:
    """Seconds from the first observation to the last action: the slowest agent of each round, summed over rounds."""
    total = 0.0
    for turn in trajectory.turns:
        rounds: dict[int, dict[str, float]] = {}
        for agent_id in turn.actions:
            for message in turn.written_by(agent_id):
                spent = rounds.setdefault(message.round, {})
                spent[agent_id] = spent.get(agent_id, 0.0) + message.action.seconds
        total += sum(max(spent.values()) for spent in rounds.values())
    return total


def timing(trajectory: Trajectory) -> dict[str, float]:
    """Seconds of a turn, the share of them in which an agent only waits, and tokens per second of the team."""
    seconds = response_time(trajectory)
    agents = trajectory.turns[0].actions
    written = [m.action for turn in trajectory.turns for agent_id in agents for m in turn.written_by(agent_id)]
    busy = sum(action.seconds for action in written)
    tokens = sum(len(action.token_ids) for action in written)
    return {
        "turn_seconds": seconds / len(trajectory.turns),
        "idle_share": 1 - busy / (len(agents) * seconds) if seconds else 0.0,
        **({"tokens_per_second": tokens / seconds if seconds else 0.0} if tokens_are_known(written) else {}),
    }


def tokens_are_known(written: Sequence[Action]) -> bool:
    """Whether all texts came with their tokens, which servers keep to themselves in a chat."""
    return bool(written) and all(action.prompt_ids or action.token_ids for action in written)


class _Stopwatch:
    """Actors that are asked one by one, and store the generation time in every action."""

    def __init__(self, actors: Any):
        self.actors = actors

    def __getattr__(self, name: str) -> Any:
        return getattr(self.actors, name)

    def sample(
        self, prompts: Mapping[str, Sequence[Sequence[int]]], generator: torch.Generator, greedy: bool
    ) -> dict[str, list[Action]]:
        timed = {}
        for agent_id, own in prompts.items():
            device = self.actors.policies[agent_id].device
            began = _now(device)
            actions = self.actors.sample({agent_id: own}, generator, greedy)[agent_id]
            seconds = _now(device) - began
            timed[agent_id] = [replace(action, seconds=seconds) for action in actions]
        return timed


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
