"""The smallest game with PettingZoo's parallel interface."""

from __future__ import annotations

from typing import Any


class Discrete:
    n = 2


class Constant:
    """One agent that always sees the same and has two actions."""

    possible_agents = ("only",)

    def action_space(self, agent: str) -> Discrete:
        return Discrete()

    def reset(self, seed: int) -> tuple[dict[str, str], dict[str, Any]]:
        return {"only": "nothing"}, {}
