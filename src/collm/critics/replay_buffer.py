"""A replay buffer for critics: the histories of the last rollouts, with the targets they had.

Only critics learn from it. A policy gradient needs episodes of the policy as it is; a value that is regressed on
somewhat older returns is only somewhat old.
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
    """Histories and what a critic regresses on; rows of tokens refer to rows of the tensors.

    Args:
        histories: Rows of tokens.
        values: Values from before the critic learned from them, [B, T] (times the values per turn of the critic).
        targets: Targets, of the same shape.
        turn_mask: True at played turns, [B, T].
    """

    histories: Sequence[TokenSequence]
    values: Tensor
    targets: Tensor
    turn_mask: Tensor


class ReplayBuffer:
    """The records of the last `size` rollouts of one critic."""

    def __init__(self, size: int):
        self.records: deque[Record] = deque(maxlen=size)

    def add(self, record: Record) -> None:
        """Keep a record; the oldest one is dropped where there are more than `size`."""
        self.records.append(record)

    def draw(self, num_rows: int) -> Record:
        """A record of `num_rows` trajectories at random out of all that are kept, or of all where there are fewer."""
        total = sum(len(record.targets) for record in self.records)
        return self.take(torch.randperm(total)[:num_rows].sort().values.tolist())

    def take(self, rows: Sequence[int]) -> Record:
        """A record of some trajectories, counted through all that are kept from the oldest record on."""
        offsets = [0]
        for record in self.records:
            offsets.append(offsets[-1] + len(record.targets))
        place = {row: index for index, row in enumerate(rows)}
        histories = [
            replace(sequence, row=place[start + sequence.row])
            for start, record in zip(offsets, self.records, strict=False)
            for sequence in record.histories
            if start + sequence.row in place
        ]
        tensors = (
            _stacked([getattr(record, name) for record in self.records])[list(rows)]
            for name in ("values", "targets", "turn_mask")
        )
        return Record(histories, *tensors)

    def state_dict(self) -> list[dict]:
        """The records as plain data and tensors."""
        return [
            {
                "histories": [(sequence.row, sequence.ids, sequence.turns) for sequence in record.histories],
                "tensors": [tensor.cpu() for tensor in (record.values, record.targets, record.turn_mask)],
            }
            for record in self.records
        ]

    def load_state_dicts(self, states: Sequence[list[dict]], rank: int, num_ranks: int) -> None:
        """Keep what belongs to `rank` of `num_ranks` processes of what those of a checkpoint kept, in place of the own.

        As many processes go on with their own; others share out the trajectories of each rollout anew.
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
    """Rows of all parts, those of fewer turns padded with 0, on the device of the newest one."""
    width = max(part.shape[1] for part in parts)
    device = parts[-1].device
    return torch.cat([pad(part.to(device), (0, width - part.shape[1])) for part in parts])
