"""One agent acts alone: what it can do without the others."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from collm.environments.base import Environment
from collm.runtime.checks import check_choice
from collm.samplers.base import Actors, Episode, Sampler
from collm.samplers.stand_ins import StandIns, saying
from collm.trajectory import Action


class Alone(Sampler):
    """One agent answers; the others write the same text in every turn, by default nothing.

    Args:
        agent_id: The agent that answers.
        others_write: What every other agent writes.
    """

    scripted = True

    def __init__(self, agent_id: str, others_write: str = ""):
        self.agent_id = agent_id
        self.others_write = others_write

    def check(self, environment: Environment, num_tasks: int, num_generations: int) -> None:
        """Refuse an agent that is not there."""
        check_choice("Alone.agent_id", self.agent_id, environment.agent_ids)

    def joint_actions(
        self, episodes: Sequence[Episode], actors: Actors, generator: torch.Generator, greedy: bool
    ) -> list[dict[str, Action]]:
        others = [agent_id for agent_id in actors.policies if agent_id != self.agent_id]
        sampler = StandIns(dict.fromkeys(others, saying(self.others_write)))
        return sampler.joint_actions(episodes, actors, generator, greedy)
