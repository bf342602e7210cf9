"""What the methods without a critic share: Monte-Carlo returns against a baseline (arXiv 2601.21972, equation 1).

    grad J(theta_i) = E[ sum_t rho_{i,t} grad log pi_i(a_{i,t} | h_{i,t}) ( G_t - b_t ) ]        (1)
    G_t             = r_t + gamma G_{t+1}

They differ by `baseline` alone, and K is `data.num_generations`. A group is what the baseline compares:

    independent episodes   the K episodes of a task, turn by turn, whatever happened before
    a rollout tree         the joint actions drawn at one node, after the same history; G of a joint action is the mean
                           over its continuations, r_t + gamma mean(G of the children)
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
        num_generations: Size of a group; it comes from `data.num_generations`.
        group_standardize: Divide advantages by the standard deviation of their group, as GRPO does. With it the
            relatives of MAGRPO are nearly the same method.
        kwargs: Everything that algorithms share.
    """

    min_generations = 2  # a group of one is no group

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
            What is subtracted from `returns`, [B, T].
        """
        raise TypeError(f"{type(self).__name__} must say what its baseline is")

    def advantages(self, returns: Tensor, groups: Tensor, turn_mask: Tensor) -> Tensor:
        """G_t - b_t, in units of the group's standard deviation where asked for, [B, T]."""
        advantages = returns - self.baseline(returns, groups, turn_mask)
        return group_standardize(advantages, groups, turn_mask) if self.group_standardize else advantages

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> None:
        returns = discounted_returns(batch.rewards, batch.turn_mask, self.discount)  # G_t, [B, T]
        if batch.tree is None:
            advantages = self.advantages(returns, batch.groups, batch.turn_mask)
        else:  # every joint action is a row of its own, [M, 1], and its siblings are its group
            tree = batch.tree
            nodes = node_returns(returns, tree.nodes, tree.weights, batch.turn_mask)[:, None]
            everywhere = torch.ones_like(nodes, dtype=torch.bool)
            advantages = self.advantages(nodes, tree.siblings, everywhere)[tree.nodes, 0]
        shared = self.shape_advantages(advantages, batch.turn_mask)
        self.update_policies(batch, dict.fromkeys(self.agent_ids, shared))  # (1)
