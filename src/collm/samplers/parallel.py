"""Decentralized execution: all agents act at once, each on its own history, with no communication."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from collm.samplers.base import Actors, Episode, Sampler
from collm.trajectory import Action


class Parallel(Sampler):
    """Every agent answers at once, each from its own observations only (the Dec-POMDP of the paper)."""

    def joint_actions(
        self, episodes: Sequence[Episode], actors: Actors, generator: torch.Generator, greedy: bool
    ) -> list[dict[str, Action]]:
        prompts = {
            agent_id: [actors.prompt(agent_id, *episode.history(agent_id)) for episode in episodes]
            for agent_id in actors.policies
        }
        actions = actors.sample(prompts, generator, greedy)
        return [{agent_id: actions[agent_id][index] for agent_id in prompts} for index in range(len(episodes))]
