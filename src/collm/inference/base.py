"""The interface of engines, which generate the responses of policies.

The learner owns the weights and changes them. Before every rollout an engine takes them over (`sync`), and every action
carries the version that generated it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

import torch

from collm.models.policy import Policy
from collm.models.policy_spec import PolicySpec
from collm.runtime.seeding import child_generator
from collm.trajectory import Action

Prompts = Sequence[Sequence[int]]
"""Tokens of each prompt."""


class Engine(ABC):
    """Generates responses for some policies.

    Args:
        policies: Policies by agent id, all on one device.
    """

    version: int | None = None  # of the weights; set by `sync`
    keeps_cache = False  # set by `sync`
    elsewhere = False
    """Whether it generates outside of this process, so that the learner may update at the same time."""
    answers_at_once = 0
    """How many responses it waits for at once, where single ones come as fast as many: episodes then run free of one
    another, and `generate` is called from several threads. 0 where one batch is best."""

    def __init__(self, policies: Mapping[str, Policy]):
        self.policies = dict(policies)

    @classmethod  # noqa: B027 (most engines refuse nothing)
    def check(cls, name: str, spec: PolicySpec, agent_id: str) -> None:
        """Refuse settings that this engine cannot follow; called before weights load.

        Args:
            name: What error messages call the policy.
            spec: Settings of the policy.
            agent_id: The agent.

        Raises:
            ConfigurationError: Names the setting and how to mend it.
        """

    @classmethod
    def serves(cls, policy: Policy) -> bool:
        """Whether the engine generates correctly for the model of `policy`; `transformers` replaces it otherwise."""
        return True

    def sync(self, version: int, keep_cache: bool = False) -> None:
        """Take over the weights of all policies as they are now, and drop everything computed with earlier ones.

        Args:
            version: Number of updates behind the weights; actions carry it.
            keep_cache: Keep key/value states for later prompts that continue earlier ones, until `rest`.
        """
        self.rest()
        self.version, self.keeps_cache = version, keep_cache

    @abstractmethod
    def generate(
        self, prompts: Mapping[str, Prompts], generator: torch.Generator, greedy: bool
    ) -> dict[str, list[Action]]:
        """One response to each prompt.

        Args:
            prompts: Prompts by agent id.
            generator: Source of random numbers.
            greedy: Take the most likely tokens.

        Returns:
            The responses by agent id.
        """

    def rest(self) -> None:  # noqa: B027 (not every engine holds something)
        """Free what is not needed until the next `sync`, such as key/value states."""

    def take_numbers(self) -> dict[str, list[float]]:
        """What was counted since the last call, a list of values for each name; see `metrics.summarized`."""
        return {}

    def slower(self, policy: Policy) -> list[str]:
        """What keeps generation for `policy` from being as fast as possible, in words; empty if nothing does."""
        return []


def on_device(generator: torch.Generator, policy: Policy) -> torch.Generator:
    """`generator`, or one on the device of `policy` that is seeded by it."""
    return generator if generator.device == policy.device else child_generator(generator, policy.device)
