"""Decentralized execution: all agents act at once, each on its own history, with no communication."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from collm.runtime.profiler import meter
from collm.runtime.seeding import child_generator
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
        prompts = {
            agent_id: [policy.prompt(*episode.history(agent_id)) for episode in episodes]
            for agent_id, policy in policies.items()
        }
        groups: dict[Hashable, dict[str, SamplingPolicy]] = {}
        for agent_id, policy in policies.items():
            groups.setdefault(policy.device, {})[agent_id] = policy
        if len(groups) == 1:
            answers = answered(policies, prompts, generator, greedy)
        else:
            answers = answered_side_by_side(list(groups.values()), prompts, generator, greedy)
        return [{agent_id: answers[agent_id][index] for agent_id in policies} for index in range(len(episodes))]


def answered(
    policies: Mapping[str, SamplingPolicy],
    prompts: Mapping[str, Sequence[Sequence[int]]],
    generator: torch.Generator,
    greedy: bool,
) -> dict[str, list[Action]]:
    """One response to each of the prompts of each agent; those that can be are sampled together."""
    answers: dict[str, list[Action]] = {}
    teams: dict[Hashable, list[str]] = {}
    for agent_id, policy in policies.items():
        teams.setdefault(policy.decoder, []).append(agent_id)
    for members in teams.values():
        team, asked = ([given[agent_id] for agent_id in members] for given in (policies, prompts))
        if len(members) == 1:
            answers[members[0]] = team[0].sample(asked[0], generator, greedy)
        else:
            answers |= zip(members, team[0].sample_together(team, asked, generator, greedy), strict=True)
    return answers


def answered_side_by_side(
    groups: Sequence[Mapping[str, SamplingPolicy]],
    prompts: Mapping[str, Sequence[Sequence[int]]],
    generator: torch.Generator,
    greedy: bool,
) -> dict[str, list[Action]]:
    """What `answered` returns, for groups of agents at the same time, each with chance of its own.

    Threads are enough for it: they wait for their devices most of the time.
    """
    chances = [child_generator(generator, generator.device) for _ in groups]

    def answer(policies: Mapping[str, SamplingPolicy], chance: torch.Generator) -> dict[str, list[Action]]:
        with meter.aside():
            return answered(policies, prompts, chance, greedy)

    with meter.phase("generate"), ThreadPoolExecutor(len(groups)) as threads:
        parts = list(threads.map(answer, groups, chances))
    return {agent_id: actions for part in parts for agent_id, actions in part.items()}
