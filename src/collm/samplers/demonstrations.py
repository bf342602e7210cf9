"""Scripted joint actions of the environment in place of the policies' own, for behaviour cloning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from collm.environments.base import Environment
from collm.environments.contract import check_joint_action
from collm.errors import ConfigurationError
from collm.samplers.base import Episode, Sampler, SamplingPolicy
from collm.trajectory import Action


class Demonstrations(Sampler):
    """The environment's scripted demonstrators act; the policies only turn the text into tokens."""

    def check(self, environment: Environment, num_tasks: int, num_generations: int) -> None:
        """Refuse an environment that has nothing to show."""
        if type(environment).demonstrate is Environment.demonstrate:
            raise ConfigurationError(
                f"{type(environment).__name__} has no scripted demonstrations; choose another sampler."
            )

    def joint_actions(
        self,
        episodes: Sequence[Episode],
        policies: Mapping[str, SamplingPolicy],
        generator: torch.Generator,
        greedy: bool,
    ) -> list[dict[str, Action]]:
        joint = []
        for episode in episodes:
            texts = episode.environment.demonstrate(episode.state, episode.rng)
            check_joint_action(episode.environment, texts)
            joint.append(
                {
                    agent_id: policy.encode_action(texts[agent_id], policy.prompt(*episode.history(agent_id)))
                    for agent_id, policy in policies.items()
                }
            )
        return joint
