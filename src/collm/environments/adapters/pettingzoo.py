"""Environments with PettingZoo's parallel interface whose observations are texts, or are described by a function.

The package pettingzoo itself is not needed here: any object with `possible_agents`, `reset(seed=)`, `step(actions)` and
`action_space(agent)` will do.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from collm.environments.base import Environment, Step, Tasks, Turns
from collm.environments.calls import described, load_function
from collm.environments.written import image_as_svg, lines_as_svg
from collm.errors import ConfigurationError, TrainingError
from collm.runtime.checks import CountOrZero, Finite, Seed, checked, shown
from collm.trajectory import Task, Trajectory

NUMBER = re.compile(r"-?\d{1,9}")
OUT = "You are out of the game. Write nothing."


class PettingZooState:
    """State of an episode: the environment, which steps change in place, its seed, and the last texts shown."""

    def __init__(self, env: Any, seed: int) -> None:
        self.env = env
        self.seed = seed
        self.turn = 0
        self.shown: dict[str, str] = {}
        self.total = 0.0


class PettingZooText(Environment):
    """A game with PettingZoo's parallel interface; agents are its own, and the team earns the mean of their rewards.

    An observation must be a text, or `describe` must make one of it. In a space of numbers 0 ... n-1 (Discrete), the
    action is the first such number in the response; in a space of texts (Text) it is the response. Tasks are seeds.

    Args:
        make: Import path of a function without arguments that returns a new environment, such as my_game.make; the
            current folder is importable.
        min_reward: Smallest team reward of one turn.
        max_reward: Largest team reward of one turn.
        horizon: Largest number of turns of an episode.
        describe: Import path of a function `(agent, observation) -> text`, for observations that are not texts.
        default_action: Number taken for a response without a valid one.
        num_tasks: Number of training seeds.
        num_eval: Number of held-out seeds.
        seed: First seed; held-out seeds follow the training seeds.
    """

    @checked
    def __init__(
        self,
        make: str,
        min_reward: Finite,
        max_reward: Finite,
        horizon: Turns,
        describe: str | None = None,
        default_action: CountOrZero = 0,
        num_tasks: Tasks = 64,
        num_eval: Tasks = 16,
        seed: Seed = 0,
    ) -> None:
        self.make = load_function("make", make)
        self.describe: Callable[[str, Any], str] | None = describe and load_function("describe", describe)  # type: ignore[assignment]
        self.path = make
        self.horizon, self.min_reward, self.max_reward = horizon, min_reward, max_reward
        seeds = range(seed, seed + num_tasks + num_eval)
        tasks = [Task(f"seed {number}", {"seed": number}) for number in seeds]
        self.splits = {"train": tasks[:num_tasks], "eval": tasks[num_tasks:]}
        self.default_action = default_action
        try:
            env = self.make()
            self.agent_ids = tuple(str(agent) for agent in env.possible_agents)
            self.sizes = {agent: space_size(self.path, agent, env.action_space(agent)) for agent in env.possible_agents}
            self.reset(tasks[0], random.Random(0))  # so that observations of a wrong type are found now
        except ConfigurationError:
            raise
        except Exception as error:  # whatever the user's environment does
            raise ConfigurationError(
                f"make is {make!r}, but what it returned lacks PettingZoo's parallel interface: {described(error)}"
            ) from error
        for agent, size in self.sizes.items():
            if size is not None and default_action not in range(size):
                raise ConfigurationError(
                    f"default_action is {default_action}, but {agent} has the actions 0 to {size - 1}."
                )

    def reset(self, task: Task, rng: random.Random) -> tuple[PettingZooState, dict[str, str]]:
        """A new environment with the task's seed."""
        state = PettingZooState(self.make(), task.data["seed"])
        observations, _ = state.env.reset(seed=state.seed)
        state.shown = {agent: self.text(agent, observations) for agent in self.agent_ids}
        return state, state.shown

    def text(self, agent: str, observations: Mapping[str, Any]) -> str:
        """What an agent is shown."""
        if agent not in observations:
            return OUT
        observation = observations[agent]
        text = observation if self.describe is None else self.describe(agent, observation)
        if not isinstance(text, str):
            remedy = "name a function `describe` that makes a text of it" if self.describe is None else "return a text"
            raise ConfigurationError(f"{self.path} shows {agent!r} {shown(text)}, which is no text; {remedy}.")
        return text

    def action(self, agent: str, text: str) -> tuple[Any, bool]:
        """The action in a response, and whether there is a valid one."""
        size = self.sizes[agent]
        if size is None:
            return text, True
        numbers = (int(match) for match in NUMBER.findall(text[:10_000]))
        action = next((number for number in numbers if 0 <= number < size), None)
        return (self.default_action, False) if action is None else (action, True)

    def step(self, state: PettingZooState, joint_action: Mapping[str, str]) -> Step:
        """Apply the actions of all agents that are still in the game."""
        read = {agent: self.action(agent, joint_action[agent]) for agent in state.env.agents}
        try:
            observations, rewards, terminations, truncations, _ = state.env.step(
                {name: act for name, (act, _) in read.items()}
            )
        except Exception as error:
            raise TrainingError(
                f"{self.path}: step raised {described(error)} at the seed {state.seed}; mend it."
            ) from error
        state.turn += 1
        reward = sum(float(value) for value in rewards.values()) / len(self.agent_ids)
        state.total += reward
        over = all(terminations.get(agent, True) or truncations.get(agent, True) for agent in self.agent_ids)
        state.shown = {agent: self.text(agent, observations) for agent in self.agent_ids}
        info = {
            "rewards": {agent: float(value) for agent, value in rewards.items()},
            "invalid": [agent for agent, (_, valid) in read.items() if not valid],
        }
        next_shown = {} if over or state.turn >= self.horizon else state.shown
        return Step(state, next_shown, reward, {}, over, info)

    def state_features(self, state: PettingZooState) -> dict[str, float]:
        """The team's rewards so far, and the share of agents that are still in the game."""
        return {"total": state.total, "in_the_game": len(state.env.agents) / len(self.agent_ids)}

    def state_text(self, state: PettingZooState) -> str:
        """What each agent is shown now."""
        return "\n".join(f"{agent}: {text}" for agent, text in state.shown.items())

    def render_turn(self, state: PettingZooState) -> str | None:
        """The environment's own picture, or what each agent is shown if it draws none."""
        if getattr(state.env, "render_mode", None) != "rgb_array":
            return lines_as_svg(self.state_text(state))
        picture = state.env.render()
        return None if picture is None else image_as_svg(np.asarray(picture, dtype=np.uint8))

    def metrics(self, trajectory: Trajectory) -> dict[str, float]:
        """Sum of each agent's own rewards, and the share of responses without a valid action."""
        totals = dict.fromkeys(self.agent_ids, 0.0)
        for turn in trajectory.turns:
            for agent, reward in turn.info["rewards"].items():
                totals[agent] += reward
        asked = max(1, len(trajectory.turns) * len(self.agent_ids))
        invalid = sum(len(turn.info["invalid"]) for turn in trajectory.turns)
        return {**{f"reward/{agent}": total for agent, total in totals.items()}, "invalid": invalid / asked}

    def render(self, trajectory: Trajectory) -> np.ndarray | None:
        """The environment's own picture of the end of the episode, which is played again; None if it has none."""
        env = self.make()
        if getattr(env, "render_mode", None) != "rgb_array":
            return None
        env.reset(seed=trajectory.task.data["seed"])
        for turn in trajectory.turns:
            env.step({agent: self.action(agent, turn.actions[agent].text)[0] for agent in env.agents})
        picture = env.render()
        return np.asarray(picture, dtype=np.uint8) if picture is not None else None


def space_size(path: str, agent: str, space: Any) -> int | None:
    """Number of actions of a space of numbers, None for a space of texts."""
    if hasattr(space, "n") and not getattr(space, "start", 0):
        return int(space.n)
    if type(space).__name__ == "Text":
        return None
    raise ConfigurationError(
        f"{path}: {agent!r} has actions of {type(space).__name__}; only Discrete (from 0) and Text are supported."
    )
