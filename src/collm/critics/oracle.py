"""A critic with exact values, for environments that can compute them."""

from __future__ import annotations

import torch
from torch import Tensor

from collm.critics.base import Critic
from collm.errors import ConfigurationError
from collm.trajectory import RolloutBatch


class OracleCritic(Critic):
    """Exact values of the joint history, or of the local history for a critic of one agent.

    It needs `data.sampler: collm.studies.oracle_sampler.Oracle` and an environment that implements `values`, such as
    `Relay`. Comparing an algorithm with and without this critic shows how much critic error costs.
    """

    def knows(self, batch: RolloutBatch) -> bool:
        return all(turn.values for trajectory in batch.trajectories for turn in trajectory.turns)

    def values(self, batch: RolloutBatch) -> Tensor:
        key = "team" if self.centralized else self.agent_ids[0]
        values = torch.zeros_like(batch.rewards)
        for row, trajectory in enumerate(batch.trajectories):
            for index, turn in enumerate(trajectory.turns):
                if key not in turn.values:
                    raise ConfigurationError(
                        "OracleCritic needs exact values, which the episodes do not hold; set data.sampler to "
                        "collm.studies.oracle_sampler.Oracle."
                    )
                values[row, index] = turn.values[key]
        return values

    def update(self, batch: RolloutBatch, values: Tensor, targets: Tensor) -> None:
        """Do nothing: the values are exact."""
