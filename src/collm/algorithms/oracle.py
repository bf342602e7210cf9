"""CoLLM-CC and CoLLM-DC with values that are known instead of learned: how far a perfect critic would get.

The advantages are those of equations 4 (the joint history) and 2 (each agent's own) of arXiv 2601.21972, with V(h_t)
and V_i(h_{i,t}) as the sampler `Oracle` noted them. There is no critic, and what is left of the distance between a
method and this line is what its critic has yet to learn.
"""

from __future__ import annotations

from typing import Literal

import torch

from collm.algorithms.base import MultiAgentModule
from collm.checks import SHARE, check_numbers
from collm.collectives import on_all_rows
from collm.errors import ConfigurationError
from collm.returns import discounted_returns, explained_variance, generalized_advantages
from collm.trajectory import RolloutBatch


class OracleActorCritic(MultiAgentModule):
    """Agents that learn from the temporal-difference errors of values that the environment knows.

    It needs `data.sampler: collm.samplers.oracle.Oracle` and an environment that knows values, such as `Relay`.

    Args:
        reads: `joint`: the value of the joint history, one for all agents, as in CoLLM-CC. `local`: of each agent's own
            history, as in CoLLM-DC.
        gae_lambda: Trace decay of advantages: 0 is the one-step TD error, 1 the Monte-Carlo return less the value.
        kwargs: Everything that algorithms share.
    """

    def __init__(self, reads: Literal["joint", "local"] = "joint", gae_lambda: float = 0.0, **kwargs):
        super().__init__(**kwargs)
        self.reads = reads
        self.gae_lambda = gae_lambda
        check_numbers("model", self, gae_lambda=SHARE)

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> None:
        returns = discounted_returns(batch.rewards, batch.turn_mask, self.discount)
        shaped = {}
        for agent_id in self.agent_ids:
            name = "team" if self.reads == "joint" else agent_id
            values = noted_values(batch, name)  # V(h_t), or V_i(h_{i,t}), [B, T]
            advantages = generalized_advantages(
                batch.rewards, values, batch.turn_mask, self.discount, self.gae_lambda
            )  # delta of (4) or (2) at gae_lambda 0
            shaped[agent_id] = self.shape_advantages(advantages, batch.turn_mask)
            critic = "critic" if name == "team" else f"critic/{name}"
            self.log(f"{critic}/explained_variance", on_all_rows(explained_variance, values, returns, batch.turn_mask))
        self.update_policies(batch, shaped)


def noted_values(batch: RolloutBatch, name: str) -> torch.Tensor:
    """What the sampler noted for the reader `name`, 0 where no turn was played, [B, T]."""
    values = torch.zeros_like(batch.rewards)
    for row, trajectory in enumerate(batch.trajectories):
        for turn, played in enumerate(trajectory.turns):
            if name not in played.values:
                raise ConfigurationError(
                    "the episodes say nothing of what their histories are worth; set data.sampler to "
                    "collm.samplers.oracle.Oracle."
                )
            values[row, turn] = played.values[name]
    return values
