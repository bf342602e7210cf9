"""Which tokens of the vocabulary each token of a response was drawn from, kept small.

Top-p, top-k and a shortest length cut the distribution that is sampled. The policy that acts is the one that was cut,
so its log-probabilities are needed for its gradient: log pi(a) - log sum_{v in kept set} pi(v), with the set that was
kept while sampling. A threshold would not do: near it, other rounding or other weights keep other tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class SamplingMask:
    """The set each of L tokens was drawn from, as token ids: those that were kept or, where fewer, those that were cut.

    Args:
        ids: Token ids of all sets, one set after the other, int32, [K].
        counts: Size of each set; n > 0: the token was drawn from the next n ids; n <= 0: from all but the next -n, so
            that 0 stands for the whole vocabulary. int64, [L].
    """

    ids: Tensor
    counts: Tensor

    def __len__(self) -> int:
        return len(self.counts)

    @classmethod
    def of(cls, kept: Tensor) -> SamplingMask:
        """The sets of a mask that is True at kept tokens, [L, V]; each row keeps at least one."""
        sizes = kept.sum(1)
        by_kept = sizes <= kept.shape[1] // 2
        listed = torch.where(by_kept[:, None], kept, ~kept)
        ids = listed.nonzero()[:, 1].to(torch.int32)
        return cls(ids, torch.where(by_kept, sizes, sizes - kept.shape[1]))

    @classmethod
    def uncut(cls, length: int) -> SamplingMask:
        """Tokens that were drawn from the whole vocabulary."""
        return cls(torch.zeros(0, dtype=torch.int32), torch.zeros(length, dtype=torch.long))

    @classmethod
    def join(cls, masks: Sequence[SamplingMask]) -> SamplingMask:
        """The sets of all `masks`, one after the other."""
        if not masks:
            return cls.uncut(0)
        return cls(torch.cat([mask.ids for mask in masks]), torch.cat([mask.counts for mask in masks]))

    def take(self, index: Tensor) -> SamplingMask:
        """The sets at these positions, [M], or where this mask [L] is True."""
        if index.dtype == torch.bool:
            index = index.nonzero().squeeze(1)
        sizes = self.counts.abs()
        starts, taken = sizes.cumsum(0) - sizes, sizes[index]
        shifts = starts[index] - (taken.cumsum(0) - taken)
        positions = torch.arange(int(taken.sum()), device=self.ids.device) + shifts.repeat_interleave(taken)
        return SamplingMask(self.ids[positions], self.counts[index])

    def split(self, sizes: Sequence[int]) -> list[SamplingMask]:
        """The sets in parts of these lengths."""
        counts = self.counts.split(list(sizes))
        ids = self.ids.split([int(part.abs().sum()) for part in counts])
        return [SamplingMask(*part) for part in zip(ids, counts, strict=True)]

    def dense(self, vocabulary_size: int) -> Tensor:
        """True at kept tokens, [L, V]."""
        by_kept = self.counts > 0
        kept = (~by_kept)[:, None].repeat(1, vocabulary_size)
        sizes = self.counts.abs()
        rows = torch.arange(len(sizes), device=sizes.device).repeat_interleave(sizes)
        kept[rows, self.ids.long()] = by_kept[rows]
        return kept

    def to(self, device: torch.device | str) -> SamplingMask:
        """The sets on `device`."""
        return SamplingMask(self.ids.to(device), self.counts.to(device))
