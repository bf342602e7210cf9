"""A critic that has nothing left to learn: it knows the exact values of histories, where the environment does."""

from __future__ import annotations

import torch
from torch import Tensor

from collm.critics.base import Critic
from collm.errors import ConfigurationError
from collm.trajectory import RolloutBatch


class OracleCritic(Critic):
    """Exact values of the joint history, or of an agent's own where it belongs to one agent.

    It needs `data.sampler: collm.studies.oracle_sampler.Oracle` and an environment that knows values, such as `Relay`.
    The distance between a method and the same method with this critic is what the critic of that method has yet to
    learn.
    """

    def values(self, batch: RolloutBatch) -> Tensor:
        key = "team" if self.centralized else self.agent_ids[0]
        values = torch.zeros_like(batch.rewards)
        for row, trajectory in enumerate(batch.trajectories):
            for index, turn in enumerate(trajectory.turns):
                if key not in turn.values:
                    raise ConfigurationError(
                        "the episodes say nothing of what their histories are worth; set data.sampler to "
                        "collm.studies.oracle_sampler.Oracle."
                    )
                values[row, index] = turn.values[key]
        return values

    def update(self, batch: RolloutBatch, values: Tensor, targets: Tensor) -> None:
        """Nothing: the values are exact."""
