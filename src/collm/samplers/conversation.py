"""What samplers share in which agents exchange messages before they act.

All messages of a turn are recorded in its `messages`. The last message of each agent is its action. Critics read the
observations of the environment, which are kept apart from the messages of other agents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from collm.environments.base import Environment
from collm.errors import ConfigurationError
from collm.samplers.base import Actors, Episode, Sampler
from collm.trajectory import Action, Message


class Conversation(Sampler):
    """A sampler whose agents read each other. Subclasses decide whom to `ask` when."""

    asks_once = False

    def check(self, environment: Environment, num_tasks: int, num_generations: int) -> None:
        """Refuse a team of one: it has nobody to talk to."""
        if len(environment.agent_ids) < 2:
            name = type(self).__name__
            raise ConfigurationError(
                f"{name} lets agents read each other, but {type(environment).__name__} has only the agent "
                f"{environment.agent_ids[0]!r}; use collm.samplers.parallel.Parallel, or give it another agent."
            )

    @staticmethod
    def ask(
        episodes: Sequence[Episode],
        actors: Actors,
        shown: Mapping[str, Sequence[str]],
        round: int,
        generator: torch.Generator,
        greedy: bool,
    ) -> list[list[Message]]:
        """Messages of agents in every episode when they are `shown` these texts, at the same time.

        Args:
            episodes: The episodes; the messages are not added to them.
            actors: The agents.
            shown: What each agent is shown in every episode, by agent id.
            round: Round of the messages in their turn.
            generator: Source of random numbers.
            greedy: Take the most likely tokens.

        Returns:
            For each agent one message for every episode.
        """
        prompts = {
            name: [
                actors.prompt(name, *episode.history(name, text)) for episode, text in zip(episodes, texts, strict=True)
            ]
            for name, texts in shown.items()
        }
        answers = actors.sample(prompts, generator, greedy)
        return [
            [Message(name, text, action, round) for text, action in zip(texts, answers[name], strict=True)]
            for name, texts in shown.items()
        ]

    @staticmethod
    def last_words(episode: Episode) -> dict[str, Action]:
        """The last message of each agent in the turn that is being played."""
        return {message.agent_id: message.action for message in episode.messages}
