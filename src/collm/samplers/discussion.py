"""A debate in every turn: all agents answer, each reads the others' answers, and all answer again."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from collm.runtime.checks import Range, check_number
from collm.samplers.base import Actors, Episode
from collm.samplers.conversation import Conversation
from collm.trajectory import Action


class Discussion(Conversation):
    """All agents answer at once, see the others' answers and answer again; only the last answers count.

    Args:
        rounds: How often each agent answers in a turn, the last answer included.
    """

    def __init__(self, rounds: int = 2):
        remedy = "For one round use collm.samplers.parallel.Parallel."
        self.rounds = check_number("Discussion.rounds", rounds, Range(2, 1000, whole=True), remedy)

    def joint_actions(
        self, episodes: Sequence[Episode], actors: Actors, generator: torch.Generator, greedy: bool
    ) -> list[dict[str, Action]]:
        for round in range(self.rounds):
            shown = {name: [self.shown(episode, name, round) for episode in episodes] for name in actors.policies}
            # asked together: no agent reads an answer of the same round
            for messages in self.ask(episodes, actors, shown, round, generator, greedy):
                for episode, message in zip(episodes, messages, strict=True):
                    episode.messages.append(message)
        return [self.last_words(episode) for episode in episodes]

    def shown(self, episode: Episode, agent_id: str, round: int) -> str:
        """The environment's observation in the first round, then the last answers of the others."""
        if round == 0:
            return episode.observations[agent_id]
        others = [
            f"{name} answered:\n{action.text.strip()}\n\n"
            for name, action in self.last_words(episode).items()
            if name != agent_id
        ]
        return "".join(others) + "Now give your own answer again, improved in the light of this."
