"""A key/value cache whose rows continue shared ones: the states of a common beginning exist once, and are read once.

The generations of a task share its prompt, and the paths of a rollout tree all turns before they part. Copied for every
row, these states are most of the memory that a decoding step of a small model reads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from collm.inference.embedded.cache import ReservedLayer, Rows, states_of


class SharedPrefixCache(DynamicCache):
    """Key/value states of new tokens, and of the prefixes that their rows continue.

    Args:
        prefixes: States of P rows and W positions.
        parents: Index of the prefix that each row continues, [R].
    """

    def __init__(self, prefixes: DynamicCache, parents: Tensor):
        super().__init__()
        self.prefixes = prefixes
        self.own = [_empty(layer, len(parents)) for layer in prefixes.layers]
        self.layers = [*self.own]
        self._num_prefixes = len(states_of(prefixes.layers[0])[0])
        self._arrange(parents)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._arrange(self.parents[indices])

    def _arrange(self, parents: Tensor) -> None:
        """Give every row a slot beside the rows of the same prefix, in a table [P, most rows of a prefix]."""
        self.parents = parents
        counts = parents.bincount(minlength=self._num_prefixes)
        order, numbers = parents.argsort(stable=True), torch.arange(len(parents), device=parents.device)
        slots = torch.empty_like(parents)
        slots[order] = numbers - (counts.cumsum(0) - counts)[parents[order]]
        self.most = int(counts.max())
        slots += parents * self.most
        in_order = len(parents) == len(counts) * self.most and bool((slots == numbers).all())
        self._slots = None if in_order else slots

    def attend(self, index: int, queries: Tensor, bias: Tensor, scale: float) -> Tensor:
        """Attention outputs at the newest token of each row, [R, H, G, D].

        Args:
            index: Number of the layer.
            queries: Queries that share a key are adjacent, [R, H, G, D].
            bias: Number added to the scores at the positions of the prefix and the new ones, [R, 1, 1, W + S].
            scale: Factor of the scores.
        """
        prefix_keys, prefix_values = states_of(self.prefixes.layers[index])
        queries = queries * scale
        prefix_scores = self._by_row(self._by_prefix(queries) @ prefix_keys.transpose(2, 3), queries.shape[2])
        keys, values, bias = self.own[index].buffers(bias)
        own_scores = queries @ keys.transpose(2, 3)
        weights = (torch.cat([prefix_scores, own_scores], dim=-1) + bias).softmax(-1)
        of_prefix, of_own = weights.split([prefix_scores.shape[-1], own_scores.shape[-1]], dim=-1)
        return self._by_row(self._by_prefix(of_prefix) @ prefix_values, queries.shape[2]) + of_own @ values

    def _by_prefix(self, by_row: Tensor) -> Tensor:
        """Rows of a prefix next to each other: [R, H, G, E] to [P, H, most * G, E]."""
        num_heads, group, size = by_row.shape[1:]
        if self._slots is not None:
            table = by_row.new_zeros(self._num_prefixes * self.most, num_heads, group, size)
            by_row = table.index_copy(0, self._slots, by_row)
        return by_row.view(-1, self.most, num_heads, group, size).transpose(1, 2).flatten(2, 3)

    def _by_row(self, by_prefix: Tensor, group: int) -> Tensor:
        """The inverse of `_by_prefix`, with `group` queries to a row."""
        by_row = by_prefix.unflatten(2, (self.most, group)).transpose(1, 2).flatten(0, 1)
        return by_row if self._slots is None else by_row.index_select(0, self._slots)


def expand_rows(rows: Rows, chosen: Tensor) -> tuple[Rows, Tensor]:
    """Rows that hold all of their positions themselves, and the indices of `chosen` [n] among them."""
    if not isinstance(rows.cache, SharedPrefixCache):
        return rows, chosen
    cache, parents = DynamicCache(), rows.cache.parents[chosen]
    for prefix, own in zip(rows.cache.prefixes.layers, rows.cache.layers, strict=True):
        layer = ReservedLayer()
        layer.lazy_initialization(*states_of(own))
        layer.keys, layer.values = (
            torch.cat([before[parents], new[chosen]], dim=2)
            for before, new in zip(states_of(prefix), states_of(own), strict=True)
        )
        cache.layers.append(layer)
    return Rows(cache, rows.mask[chosen]), torch.arange(len(chosen), device=chosen.device)


def _empty(like: Any, rows: int) -> ReservedLayer:
    layer, states = ReservedLayer(), states_of(like)
    layer.lazy_initialization(*states)
    layer.keys, layer.values = (part.new_empty(rows, part.shape[1], 0, part.shape[3]) for part in states)
    return layer
