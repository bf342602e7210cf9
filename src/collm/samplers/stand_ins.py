"""All agents act simultaneously; the responses of some are replaced by texts from a script, or by nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from collm.samplers.base import Actors, Episode, Sampler
from collm.trajectory import Action

StandIn = Callable[[Episode], str | None]
"""Returns the response for an agent in an episode; None asks the agent itself."""


class StandIns(Sampler):
    """All agents act simultaneously; a stand-in answers for those that have one.

    Args:
        stand_ins: Functions that answer instead of agents, by agent id.
    """

    scripted = True
    runs_free = False  # environments are asked in one thread

    def __init__(self, stand_ins: Mapping[str, StandIn]):
        self.stand_ins = dict(stand_ins)

    def joint_actions(
        self, episodes: Sequence[Episode], actors: Actors, generator: torch.Generator, greedy: bool
    ) -> list[dict[str, Action]]:
        joint: list[dict[str, Action]] = [{} for _ in episodes]
        asked: dict[str, list[int]] = {}  # the episodes in which an agent answers itself
        prompts: dict[str, list[list[int]]] = {}
        for agent_id in actors.policies:
            for index, episode in enumerate(episodes):
                text = self.stand_ins[agent_id](episode) if agent_id in self.stand_ins else None
                prompt = actors.prompt(agent_id, *episode.history(agent_id))
                if text is None:
                    asked.setdefault(agent_id, []).append(index)
                    prompts.setdefault(agent_id, []).append(prompt)
                else:
                    joint[index][agent_id] = actors.encode_action(agent_id, text, prompt)
        answers = actors.sample(prompts, generator, greedy) if prompts else {}
        for agent_id, indices in asked.items():
            for index, action in zip(indices, answers[agent_id], strict=True):
                joint[index][agent_id] = action
        return [{agent_id: actions[agent_id] for agent_id in actors.policies} for actions in joint]


def scripted(agent_id: str) -> StandIn:
    """The environment's own demonstration for an agent."""
    return lambda episode: episode.environment.demonstrate(episode.state, episode.rng)[agent_id]


def saying(text: str, after: int = 0) -> StandIn:
    """The same text in every turn from number `after` on; before it, the agent itself."""
    return lambda episode: text if len(episode.trajectory.turns) >= after else None


def repeating(agent_id: str) -> StandIn:
    """Repeats the agent's first response at all later turns."""

    def repeat(episode: Episode) -> str | None:
        turns = episode.trajectory.turns
        return turns[-1].actions[agent_id].text if turns else None

    return repeat
