"""Decentralized execution: all agents act at once, each on its own history, with no communication."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

import torch

from collm.samplers.base import Episode, Sampler, SamplingPolicy
from collm.trajectory import Action


class Parallel(Sampler):
    """Every agent answers at once, each from its own observations only (the Dec-POMDP of the paper)."""

    def joint_actions(
        self,
        episodes: Sequence[Episode],
        policies: Mapping[str, SamplingPolicy],
        generator: torch.Generator,
        greedy: bool,
    ) -> list[dict[str, Action]]:
        answers: dict[str, list[Action]] = {}
        teams: dict[Hashable, list[str]] = {}
        for agent_id, policy in policies.items():
            teams.setdefault(policy.decoder, []).append(agent_id)
        for members in teams.values():
            team = [policies[agent_id] for agent_id in members]
            prompts = [
                [policies[agent_id].prompt(*episode.history(agent_id)) for episode in episodes] for agent_id in members
            ]
            if len(members) == 1:
                answers[members[0]] = team[0].sample(prompts[0], generator, greedy)
            else:
                answers |= zip(members, team[0].sample_together(team, prompts, generator, greedy), strict=True)
        return [{agent_id: answers[agent_id][index] for agent_id in policies} for index in range(len(episodes))]
