"""Decentralized execution: all agents act at once, each on its own history, with no communication."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
        joint: list[dict[str, Action]] = [{} for _ in episodes]
        for agent_id, policy in policies.items():
            prompts = [policy.prompt(*episode.history(agent_id)) for episode in episodes]
            for action, actions in zip(policy.sample(prompts, generator, greedy), joint, strict=True):
                actions[agent_id] = action
        return joint
