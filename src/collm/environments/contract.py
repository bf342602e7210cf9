"""Checks of an environment: of its attributes at construction, and of everything its methods return."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np

from collm.environments.base import AGENTS, MAX_PICTURE, TURNS, Environment, EpisodeFailure, Step
from collm.errors import ConfigurationError
from collm.runtime.checks import FINITE, check_number, check_utf8, shown
from collm.trajectory import Task, Trajectory

LOGGED = (
    *("return", "return_low", "return_high", "turns", "failed", "joint_samples", "replaced_joint_samples"),
    *("groups_of_one", "equal_groups", "policy_version", "staleness", "padding_share", "final_states"),
)
"""Names that a run logs itself under `rollout/` and `eval/`."""
LOGGED_KINDS = ("failed/", "absent/", "retries/", "latency/", "action_tokens/", "truncated/")
"""What such names of agents and causes begin with."""
_MOST_RESPONSES = 1_000_000  # of one rollout: each takes hundreds of tokens of generation and kilobytes of memory


def check_environment(environment: Environment) -> None:
    """Raise `ConfigurationError` if attributes are missing, of a wrong type or inconsistent."""
    name = type(environment).__name__
    for attribute in ("agent_ids", "horizon", "min_reward", "max_reward"):
        if not hasattr(environment, attribute):
            raise ConfigurationError(f"{name} has no attribute {attribute!r}; set it in the class or its constructor.")
    agent_ids = environment.agent_ids
    if (
        isinstance(agent_ids, str)
        or not isinstance(agent_ids, Sequence)
        or not agent_ids
        or not all(isinstance(agent_id, str) for agent_id in agent_ids)
    ):
        raise ConfigurationError(f"{name}.agent_ids is {shown(agent_ids)}; it must be a tuple of names (str).")
    check_number(f"{name}: the number of agents", len(agent_ids), AGENTS)
    check_number(f"{name}.horizon", environment.horizon, TURNS)
    low = check_number(f"{name}.min_reward", environment.min_reward, FINITE)
    high = check_number(f"{name}.max_reward", environment.max_reward, FINITE)
    if low > high:
        raise ConfigurationError(f"{name}.min_reward is {low} and {name}.max_reward is {high}; swap them.")


def tasks_of(environment: Environment, split: str) -> list[Task]:
    """The tasks of a split, checked."""
    tasks = environment.tasks(split)
    if not isinstance(tasks, Iterable):
        raise ConfigurationError(
            f"{type(environment).__name__}.tasks({split!r}) returned {shown(tasks)}; return a list of Task."
        )
    tasks = list(tasks)
    for task in tasks:
        if not isinstance(task, Task) or not isinstance(task.task_id, str):
            raise ConfigurationError(
                f"{type(environment).__name__}.tasks({split!r}) holds {shown(task)}; each must be a Task whose task_id "
                "is a str."
            )
        check_utf8(f"the id of task {task.task_id!a}", task.task_id)
    return tasks


def begun(environment: Environment, task: Task, rng: random.Random) -> tuple[Any, dict[str, str]]:
    """The result of `environment.reset`, checked: the state and the first observations."""
    outcome = environment.reset(task, rng)
    if not isinstance(outcome, tuple) or len(outcome) != 2:
        raise ConfigurationError(
            f"{type(environment).__name__}.reset returned {shown(outcome)} for task {task.task_id!r}; return the state "
            "and the observations, in this order."
        )
    check_observations(environment, outcome[1])
    return outcome


def stepped(
    environment: Environment, tasks: Sequence[Task], states: Sequence[Any], joint_actions: Sequence[Mapping[str, str]]
) -> list[Step | EpisodeFailure]:
    """The result of `environment.step_batch` for episodes of `tasks`, checked except for the observations."""
    outcomes = environment.step_batch(states, joint_actions)
    name = type(environment).__name__
    if not isinstance(outcomes, Sequence) or len(outcomes) != len(states):
        raise ConfigurationError(
            f"{name}.step_batch returned {shown(outcomes)} for {len(states)} episodes; return a list with one Step "
            "(or EpisodeFailure) for each."
        )
    for task, outcome in zip(tasks, outcomes, strict=True):
        where = f"{name} (task {task.task_id!r})"
        if not isinstance(outcome, (Step, EpisodeFailure)):
            raise ConfigurationError(f"{where} returned {shown(outcome)} from step; return a Step.")
        if isinstance(outcome, Step):
            check_step(environment, where, outcome)
    return list(outcomes)


def check_step(environment: Environment, where: str, step: Step) -> None:
    """Raise `ConfigurationError` for fields of a wrong type, or a reward outside min_reward ... max_reward.

    A reward that is not finite passes this check: training stops at it and saves the episode.
    """
    check_reward(where, step.reward)
    if math.isfinite(step.reward):
        low, high = environment.min_reward, environment.max_reward
        tolerance = 1e-6 * max(1.0, abs(low), abs(high))  # rounding of sums
        if not environment.reward_noise and not low - tolerance <= step.reward <= high + tolerance:
            raise ConfigurationError(
                f"{where} returned the reward {step.reward}, outside its range from min_reward {low} to max_reward "
                f"{high}; correct the reward or the range."
            )
        check_named_numbers(f"{where}: Step.terms", step.terms)
    if not isinstance(step.terminated, (bool, np.bool_)):
        raise ConfigurationError(f"{where}: Step.terminated is {shown(step.terminated)}; it must be True or False.")
    if not isinstance(step.info, Mapping):
        raise ConfigurationError(f"{where}: Step.info is {shown(step.info)}; it must be a dict of plain data.")
    try:
        json.dumps(step.info)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"{where}: Step.info cannot be written to transcripts as JSON ({error}); keep to dicts with str keys, "
            "lists, texts and numbers."
        ) from error


def check_size(environment: Environment, first: str, num_tasks: int, second: str, num_episodes: int) -> None:
    """Raise `ConfigurationError` for a rollout that is too large for time and memory.

    Args:
        environment: The environment.
        first: Name of the setting of `num_tasks`.
        num_tasks: Number of tasks played in parallel.
        second: Name of the setting of `num_episodes`.
        num_episodes: Number of episodes per task.
    """
    joint_samples = num_tasks * num_episodes * environment.horizon
    responses = joint_samples * len(environment.agent_ids)
    if responses > _MOST_RESPONSES:
        raise ConfigurationError(
            f"{num_tasks:,} tasks at once (data.{first}), {num_episodes:,} episodes of each (data.{second}) and a "
            f"horizon of {environment.horizon:,} turns are {joint_samples:,} joint samples in one rollout, and "
            f"{responses:,} responses of {len(environment.agent_ids):,} agents; at most {_MOST_RESPONSES:,} are "
            "allowed. Lower one of them."
        )


def described(environment: Environment, task: Task, state: Any) -> tuple[dict[str, float], str, float | None]:
    """`state_features`, `state_text` and `progress` of a state, checked."""
    where = f"{type(environment).__name__} (task {task.task_id!r})"
    features, text = environment.state_features(state), environment.state_text(state)
    progress = environment.progress(state)
    check_named_numbers(f"{where}: state_features", features)
    if not isinstance(text, str):
        raise ConfigurationError(f"{where} returned {shown(text)} from state_text; return a text (a str).")
    if progress is not None:
        check_named_numbers(where, {"progress": progress})
    return {name: float(value) for name, value in features.items()}, text, progress


def check_named_numbers(where: str, numbers: Any) -> None:
    """Raise `ConfigurationError` unless `numbers` is a dict of finite numbers by name."""
    if not isinstance(numbers, Mapping):
        raise ConfigurationError(f"{where} is {shown(numbers)}; it must be a dict of numbers by name.")
    for name, value in numbers.items():
        if not isinstance(name, str) or not isinstance(value, Real) or not math.isfinite(value):
            raise ConfigurationError(f"{where} has {shown(name)}: {shown(value)}; give a finite float by name.")


def measured(environment: Environment, trajectory: Trajectory) -> dict[str, float]:
    """The result of `environment.metrics` for a finished episode, checked."""
    metrics = environment.metrics(trajectory)
    where = f"{type(environment).__name__} (task {trajectory.task.task_id!r}): what metrics returned"
    if all(math.isfinite(turn.reward) for turn in trajectory.turns):  # otherwise the run will stop because of it
        check_named_numbers(where, metrics)
        terms = [f"reward/{term}" for turn in trajectory.turns for term in turn.terms]
        check_names_of_metrics(where, metrics, terms)
    return metrics


def check_names_of_metrics(where: str, metrics: Iterable[str], terms: Iterable[str] = ()) -> None:
    """Raise `ConfigurationError` if a metric has the name of one that the run logs itself.

    Args:
        where: What returned the metrics, for messages.
        metrics: Their names.
        terms: Names under which the terms of the reward are logged.
    """
    taken = {*LOGGED, *terms}
    for name in metrics:
        if name in taken or name.startswith(LOGGED_KINDS):
            raise ConfigurationError(
                f"{where} has {name!r}, a name under which the run logs a number of its own; give the metric another."
            )


def pictured(environment: Environment, trajectory: Trajectory) -> np.ndarray | None:
    """The result of `environment.render`, checked."""
    picture = environment.render(trajectory)
    if picture is not None and not (
        isinstance(picture, np.ndarray)
        and picture.dtype == np.uint8
        and picture.ndim == 3
        and picture.shape[2] == 3
        and picture.size
    ):
        dtype = getattr(picture, "dtype", type(picture).__name__)
        raise ConfigurationError(
            f"{type(environment).__name__}.render returned {dtype} of shape {getattr(picture, 'shape', '?')}; return "
            "an array [height, width, 3] of uint8, or None."
        )
    return picture


def drawn(environment: Environment, state: Any) -> str:
    """The result of `environment.render_turn`, checked; empty if it draws nothing."""
    picture = environment.render_turn(state)
    if picture is None:
        return ""
    if not isinstance(picture, str) or not picture.startswith("<svg") or len(picture) > MAX_PICTURE:
        raise ConfigurationError(
            f"{type(environment).__name__}.render_turn returned {shown(picture)}; return an SVG image that begins with "
            f"'<svg' and has at most {MAX_PICTURE:,} characters, or None."
        )
    return picture


def check_joint_action(environment: Environment, texts: Mapping[str, str]) -> None:
    """Raise `ConfigurationError` if a scripted joint action is not one text for each agent."""
    agents = list(environment.agent_ids)
    if (
        not isinstance(texts, Mapping)
        or set(texts) != set(agents)
        or not all(isinstance(text, str) for text in texts.values())
    ):
        raise ConfigurationError(
            f"{type(environment).__name__}.demonstrate returned {shown(texts)}; return one text for each of {agents}."
        )


def check_observations(environment: Environment, observations: Mapping[str, str]) -> None:
    """Raise `ConfigurationError` if observations are not one text for each agent."""
    name, agents = type(environment).__name__, list(environment.agent_ids)
    if not isinstance(observations, Mapping) or set(observations) != set(agents):
        got = list(observations) if isinstance(observations, Mapping) else type(observations).__name__
        raise ConfigurationError(
            f"{name} returned observations of {got}, but its agents are {agents}; show each a text."
        )
    for agent_id, text in observations.items():
        if not isinstance(text, str):
            raise ConfigurationError(f"{name} showed {agent_id!r} {text!r:.60}; an observation is one text (a str).")
        check_utf8(f"{name} showed {agent_id!r} a text that cannot be written", text)


def check_reward(where: str, reward: float) -> None:
    """Raise `ConfigurationError` if a reward is not a number; algorithms check whether it is finite."""
    if not isinstance(reward, Real):
        raise ConfigurationError(
            f"{where} returned the reward {reward!r:.60}; the reward of a joint action is one number for all agents."
        )
