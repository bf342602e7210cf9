"""The set of tokens from which each token of a response was sampled, in a compact form.

Top-p, top-k and a minimum length restrict sampling to a subset of the vocabulary. The policy that acts is the
restricted one, and so is the log-probability in its gradient: log pi(a) - log sum_{v in set} pi(v), with the set of the
time of sampling. The set cannot be computed again later: with other rounding or weights, other tokens are in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class SamplingMask:
    """The set from which each of L tokens was sampled: the token ids in it or, if these are fewer, those not in it.

    Args:
        ids: Token ids of all sets, concatenated, int32, [K].
        counts: For n > 0, the set consists of the next n ids; for n <= 0, of all tokens but the next -n, so 0 is the
            complete vocabulary. int64, [L].
    """

    ids: Tensor
    counts: Tensor

    def __len__(self) -> int:
        return len(self.counts)

    @classmethod
    def of(cls, kept: Tensor) -> SamplingMask:
        """The sets given by a mask [L, V] that is True at their tokens; every set has at least one."""
        sizes = kept.sum(1)
        by_kept = sizes <= kept.shape[1] // 2
        ids = (kept == by_kept[:, None]).nonzero()[:, 1].to(torch.int32)
        return cls(ids, torch.where(by_kept, sizes, sizes - kept.shape[1]))

    @classmethod
    def without(cls, ids: Tensor, length: int) -> SamplingMask:
        """`length` tokens that were sampled from the vocabulary without `ids`, [K]."""
        return cls(ids.to(torch.int32).repeat(length), torch.full((length,), -len(ids), device=ids.device))

    @classmethod
    def uncut(cls, length: int) -> SamplingMask:
        """`length` tokens that were sampled from the complete vocabulary."""
        return cls.without(torch.zeros(0), length)

    @classmethod
    def join(cls, masks: Sequence[SamplingMask]) -> SamplingMask:
        """The concatenation of `masks`."""
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
        """Consecutive parts with these numbers of tokens."""
        counts = self.counts.split(list(sizes))
        ids = self.ids.split([int(part.abs().sum()) for part in counts])
        return [SamplingMask(*part) for part in zip(ids, counts, strict=True)]

    def dense(self, vocabulary_size: int) -> Tensor:
        """The mask of `of`: True at the tokens of each set, [L, V]."""
        by_kept = self.counts > 0
        kept = (~by_kept)[:, None].repeat(1, vocabulary_size)
        sizes = self.counts.abs()
        rows = torch.arange(len(sizes), device=sizes.device).repeat_interleave(sizes)
        kept[rows, self.ids.long()] = by_kept[rows]
        return kept

    def to(self, device: torch.device | str) -> SamplingMask:
        """The sets on `device`."""
        return SamplingMask(self.ids.to(device), self.counts.to(device))
