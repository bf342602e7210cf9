"""Rollout trees: where a joint action stands in one, and the structure of several as tensors.

Dimension letters are those of `trajectory`, and M is the number of joint actions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Branch:
    """Position of a joint action in a rollout tree.

    Args:
        node: Number of the joint action, unique in its rollout; all paths through it hold the same number.
        parent: Number of the joint action before it, the same for its siblings; negative at the root of a task.
    """

    node: int
    parent: int


@dataclass(frozen=True)
class RolloutTree:
    """Structure of a batch whose trajectories are paths of rollout trees.

    Args:
        nodes: Joint action at each turn of each path, numbered from 0 to M - 1; 0 at turns not played, [B, T].
        siblings: Group of each joint action: those sampled after the same history, [M].
    """

    nodes: Tensor
    siblings: Tensor

    def to(self, device: torch.device) -> RolloutTree:
        """The tree with its tensors on `device`."""
        return RolloutTree(self.nodes.to(device), self.siblings.to(device))

    @classmethod
    def of(cls, paths: Sequence[Sequence[Branch]], width: int) -> RolloutTree:
        """The structure of rollout trees, given the joint actions of each path, with T = `width`."""
        distinct = list({branch.node: branch for path in paths for branch in path}.values())
        numbers = {branch.node: index for index, branch in enumerate(distinct)}
        nodes = torch.tensor([[numbers[b.node] for b in path] + [0] * (width - len(path)) for path in paths])
        return cls(nodes, torch.tensor([branch.parent for branch in distinct]))
