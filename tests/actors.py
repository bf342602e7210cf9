"""Agents for samplers in tests: real policies with their engines, or policies that answer themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from collm.inference.actors import Actors
from collm.models.policy import Policy
from collm.trajectory import Action


class Scripted:
    """Policies with a `sample` of their own in place of engines.

    Args:
        policies: Policies by agent id.
    """

    def __init__(self, policies: Mapping[str, Any]):
        self.policies = policies
        self.answers_at_once = 0

    @contextmanager
    def serving(self, version: int, keep_cache: bool = False) -> Iterator[Scripted]:
        yield self

    def take_numbers(self) -> dict[str, list[float]]:
        return {}

    def prompt(self, agent_id: str, observations: Sequence[str], actions: Sequence[Action]) -> list[int]:
        return self.policies[agent_id].prompt(observations, actions)

    def sample(
        self, prompts: Mapping[str, Sequence[Sequence[int]]], generator: torch.Generator, greedy: bool
    ) -> dict[str, list[Action]]:
        return {agent_id: self.policies[agent_id].sample(own, generator, greedy) for agent_id, own in prompts.items()}

    def encode_action(self, agent_id: str, text: str, prompt: Sequence[int]) -> Action:
        return self.policies[agent_id].encode_action(text, prompt)


class Current(Actors):
    """Actors that take the weights over again whenever they are asked."""

    version = 0

    def sample(
        self, prompts: Mapping[str, Sequence[Sequence[int]]], generator: torch.Generator, greedy: bool
    ) -> dict[str, list[Action]]:
        with self.serving(self.version):
            return super().sample(prompts, generator, greedy)


def actors_of(policies: Mapping[str, Any], version: int = 0) -> Actors | Scripted:
    """Actors for policies, which are asked with the weights they have at that time."""
    if not all(isinstance(policy, Policy) for policy in policies.values()):
        return Scripted(policies)
    actors = Current(policies)
    actors.version = version
    return actors


def sampled(policy: Policy, prompts: Sequence[Sequence[int]], generator: torch.Generator, greedy: bool) -> list[Action]:
    """One response of a policy to each prompt, with its weights as they are now."""
    return Current({policy.agent_id: policy}).sample({policy.agent_id: prompts}, generator, greedy)[policy.agent_id]
