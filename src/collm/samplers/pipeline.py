"""Agents answer in order: each sees the observations and answers of those before it in the same turn."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from collm.environments.base import Environment
from collm.errors import ConfigurationError
from collm.samplers.base import Actors, Episode
from collm.samplers.conversation import Conversation
from collm.trajectory import Action


class Pipeline(Conversation):
    """Agents answer one after another; each sees the inputs and answers of those before it in the same turn.

    Args:
        order: Agents in the order in which they answer; by default that of the environment.
    """

    def __init__(self, order: list[str] | None = None):
        self.order = order

    def check(self, environment: Environment, num_tasks: int, num_generations: int) -> None:
        super().check(environment, num_tasks, num_generations)
        if self.order is not None and sorted(self.order) != sorted(environment.agent_ids):
            raise ConfigurationError(
                f"Pipeline.order is {self.order}; it must name each agent of {type(environment).__name__} once: "
                f"{', '.join(environment.agent_ids)}."
            )

    def joint_actions(
        self, episodes: Sequence[Episode], actors: Actors, generator: torch.Generator, greedy: bool
    ) -> list[dict[str, Action]]:
        for round, agent_id in enumerate(self.order or actors.policies):
            shown = [episode.observations[agent_id] + self.before(episode) for episode in episodes]
            (messages,) = self.ask(episodes, actors, {agent_id: shown}, round, generator, greedy)
            for episode, message in zip(episodes, messages, strict=True):
                episode.messages.append(message)
        return [self.last_words(episode) for episode in episodes]

    @staticmethod
    def before(episode: Episode) -> str:
        """Observations and answers of the earlier agents of this turn."""
        blocks = [
            f"\n\n{message.agent_id} was told:\n{episode.observations[message.agent_id].strip()}\n\n"
            f"{message.agent_id} answered:\n{message.action.text.strip()}"
            for message in episode.messages
        ]
        return "".join(blocks) + "\n\nNow give your own answer." if blocks else ""
