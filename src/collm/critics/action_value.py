"""Joint histories for a critic that gives V(h_t) before each joint action and Q(h_t, a_t) after it, in one pass."""

from __future__ import annotations

from collections.abc import Sequence

from collm.critics.histories import HistoryEncoder, rows_of_blocks
from collm.packing import TokenSequence
from collm.trajectory import Trajectory


class ActionValueEncoder(HistoryEncoder):
    """Scores every turn before its joint action (V, index 0) and after it (Q, index 1); see `HistoryEncoder`."""

    @property
    def num_kinds(self) -> int:
        return 2

    def encode(self, trajectories: Sequence[Trajectory]) -> list[TokenSequence]:
        sequences = []
        for row, trajectory in enumerate(trajectories):
            blocks = []
            for index in range(len(trajectory.turns)):
                blocks.append(self.tokens(self.before_actions(trajectory, index)))
                blocks.append(self.actions(trajectory, index))
            sequences.extend(rows_of_blocks(row, blocks, [[] for _ in blocks], self.max_tokens))
        return sequences
