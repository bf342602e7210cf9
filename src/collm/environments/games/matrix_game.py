"""A one-shot matrix game in text: every agent names an action, and a payoff table gives the team reward.

The game can be solved by hand, and a run shows in seconds whether an algorithm learns. A game with one state has no
held-out tasks: all tasks are the same game under different names, so evaluations do not measure generalization.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from collm.environments.base import Environment, Step, Tasks
from collm.errors import ConfigurationError
from collm.runtime.checks import FINITE, Finite, check_number, checked
from collm.trajectory import Task, Trajectory


class MatrixGame(Environment):
    """Agents choose actions at the same time; the reward is the entry of the joint action in a payoff table.

    Args:
        payoff: Nested lists, one level per agent: `payoff[i][j]` is the reward if the first agent takes action i and
            the second one action j. If the lists have one entry more than there are actions, the last entry is for
            responses without an action. By default the reward is 1 if both agents take the first action, 0.5 if both
            take the second, and 0 otherwise.
        actions: The words that name actions; `0` and `1` by default. The action of a response is the first of these
            words in it.
        invalid_reward: Reward if a response holds no action and `payoff` has no entry for it; by default the smallest
            payoff.
        num_games: Number of training tasks, `game 0` and so on.
        num_eval: Number of evaluation tasks.
    """

    horizon = 1

    @checked
    def __init__(
        self,
        payoff: list[Any] | None = None,
        actions: list[str] | None = None,
        invalid_reward: Finite | None = None,
        num_games: Tasks = 8,
        num_eval: Tasks = 2,
    ) -> None:
        self.actions = ["0", "1"] if actions is None else list(actions)
        for word in self.actions:
            if not isinstance(word, str) or not re.fullmatch(r"\w+", word):
                raise ConfigurationError(f"actions: {word!r} is no word; use letters, digits and '_' only.")
        if len(self.actions) < 2 or len(set(self.actions)) != len(self.actions):
            raise ConfigurationError(f"actions is {self.actions}; list two or more different words.")
        self.payoff = [[1.0, 0.0], [0.0, 0.5]] if payoff is None else payoff
        depth = _depth(self.payoff)
        self.agent_ids = tuple(f"player_{index + 1}" for index in range(depth))
        size = len(self.actions) + 1  # the last index is a response without an action
        has_invalid_entry = isinstance(self.payoff, Sequence) and len(self.payoff) == size
        if has_invalid_entry and invalid_reward is not None:
            raise ConfigurationError(
                f"invalid_reward is {invalid_reward}, but payoff has an entry for responses without an action; "
                "remove one of them."
            )
        listed = range(size if has_invalid_entry else len(self.actions))
        table = {choice: self._entry(choice, len(listed)) for choice in product(listed, repeat=depth)}
        if not has_invalid_entry:
            default = min(table.values()) if invalid_reward is None else float(invalid_reward)
            table = {choice: table.get(choice, default) for choice in product(range(size), repeat=depth)}
        self._table = table
        self.min_reward, self.max_reward = min(table.values()), max(table.values())
        self.splits = {
            "train": _games(range(num_games)),
            "eval": _games(range(num_games, num_games + num_eval)),
        }

    def _entry(self, choice: Sequence[int], size: int) -> float:
        entry: Any = self.payoff
        for index in choice:
            if not isinstance(entry, Sequence) or len(entry) != size:
                raise ConfigurationError(
                    f"payoff is {self.payoff}, but with {len(self.actions)} actions every list in it needs "
                    f"{len(self.actions)} entries, or all of them one more, and there is one level of lists per agent."
                )
            entry = entry[index]
        return float(check_number(f"payoff at {list(choice)}", entry, FINITE))

    def reset(self, task: Task, rng: random.Random) -> tuple[Task, dict[str, str]]:
        """Every agent is shown its name and the actions; the game is deterministic."""
        choice = ", ".join(self.actions[:-1]) + f" or {self.actions[-1]}"
        return task, {agent_id: f"You are {agent_id}. Answer {choice}." for agent_id in self.agent_ids}

    def step(self, state: Task, joint_action: Mapping[str, str]) -> Step:
        """Look up the reward of the joint action and end the episode."""
        chosen = {agent_id: self.read(joint_action[agent_id]) for agent_id in self.agent_ids}
        reward = self._table[tuple(chosen.values())]
        names = {agent_id: [*self.actions, None][action] for agent_id, action in chosen.items()}
        invalid = [agent_id for agent_id, name in names.items() if name is None]
        return Step(state, {}, reward, {"payoff": reward}, True, {"actions": names, "invalid": invalid})

    def read(self, text: str) -> int:
        """Index of the first action word in `text`, one past the last action if there is none."""
        words = (match[0] for match in re.finditer(r"\w+", text))
        indices = (self.actions.index(word) for word in words if word in self.actions)
        return next(indices, len(self.actions))

    def metrics(self, trajectory: Trajectory) -> dict[str, float]:
        """Whether the best joint action was played, and the share of agents whose response held no action."""
        turn = trajectory.turns[-1]
        return {
            "optimal": float(turn.reward == self.max_reward),
            "invalid": len(turn.info["invalid"]) / len(self.agent_ids),
        }

    def demonstrate(self, state: Task, rng: random.Random) -> dict[str, str]:
        """Every agent takes a random action."""
        return {agent_id: rng.choice(self.actions) for agent_id in self.agent_ids}


def _depth(payoff: Any) -> int:
    """Number of nested levels of lists, which is the number of agents."""
    depth = 0
    while isinstance(payoff, Sequence) and not isinstance(payoff, str) and len(payoff):
        payoff, depth = payoff[0], depth + 1
    if not depth:
        raise ConfigurationError(f"payoff is {payoff!r}; give nested lists of numbers, one level per agent.")
    return depth


def _games(numbers: range) -> tuple[Task, ...]:
    return tuple(Task(f"game {number}", {}) for number in numbers)
