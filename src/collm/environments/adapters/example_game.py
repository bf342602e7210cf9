"""The game of configs/environments/pettingzoo.yaml, an example for your own: PettingZoo's parallel interface."""

from __future__ import annotations

import random
from typing import Any


class Digit:
    """The actions 0 to 9, as gymnasium.spaces.Discrete(10) describes them."""

    n = 10


class Signals:
    """Each of two agents sees the digit that the other one has to name: the first turn is for telling it.

    What both write in the first turn is shown to the other in the second, and each that names its own digit then earns
    1 (the team the mean of both).
    """

    possible_agents = ("left", "right")

    def action_space(self, agent: str) -> Digit:
        """What an agent may do."""
        return Digit()

    def reset(self, seed: int | None = None, options: Any = None) -> tuple[dict[str, str], dict[str, dict]]:
        """New digits, and what the agents see of them."""
        rng = random.Random(seed)
        self.agents = list(self.possible_agents)
        self.digits = {agent: rng.randrange(10) for agent in self.agents}
        self.turn = 0
        left, right = self.digits.values()
        shown = {"left": f"The other one's digit is {right}.", "right": f"The other one's digit is {left}."}
        return {agent: f"{text} Write a digit for it to see." for agent, text in shown.items()}, self._empty()

    def step(self, actions: dict[str, int]) -> tuple[dict[str, str], dict[str, float], dict, dict, dict]:
        """Observations, rewards, who is done, who was cut off (nobody), and further information (none)."""
        self.turn += 1
        named = {agent: float(action == self.digits[agent]) for agent, action in actions.items()}
        over = dict.fromkeys(actions, self.turn == 2)
        self.agents = [] if self.turn == 2 else self.agents
        seen = {"left": actions["right"], "right": actions["left"]}
        shown = {agent: f"The other one wrote {seen[agent]}. Write your own digit." for agent in self.agents}
        rewards = named if self.turn == 2 else dict.fromkeys(actions, 0.0)
        return shown, rewards, over, dict.fromkeys(actions, False), self._empty()

    def _empty(self) -> dict[str, dict]:
        return {agent: {} for agent in self.agents}
