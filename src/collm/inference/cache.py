"""Key/value caches that reserve room ahead, and rows of them put together anew.

The stock cache copies everything it holds for every new token; on small models and many rows that copy is most of the
time of decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

_RESERVED_TOKENS = 64


class ReservedLayer(DynamicLayer):
    """A cache layer whose keys and values are views into larger buffers, which grow by a half when full."""

    def __init__(self):
        super().__init__()
        self._buffers: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        stop = start + key_states.shape[-2]
        if self._buffers is None or self._buffers[0].shape[-2] < stop:
            old = (self.keys, self.values)
            self._reserve(key_states, value_states, len(key_states), stop)
            if start:
                for buffer, kept in zip(self._buffers, old, strict=True):
                    buffer[..., :start, :] = kept
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., start:stop, :] = new
        self.keys, self.values = (buffer[..., :stop, :] for buffer in self._buffers)
        return self.keys, self.values

    def attend(self, queries: Tensor, seen: Tensor, scale: float) -> Tensor:
        """What the newest token of each row reads, [R, H, G, D].

        Args:
            queries: Those that share a key next to each other, [R, H, G, D].
            seen: What is added to attention over the positions so far, [R, 1, 1, W].
            scale: What queries are multiplied by.
        """
        keys, values, seen = self.whole(seen)
        scores = torch.bmm(queries.flatten(0, 1), keys.flatten(0, 1).transpose(1, 2)).unflatten(0, queries.shape[:2])
        weights = torch.add(seen, scores, alpha=scale).softmax(-1)
        return torch.bmm(weights.flatten(0, 1), values.flatten(0, 1)).unflatten(0, queries.shape[:2])

    def whole(self, seen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The buffers, [R, H, W or more, D], and `seen` [R, 1, 1, W] with what lies behind left out.

        A processor reads many rows up to three times faster as a whole than with a gap after each.
        """
        keys, values = self._buffers
        gap = keys.shape[2] - self.get_seq_length()
        return keys, values, F.pad(seen, (0, gap), value=torch.finfo(seen.dtype).min)

    def fill(self, parts: Sequence[tuple[DynamicLayer, Tensor, Tensor, Tensor]], rows: int, length: int) -> None:
        """Hold `rows` rows of `length` positions from other layers.

        Args:
            parts: A layer, the rows taken from it [n], the positions taken from each [n, length], and where the rows
                go, [n].
            rows: How many rows there are.
            length: How many positions each has.
        """
        like = parts[0][0]
        self.lazy_initialization(like.keys, like.values)
        self._reserve(like.keys, like.values, rows, length)
        self.keys, self.values = (buffer[..., :length, :] for buffer in self._buffers)
        for layer, chosen, columns, places in parts:
            for own, other in ((self.keys, layer.keys), (self.values, layer.values)):
                own[places] = other[chosen[:, None], :, columns].transpose(1, 2)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._buffers = None  # made again, with room, at the next update

    def _reserve(self, keys: Tensor, values: Tensor, rows: int, length: int) -> None:
        room = length + max(_RESERVED_TOKENS, length // 2)
        # zeros, as what nobody has written yet must be finite
        self._buffers = tuple(like.new_zeros((rows, like.shape[1], room, like.shape[3])) for like in (keys, values))


@dataclass(frozen=True)
class Rows:
    """Rows of key/value states.

    Args:
        cache: The states, of R rows and W positions.
        mask: True at the positions that count, [R, W].
    """

    cache: DynamicCache
    mask: Tensor


def make_cache(config: PretrainedConfig) -> DynamicCache:
    """The cache of a model; plain attention layers reserve room, layers of other kinds are as transformers has them."""
    cache = DynamicCache(config=config)
    cache.layers = [ReservedLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def is_plain(cache: DynamicCache) -> bool:
    """Whether every layer keeps every position, so that its rows can be put together anew."""
    return all(type(layer) is ReservedLayer for layer in cache.layers)


def join_rows(parts: Sequence[tuple[Rows, Tensor, Tensor]]) -> Rows:
    """Copies of rows from several places, aligned at their last position, without the positions that do not count.

    Args:
        parts: Rows, the indices of those that are taken [n], and where they go [n]; together all from 0 on.
    """
    taken = [rows.mask[chosen] for rows, chosen, _ in parts]
    number, width = sum(map(len, taken)), max(int(mask.sum(1).max()) for mask in taken)
    joined = taken[0].new_zeros(number, width)
    columns = []
    for mask, (_, _, places) in zip(taken, parts, strict=True):
        # stable, so that the positions that count come last and in order; where a row has too few, its first one is
        # repeated, so that what is masked is at least finite
        order = mask.int().argsort(dim=1, stable=True)[:, -width:]
        columns.append(torch.cat([order[:, :1].expand(-1, width - order.shape[1]), order], dim=1))
        joined[places] = torch.arange(width, device=mask.device) >= width - mask.sum(1, keepdim=True)
    cache = DynamicCache()
    for index in range(len(parts[0][0].cache.layers)):
        layer = ReservedLayer()
        layer.fill(
            [
                (rows.cache.layers[index], chosen, where, places)
                for (rows, chosen, places), where in zip(parts, columns, strict=True)
            ],
            number,
            width,
        )
        cache.layers.append(layer)
    return Rows(cache, joined)
