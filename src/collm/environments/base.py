"""The interface of environments: a Dec-POMDP over text.

An environment defines tasks, observations, transitions and the team reward. It uses no tensors, no models and no
Lightning. An environment object is stateless between calls: the state that it returns holds everything about an
episode, so any number of episodes can be played in parallel.

To add one, subclass `Environment` in a new file, set `splits`, implement `reset` and `step`, and name the class in a
yaml file.
"""

from __future__ import annotations

import random
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any

import numpy as np

from collm.errors import ConfigurationError
from collm.runtime.checks import Range, check_choice
from collm.trajectory import Task, Trajectory

SPLITS = ("train", "eval")
MAX_PICTURE = 200_000
"""Largest number of characters of a picture of a turn."""
AGENTS = Range(1, 1000, whole=True)
TURNS = Range(1, 1_000_000, whole=True)
Agents = Annotated[int, AGENTS]
Turns = Annotated[int, TURNS]
Tasks = Annotated[int, Range(1, 1_000_000, whole=True)]


@dataclass(frozen=True)
class Step:
    """Result of a joint action.

    Args:
        state: The next state of the episode.
        observations: The next observation of each agent, by agent id; empty after the last turn.
        reward: Team reward of the turn.
        terms: Terms of the reward, by name. Their sum is the reward of the turn if rewards are dense.
        terminated: True if the episode ends before its horizon.
        info: Plain data for transcripts, such as rejected lines by agent id.
    """

    state: Any
    observations: dict[str, str]
    reward: float
    terms: dict[str, float] = field(default_factory=dict)
    terminated: bool = False
    info: dict[str, Any] = field(default_factory=dict)


class EpisodeFailure(Exception):
    """`reset` or `step` failed for a reason outside the program and the agents, such as a broken sandbox.

    The turn is repeated in a new episode (`data.episode_retries`). An episode that still fails is left out of the batch
    (`data.failed_episodes`). Failures are counted in `rollout/failed/<cause>`.

    Args:
        message: Description of the failure, for transcripts.
        cause: Name of the kind of failure in metrics: letters, digits, '_' and '-'.
    """

    def __init__(self, message: str, cause: str = "environment"):
        super().__init__(message)
        if not re.fullmatch(r"[A-Za-z0-9_-]+", cause):
            raise ValueError(f"the cause of an EpisodeFailure is {cause!r}; use letters, digits, '_' and '-'.")
        self.cause = cause


class Environment(ABC):
    """A cooperative text game: tasks, observations, transition and team reward.

    Attributes:
        agent_ids: Names of the agents, in a fixed order; dicts by agent use them as keys.
        horizon: Largest number of turns of an episode.
        max_reward: Largest reward of one turn.
        min_reward: Smallest reward of one turn.
        reward_noise: Standard deviation of noise in rewards, which can exceed `min_reward` and `max_reward`.
        splits: The tasks under `train` and `eval`, unless `tasks` is overridden.
    """

    agent_ids: tuple[str, ...]
    horizon: int
    max_reward: float
    min_reward: float
    reward_noise: float = 0.0
    splits: Mapping[str, Sequence[Task]] = MappingProxyType({})

    def tasks(self, split: str) -> Sequence[Task]:
        """The tasks of `split`, "train" or "eval"; the two never share a task."""
        check_choice(f"{type(self).__name__}: split", split, SPLITS)
        return self.splits.get(split, ())

    @abstractmethod
    def reset(self, task: Task, rng: random.Random) -> tuple[Any, dict[str, str]]:
        """Begin an episode; returns its state and the first observation of each agent.

        All randomness must come from `rng`; trajectories of one group get generators with the same seed. Raises
        `EpisodeFailure` if the episode cannot begin.
        """

    @abstractmethod
    def step(self, state: Any, joint_action: Mapping[str, str]) -> Step:
        """Apply one response per agent. Any text is a legal action; only a bug or `EpisodeFailure` raises."""

    def step_batch(
        self, states: Sequence[Any], joint_actions: Sequence[Mapping[str, str]]
    ) -> list[Step | EpisodeFailure]:
        """Apply one joint action to each of several episodes; returns a `Step` or an `EpisodeFailure` for each.

        A `BatchEnvironment` computes slow rewards in parallel here.
        """
        outcomes: list[Step | EpisodeFailure] = []
        for state, joint_action in zip(states, joint_actions, strict=True):
            try:
                outcomes.append(self.step(state, joint_action))
            except EpisodeFailure as failure:
                outcomes.append(failure)
        return outcomes

    def state_features(self, state: Any) -> Mapping[str, float]:
        """Numeric features of the state, for critics only; every state has the same names in the same order.

        They should predict the future reward, given the number of turns left, which critics have as an input anyway.
        Agents never see them. A critic on state features needs an environment that overrides this method.
        """
        return {}

    def state_text(self, state: Any) -> str:
        """A short text that describes the state, for critics only; see `state_features`."""
        return ""

    def progress(self, state: Any) -> float | None:
        """Share of the best score reached in `state`, part of the input of language-model critics; None if unknown."""
        return None

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of `state_features`; empty if it is not overridden."""
        if type(self).state_features is Environment.state_features:
            return ()
        state, _ = self.reset(next(iter(self.tasks("train"))), random.Random(0))
        return tuple(self.state_features(state))

    @property
    def has_state_text(self) -> bool:
        """Whether `state_text` is overridden."""
        return type(self).state_text is not Environment.state_text

    def metrics(self, trajectory: Trajectory) -> dict[str, float]:
        """Metrics of a finished episode besides its return; means are logged under `rollout/` and `eval/`."""
        return {}

    def render(self, trajectory: Trajectory) -> np.ndarray | None:
        """An image of the end of the episode, [height, width, 3] uint8, or None."""
        return None

    def render_turn(self, state: Any) -> str | None:
        """A picture of the state as SVG of at most `MAX_PICTURE` characters, or None; `state` is the one after a turn.

        The replay page shows it for every turn of evaluations, as an image in which nothing is executed or loaded.
        Escape what agents wrote with `html.escape`.
        """
        return None

    def right_answers(self, trajectory: Trajectory) -> list[dict[str, str]]:
        """The optimal response of each agent at each turn, whose probability `values` needs; for oracle critics."""
        raise ConfigurationError(f"{type(self).__name__} does not know what histories are worth; learn a critic.")

    def values(
        self, trajectories: Sequence[Trajectory], probabilities: Sequence[Sequence[Mapping[str, float]]]
    ) -> list[list[dict[str, float]]]:
        """Expected reward to go before each turn, given the joint history (`team`) and each local one (by agent id).

        Args:
            trajectories: Finished episodes.
            probabilities: For each trajectory, turn and agent, the probability of the optimal response under the
                policy, given the local history of the agent.
        """
        raise ConfigurationError(f"{type(self).__name__} does not know what histories are worth; learn a critic.")

    def demonstrate(self, state: Any, rng: random.Random) -> dict[str, str]:
        """A scripted joint action for `state`, for behaviour cloning."""
        raise ConfigurationError(f"{type(self).__name__} has no scripted demonstrations; choose another sampler.")


class BatchEnvironment(Environment):
    """An environment that computes the rewards of many episodes together: it implements `step_batch`, not `step`."""

    def step(self, state: Any, joint_action: Mapping[str, str]) -> Step:
        """Apply one joint action; see `step_batch`."""
        (outcome,) = self.step_batch([state], [joint_action])
        if isinstance(outcome, EpisodeFailure):
            raise outcome
        return outcome

    @abstractmethod
    def step_batch(
        self, states: Sequence[Any], joint_actions: Sequence[Mapping[str, str]]
    ) -> list[Step | EpisodeFailure]:
        """Apply one joint action to each of several episodes; returns a `Step` or an `EpisodeFailure` for each."""


def check_tasks(name: str, train: Sequence[Task], evaluation: Sequence[Task]) -> None:
    """Raise `ConfigurationError` for empty splits, repeated ids and tasks that are in both splits."""
    for split, tasks in zip(SPLITS, (train, evaluation), strict=True):
        if not tasks:
            raise ConfigurationError(f"{name}: the {split} split has no tasks; give it at least one.")
        ids = [task.task_id for task in tasks]
        if len(set(ids)) != len(ids):
            repeated = next(task_id for task_id in ids if ids.count(task_id) > 1)
            raise ConfigurationError(f"{name}: task {repeated!r} appears more than once in the {split} split.")
    shared = sorted({task.task_id for task in train} & {task.task_id for task in evaluation})
    if shared:
        raise ConfigurationError(
            f"{name}: held-out tasks must not be trained on, but {shared[:5]} are in both splits; remove them from one."
        )
