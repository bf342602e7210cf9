"""A replay buffer for critics: the histories of the last rollouts with their value targets.

Only critics learn from it. A policy gradient needs episodes of the current policy; a critic that regresses on returns
of slightly older policies is only slightly out of date.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from collm.packing import TokenSequence


@dataclass(frozen=True)
class Record:
    """Inputs and targets of a critic's regression; `TokenSequence.row` is the row in the tensors.

    Args:
        histories: Token sequences of the histories.
        values: Values before the update, [B, T], or [B, T K] for a critic with K values per turn.
        targets: Value targets, of the same shape.
        weights: Weight of each played turn, that of its trajectory, and 0 at turns not played, [B, T].
    """

    histories: Sequence[TokenSequence]
    values: Tensor
    targets: Tensor
    weights: Tensor


class ReplayBuffer:
    """The records of the last `size` rollouts of one critic."""

    def __init__(self, size: int):
        self.records: deque[Record] = deque(maxlen=size)

    def add(self, record: Record) -> None:
        """Add a record; a full buffer drops its oldest one."""
        self.records.append(record)

    def draw(self, num_rows: int) -> Record:
        """Sample `num_rows` trajectories without replacement, or take all if there are fewer."""
        total = sum(len(record.targets) for record in self.records)
        return self.take(torch.randperm(total)[:num_rows].sort().values.tolist())

    def take(self, rows: Sequence[int]) -> Record:
        """The trajectories at indices `rows`, counted over all records from the oldest on, as one record."""
        offsets = [0]
        for record in self.records:
            offsets.append(offsets[-1] + len(record.targets))
        position = {row: index for index, row in enumerate(rows)}
        histories = [
            replace(sequence, row=position[start + sequence.row])
            for start, record in zip(offsets, self.records, strict=False)
            for sequence in record.histories
            if start + sequence.row in position
        ]
        tensors = (
            _stacked([getattr(record, name) for record in self.records])[list(rows)]
            for name in ("values", "targets", "weights")
        )
        return Record(histories, *tensors)

    def state_dict(self) -> list[dict]:
        """The records as plain data and tensors."""
        return [
            {
                "histories": [(sequence.row, sequence.ids, sequence.turns) for sequence in record.histories],
                "tensors": [tensor.cpu() for tensor in (record.values, record.targets, record.weights)],
            }
            for record in self.records
        ]

    def load_state_dicts(self, states: Sequence[list[dict]], rank: int, num_ranks: int) -> None:
        """Replace the records by those of a checkpoint that belong to process `rank` of `num_ranks`.

        If the number of processes changed, the trajectories of each rollout are redistributed.

        Args:
            states: The result of `state_dict` of each process that wrote the checkpoint.
            rank: Index of this process.
            num_ranks: Number of processes of this run.
        """
        self.records.clear()
        if len(states) == num_ranks:
            states = [states[rank]]
            rank, num_ranks = 0, 1
        for rollout in zip(*states, strict=True):
            parts = ReplayBuffer(len(rollout))
            for part in rollout:
                parts.add(Record([TokenSequence(*sequence) for sequence in part["histories"]], *part["tensors"]))
            total = sum(len(record.targets) for record in parts.records)
            self.add(parts.take(range(rank, total, num_ranks)))


def _stacked(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate the rows of all parts on the device of the last one, padding shorter rows with 0."""
    width = max(part.shape[1] for part in parts)
    device = parts[-1].device
    return torch.cat([pad(part.to(device), (0, width - part.shape[1])) for part in parts])
