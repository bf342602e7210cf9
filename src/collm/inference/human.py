"""The engine that asks somebody at the terminal."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch

from collm.inference.base import Engine, Prompts
from collm.runtime.terminal import printable
from collm.trajectory import Action


class HumanEngine(Engine):
    """Shows what an agent is shown, and reads what it answers up to an empty line."""

    def generate(
        self, prompts: Mapping[str, Prompts], generator: torch.Generator, greedy: bool
    ) -> dict[str, list[Action]]:
        """One response to each prompt; see `Engine.generate`."""
        return {agent_id: [self.ask(agent_id, prompt) for prompt in own] for agent_id, own in prompts.items()}

    def ask(self, agent_id: str, prompt: Any) -> Action:
        """What somebody answers as `agent_id` to the last of the messages."""
        shown = printable(prompt[-1]["content"])  # what others wrote is part of it
        print(f"\n--- {agent_id}\n{shown}\n--- your answer, then an empty line:", flush=True)
        lines = []
        while (line := sys.stdin.readline()).strip():
            lines.append(line)
        return Action("".join(lines).rstrip("\n"))
