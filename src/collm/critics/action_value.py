"""A critic with two heads that reads V(h_t) before the actions of a turn and Q(h_t, a_t) after them, in one pass."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from collm.critics.language_model import Critic, chain
from collm.trajectory import TokenSequence, Trajectory


class QCritic(Critic):
    """V(h) and Q(h, a) over the histories of the agents it reads.

    Its values come in pairs: V(h_t) stands where other critics would have turn 2t, Q(h_t, a_t) where they would have
    turn 2t + 1, so that a batch of T turns has values [B, 2T].
    """

    values_per_turn = 2

    def choose(self, outputs: Tensor, turns: Tensor) -> Tensor:
        """The head of its kind at each scored position, [M, 2] and [M] -> [M]."""
        return outputs.gather(-1, turns[:, None] % 2).squeeze(-1)

    def encode(self, trajectories: Sequence[Trajectory]) -> list[TokenSequence]:
        """Histories as rows of tokens, scored before and after the joint action of every turn."""
        sequences = []
        for row, trajectory in enumerate(trajectories):
            blocks = []
            for index in range(len(trajectory.turns)):
                blocks.append(self.tokens(self.observed(trajectory, index)))
                blocks.append(self.acted(trajectory, index))
            sequences.extend(chain(row, blocks, [[] for _ in blocks], self.limit))
        return sequences
