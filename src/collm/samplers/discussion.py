"""A debate within a turn: all answer, each reads the others' answers, and all answer again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from collm.runtime.checks import Range, check_number
from collm.samplers.base import Episode, SamplingPolicy
from collm.samplers.conversation import Protocol
from collm.trajectory import Action


class Discussion(Protocol):
    """All agents answer at once, see the others' answers and answer again; only the last answers count.

    Args:
        rounds: How often each agent answers in a turn, the last answer included.
    """

    def __init__(self, rounds: int = 2):
        remedy = "For one round use collm.samplers.parallel.Parallel."
        self.rounds = check_number("Discussion.rounds", rounds, Range(2, 1000, whole=True), remedy)

    def joint_actions(
        self,
        episodes: Sequence[Episode],
        policies: Mapping[str, SamplingPolicy],
        generator: torch.Generator,
        greedy: bool,
    ) -> list[dict[str, Action]]:
        for round in range(self.rounds):
            said = [
                self.ask(
                    episodes,
                    agent_id,
                    policy,
                    [self.shown(episode, agent_id, round) for episode in episodes],
                    round,
                    generator,
                    greedy,
                )
                for agent_id, policy in policies.items()
            ]
            # only now: nobody reads an answer of the round in which it is written
            for messages in said:
                for episode, message in zip(episodes, messages, strict=True):
                    episode.messages.append(message)
        return [self.last_words(episode) for episode in episodes]

    def shown(self, episode: Episode, agent_id: str, round: int) -> str:
        """The environment's observation first, later what the others answered last."""
        if round == 0:
            return episode.observations[agent_id]
        others = [
            f"{name} answered:\n{action.text.strip()}\n\n"
            for name, action in self.last_words(episode).items()
            if name != agent_id
        ]
        return "".join(others) + "Now give your own answer again, improved in the light of this."
