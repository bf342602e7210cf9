"""Episodes of the building games with given joint actions."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from collm.environments.building.game import BuildingGame
from collm.trajectory import Action, Task, Trajectory, Turn

JointAction = Mapping[str, str]


def play(
    environment: BuildingGame,
    task: Task,
    joint_actions: Iterable[JointAction | Callable[[Any], JointAction]],
    attacks: tuple[int, ...] | None = None,
) -> tuple[Trajectory, list[dict[str, str]]]:
    """A whole episode: its trajectory, and the observations shown along the way."""
    state, observations = environment.reset(task, random.Random(0))
    if attacks is not None:
        state = replace(state, attacks=attacks)
    trajectory = Trajectory(task, 0, environment.horizon, environment.max_reward)
    seen = [observations]
    for joint_action in joint_actions:
        joint_action = joint_action(state) if callable(joint_action) else joint_action
        step = environment.step(state, joint_action)
        actions = {agent_id: Action(text) for agent_id, text in joint_action.items()}
        trajectory.turns.append(Turn(observations, actions, step.reward, step.terms, step.info))
        state, observations = step.state, step.observations
        seen.append(observations)
        if step.terminated or len(trajectory.turns) == environment.horizon:
            assert observations == {}
            break
    return trajectory, seen


def pair(first: str = "", second: str = "") -> dict[str, str]:
    """A joint action of two builders."""
    return {"builder_1": first, "builder_2": second}
