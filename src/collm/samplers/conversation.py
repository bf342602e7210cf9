"""What samplers share in which agents exchange messages before they act.

All messages of a turn are recorded in its `messages`. The last message of each agent is its action. Critics read the
observations of the environment, which are kept apart from the messages of other agents.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from collm.environments.base import Environment
from collm.errors import ConfigurationError
from collm.samplers.base import Actors, Episode, Sampler
from collm.trajectory import Action, Message


class Conversation(Sampler):
    """A sampler whose agents read each other. Subclasses decide who is asked when, with `ask`."""

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
        agent_id: str,
        shown: Sequence[str],
        round: int,
        generator: torch.Generator,
        greedy: bool,
    ) -> list[Message]:
        """Messages of one agent in every episode when it is `shown` these texts; they are not added to the episodes."""
        prompts = [
            actors.prompt(agent_id, *episode.history(agent_id, text))
            for episode, text in zip(episodes, shown, strict=True)
        ]
        actions = actors.sample({agent_id: prompts}, generator, greedy)[agent_id]
        return [Message(agent_id, text, action, round) for text, action in zip(shown, actions, strict=True)]

    @staticmethod
    def last_words(episode: Episode) -> dict[str, Action]:
        """The last message of each agent in the turn that is being played."""
        return {message.agent_id: message.action for message in episode.messages}
