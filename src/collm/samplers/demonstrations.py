"""Scripted joint actions of the environment instead of sampled ones, for behaviour cloning."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from collm.environments.base import Environment
from collm.environments.contract import check_joint_action
from collm.errors import ConfigurationError
from collm.samplers.base import Actors, Episode, Sampler
from collm.trajectory import Action


class Demonstrations(Sampler):
    """The environment's scripted demonstrators act; the policies only tokenize their texts."""

    scripted = True
    runs_free = False  # environments are asked in one thread

    def check(self, environment: Environment, num_tasks: int, num_generations: int) -> None:
        """Refuse an environment without demonstrations."""
        if type(environment).demonstrate is Environment.demonstrate:
            raise ConfigurationError(
                f"{type(environment).__name__} has no scripted demonstrations; choose another sampler."
            )

    def joint_actions(
        self, episodes: Sequence[Episode], actors: Actors, generator: torch.Generator, greedy: bool
    ) -> list[dict[str, Action]]:
        joint = []
        for episode in episodes:
            texts = episode.environment.demonstrate(episode.state, episode.rng)
            check_joint_action(episode.environment, texts)
            joint.append(
                {
                    agent_id: actors.encode_action(agent_id, texts[agent_id], prompt)
                    for agent_id in actors.policies
                    for prompt in [actors.prompt(agent_id, *episode.history(agent_id))]
                }
            )
        return joint
