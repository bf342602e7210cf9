"""The base class of algorithms without a critic: Monte-Carlo returns minus a baseline (arXiv 2601.21972, equation 1).

    grad J(theta_i) = E[ sum_t rho_{i,t} grad log pi_i(a_{i,t} | h_{i,t}) ( G_t - b_t ) ]        (1)
    G_t             = r_t + gamma G_{t+1}

Subclasses differ in `baseline` only, and K is `data.num_generations`. The baseline compares the samples of a group:

    independent episodes   the K episodes of a task at the same turn; their histories may differ
    a rollout tree         the joint actions sampled at one node, after the same history; the return of a joint action
                           averages over its continuations, G = r_t + gamma mean(G of the children)
"""

from __future__ import annotations

import torch
from torch import Tensor

from collm.algorithms.base import MultiAgentModule
from collm.errors import ConfigurationError
from collm.returns import discounted_returns, group_standardize, node_returns
from collm.runtime.checks import COUNT, check_number
from collm.trajectory import RolloutBatch


class MonteCarlo(MultiAgentModule):
    """Agents that learn from the returns of a group of joint samples.

    Args:
        num_generations: Number of episodes in a group; the command line takes it from `data.num_generations`.
        group_standardize: Divide advantages by the standard deviation of returns in their group, as GRPO does. MAGRPO
            and MARLOO are then nearly the same algorithm.
        kwargs: Arguments of every algorithm; see `MultiAgentModule` and `Agents`.
    """

    min_generations = 2  # a baseline compares samples

    def __init__(self, num_generations: int = 2, group_standardize: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.group_standardize = group_standardize
        if check_number("data.num_generations", num_generations, COUNT) < self.min_generations:
            raise ConfigurationError(
                f"data.num_generations is {num_generations}, but {type(self).__name__} compares the joint samples of a "
                f"group; set it to {self.min_generations} or more, or use MAREINFORCE, which has no baseline."
            )

    def baseline(self, returns: Tensor, groups: Tensor, turn_mask: Tensor) -> Tensor:
        """b_t of (1).

        Args:
            returns: G_t, [B, T].
            groups: Group of each row, [B].
            turn_mask: True at played turns, [B, T].

        Returns:
            The baseline that is subtracted from `returns`, [B, T].
        """
        raise TypeError(f"{type(self).__name__} must implement baseline")

    def advantages(self, returns: Tensor, groups: Tensor, turn_mask: Tensor) -> Tensor:
        """G_t - b_t, [B, T]; with `group_standardize`, in units of the group's standard deviation."""
        advantages = returns - self.baseline(returns, groups, turn_mask)
        return group_standardize(advantages, groups, turn_mask) if self.group_standardize else advantages

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> None:
        returns = discounted_returns(batch.rewards, batch.turn_mask, self.discount)  # G_t, [B, T]
        if batch.tree is None:
            advantages = self.advantages(returns, batch.groups, batch.turn_mask)
        else:  # M joint actions as rows, [M, 1]; the siblings of a joint action are its group
            tree = batch.tree
            nodes = node_returns(returns, tree.nodes, batch.weights, batch.turn_mask)[:, None]
            all_played = torch.ones_like(nodes, dtype=torch.bool)
            advantages = self.advantages(nodes, tree.siblings, all_played)[tree.nodes, 0]
        shared = self.shape_advantages(advantages, batch.turn_mask, batch.weights)
        self.update_policies(batch, dict.fromkeys(self.agent_ids, shared))  # (1)
