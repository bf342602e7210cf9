"""What an environment is: a Dec-POMDP over text.

It knows tasks, what each agent may see, what a joint action does and the team reward. It knows no tensors, no models
and no Lightning. An environment object is stateless between calls: everything an episode needs is in the state it
returns, so any number of episodes can be played side by side.

To add one: subclass `Environment` in a new file, fill `tasks`, `reset` and `step`, and name the class in a yaml file.
"""

from __future__ import annotations

import random
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from collm.errors import ConfigurationError
from collm.runtime.checks import Range
from collm.trajectory import Task, Trajectory

SPLITS = ("train", "eval")
AGENTS = Range(1, 1000, whole=True)
TURNS = Range(1, 1_000_000, whole=True)
TASKS = Range(1, 1_000_000, whole=True)


@dataclass(frozen=True)
class Step:
    """What a joint action led to.

    Args:
        state: Where the episode stands now.
        observations: What each agent is shown next, by agent id; empty when the episode is over.
        reward: Team reward of the turn.
        terms: The reward term by term; they sum to the reward before any option that delays it.
        terminated: True when the episode ends before its horizon.
        info: Plain data worth keeping in transcripts, such as rejected lines by agent id.
    """

    state: Any
    observations: dict[str, str]
    reward: float
    terms: dict[str, float] = field(default_factory=dict)
    terminated: bool = False
    info: dict[str, Any] = field(default_factory=dict)


class EpisodeFailure(Exception):
    """`reset` or `step` could not do its work, and neither a bug nor the agents are to blame: a sandbox broke, say.

    The turn is tried again in a fresh episode (`data.episode_retries`). An episode that fails for good is left out of
    the batch (`data.failed_episodes`). Failures are counted in `rollout/failed/<cause>`.

    Args:
        message: What happened, for transcripts.
        cause: Name under which it is counted: letters, digits, '_' and '-'.
    """

    def __init__(self, message: str, cause: str = "environment"):
        super().__init__(message)
        if not re.fullmatch(r"[A-Za-z0-9_-]+", cause):
            raise ValueError(f"the cause of an EpisodeFailure is {cause!r}; use letters, digits, '_' and '-'.")
        self.cause = cause


class Environment(ABC):
    """A cooperative text game: tasks, observations, transition and team reward.

    Attributes:
        agent_ids: Names of the agents, in a fixed order; every dict of the project is keyed by them.
        horizon: Largest number of turns of an episode.
        max_reward: Largest reward of one turn.
        min_reward: Smallest reward of one turn.
        reward_noise: Standard deviation of noise that is added to rewards and may take them out of that range.
    """

    agent_ids: tuple[str, ...]
    horizon: int
    max_reward: float
    min_reward: float
    reward_noise: float = 0.0

    @abstractmethod
    def tasks(self, split: str) -> Sequence[Task]:
        """The tasks of `split`, "train" or "eval"; the two never share a task."""

    @abstractmethod
    def reset(self, task: Task, rng: random.Random) -> tuple[Any, dict[str, str]]:
        """Begin an episode: its state and what each agent is shown first.

        `rng` is the only source of chance; trajectories of one group get equal generators. Raises `EpisodeFailure`
        where the episode cannot begin.
        """

    @abstractmethod
    def step(self, state: Any, joint_action: Mapping[str, str]) -> Step:
        """Apply one response per agent. Any text is a legal action; only a bug or `EpisodeFailure` raises."""

    def step_batch(
        self, states: Sequence[Any], joint_actions: Sequence[Mapping[str, str]]
    ) -> list[Step | EpisodeFailure]:
        """Apply one joint action to each of several episodes; a failure stands in the place of its episode's step.

        Override it where a reward takes time, to work on all of them at once.
        """
        outcomes: list[Step | EpisodeFailure] = []
        for state, joint_action in zip(states, joint_actions, strict=True):
            try:
                outcomes.append(self.step(state, joint_action))
            except EpisodeFailure as failure:
                outcomes.append(failure)
        return outcomes

    def state_features(self, state: Any) -> Mapping[str, float]:
        """The true state in numbers, for critics alone; the same names, in the same order, in every state.

        Critics know how many turns are left; everything else that says what is still to be earned belongs here. Agents
        never see it. Without an override a critic of state features is refused.
        """
        return {}

    def state_text(self, state: Any) -> str:
        """The true state in a few words, for critics alone; see `state_features`."""
        return ""

    def progress(self, state: Any) -> float | None:
        """Share of the best score that `state` has reached, told to critics that read histories; None if unknown."""
        return None

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of `state_features`; empty where it is not overridden."""
        if type(self).state_features is Environment.state_features:
            return ()
        state, _ = self.reset(self.tasks("train")[0], random.Random(0))
        return tuple(self.state_features(state))

    @property
    def has_state_text(self) -> bool:
        """Whether `state_text` is overridden."""
        return type(self).state_text is not Environment.state_text

    def metrics(self, trajectory: Trajectory) -> dict[str, float]:
        """Numbers about a finished episode beyond its return, logged as means under `rollout/` and `eval/`."""
        return {}

    def render(self, trajectory: Trajectory) -> np.ndarray | None:
        """A picture of how the episode ended, [height, width, 3] uint8, or None."""
        return None

    def right_answers(self, trajectory: Trajectory) -> list[dict[str, str]]:
        """For each turn the response of each agent whose probability `values` needs; for oracle critics."""
        raise ConfigurationError(f"{type(self).__name__} does not know what histories are worth; learn a critic.")

    def values(
        self, trajectories: Sequence[Trajectory], probabilities: Sequence[Sequence[Mapping[str, float]]]
    ) -> list[list[dict[str, float]]]:
        """Expected reward to go before each turn of each trajectory, of the joint history (`team`) and each local one.

        Args:
            trajectories: Finished episodes.
            probabilities: For each of them, turn and agent, that of the right answer given the agent's own history.
        """
        raise ConfigurationError(f"{type(self).__name__} does not know what histories are worth; learn a critic.")

    def demonstrate(self, state: Any, rng: random.Random) -> dict[str, str]:
        """A scripted joint action for `state`, for behaviour cloning."""
        raise ConfigurationError(f"{type(self).__name__} has no scripted demonstrations; choose another sampler.")


def check_tasks(name: str, train: Sequence[Task], evaluation: Sequence[Task]) -> None:
    """Refuse empty splits, repeated ids and tasks that are both trained on and held out."""
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
