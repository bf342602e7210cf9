"""Key/value caches that reserve memory ahead, and rows of them joined into new ones.

The cache of transformers copies everything it holds for every new token; on small models and many rows that copy is
most of the time of decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
        buffers = self._buffers
        if buffers is None or buffers[0].shape[-2] < stop:
            buffers = self._reserve(key_states, value_states, len(key_states), stop)
            if start:
                for buffer, kept in zip(buffers, states_of(self), strict=True):
                    buffer[..., :start, :] = kept
        for buffer, new in zip(buffers, (key_states, value_states), strict=True):
            buffer[..., start:stop, :] = new
        self.keys, self.values = (buffer[..., :stop, :] for buffer in buffers)
        return states_of(self)

    def attend(self, queries: Tensor, bias: Tensor, scale: float) -> Tensor:
        """Attention outputs at the newest token of each row, [R, H, G, D].

        Args:
            queries: Queries that share a key are adjacent, [R, H, G, D].
            bias: Number added to the scores at the positions so far, [R, 1, 1, W].
            scale: Factor of the scores.
        """
        keys, values, bias = self.buffers(bias)
        scores = torch.bmm(queries.flatten(0, 1), keys.flatten(0, 1).transpose(1, 2)).unflatten(0, queries.shape[:2])
        weights = torch.add(bias, scores, alpha=scale).softmax(-1)
        return torch.bmm(weights.flatten(0, 1), values.flatten(0, 1)).unflatten(0, queries.shape[:2])

    def buffers(self, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The buffers, [R, H, W or more, D], and `bias` [R, 1, 1, W] extended so that unused positions are masked.

        A processor reads a contiguous buffer of many rows up to three times faster than slices with gaps.
        """
        assert self._buffers is not None, "attention comes after the first update"
        keys, values = self._buffers
        gap = keys.shape[2] - self.get_seq_length()
        return keys, values, F.pad(bias, (0, gap), value=torch.finfo(bias.dtype).min)

    def fill(self, parts: Sequence[tuple[Any, Tensor, Tensor, Tensor]], rows: int, length: int) -> None:
        """Copy rows from other layers.

        Args:
            parts: A layer, the rows to copy [n], the positions to copy of each [n, length], and the rows here that
                receive them, [n].
            rows: Number of rows.
            length: Number of positions of each row.
        """
        like = states_of(parts[0][0])
        self.lazy_initialization(*like)
        self.keys, self.values = (buffer[..., :length, :] for buffer in self._reserve(*like, rows, length))
        for layer, chosen, columns, targets in parts:
            for own, other in zip(states_of(self), _stored(layer), strict=True):
                _, heads, width, size = other.shape
                first = chosen[:, None] * heads + torch.arange(heads, device=chosen.device)  # [n, H]
                vectors = first[:, :, None] * width + columns[:, None]  # in [R H W, D]; indexing [R, H, W, D] is slow
                copies = other.reshape(-1, size).index_select(0, vectors.flatten())
                own.index_copy_(0, targets, copies.view(*vectors.shape, size))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._buffers = None  # allocated again, with reserve, at the next update

    def _reserve(self, keys: Tensor, values: Tensor, rows: int, length: int) -> tuple[Tensor, Tensor]:
        capacity = length + max(_RESERVED_TOKENS, length // 2)
        # zeros, because unused positions must be finite
        new_keys, new_values = (like.new_zeros(rows, like.shape[1], capacity, like.shape[3]) for like in (keys, values))
        self._buffers = (new_keys, new_values)
        return self._buffers


def _stored(layer: Any) -> tuple[Tensor, Tensor]:
    """Keys and values of a layer with unused positions behind them, contiguous for `ReservedLayer`, [R, H, W', D]."""
    return getattr(layer, "_buffers", None) or states_of(layer)


def states_of(layer: Any) -> tuple[Tensor, Tensor]:
    """Keys and values of a layer that holds some, whatever its class, [R, H, W, D]."""
    return layer.keys, layer.values


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of key/value states.

    Args:
        cache: The states, of R rows and W positions.
        mask: True at tokens, False at padding, [R, W].
    """

    cache: DynamicCache
    mask: Tensor


def make_cache(config: PretrainedConfig) -> DynamicCache:
    """An empty cache for a model; layers with windows or other states are those of transformers."""
    cache = DynamicCache(config=config)
    cache.layers = [ReservedLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def join_rows(parts: Sequence[tuple[Rows, Tensor, Tensor]]) -> Rows:
    """Copies of rows of several states, aligned at their last token, without padding between tokens.

    Args:
        parts: Rows, the indices of those that are copied [n], and their indices in the result [n]; together all from
            0 on.
    """
    masks = [rows.mask[chosen] for rows, chosen, _ in parts]
    num_rows, width = sum(map(len, masks)), max(int(mask.sum(1).max()) for mask in masks)
    joined = masks[0].new_zeros(num_rows, width)
    columns = []
    for mask, (_, _, targets) in zip(masks, parts, strict=True):
        # stable, so that tokens come last and in order; a row with fewer tokens repeats its first position, so that
        # what is masked is finite
        order = mask.int().argsort(dim=1, stable=True)[:, -width:]
        columns.append(torch.cat([order[:, :1].expand(-1, width - order.shape[1]), order], dim=1))
        joined[targets] = torch.arange(width, device=mask.device) >= width - mask.sum(1, keepdim=True)
    cache = DynamicCache()
    for index in range(len(parts[0][0].cache.layers)):
        layer = ReservedLayer()
        layer.fill(
            [
                (rows.cache.layers[index], chosen, positions, targets)
                for (rows, chosen, targets), positions in zip(parts, columns, strict=True)
            ],
            num_rows,
            width,
        )
        cache.layers.append(layer)
    return Rows(cache, joined)
