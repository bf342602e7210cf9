"""Rows that go on from the states of others: what they share is held once, and read once for all of them.

The generations of a task share its prompt, the branches of a rollout tree all that was said before they part. Copied
for every row, these states are most of what a decoding step of a small model reads.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import DynamicCache

from collm.inference.cache import ReservedLayer, Rows


class BranchedCache(DynamicCache):
    """Key/value states of new tokens, and those of the rows that they go on from.

    Args:
        trunk: What is shared: states of P rows and W positions.
        parents: The row of the trunk that each row goes on from, [R].
    """

    def __init__(self, trunk: DynamicCache, parents: Tensor):
        super().__init__()
        self.trunk = trunk
        self.layers = [_empty(layer, len(parents)) for layer in trunk.layers]
        self._go_on_from(parents)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._go_on_from(self.parents[indices])

    def _go_on_from(self, parents: Tensor) -> None:
        """Give every row a place beside those that share its beginning, [P, most of them]."""
        self.parents = parents
        counts = parents.bincount(minlength=len(self.trunk.layers[0].keys))
        order, numbers = parents.argsort(stable=True), torch.arange(len(parents), device=parents.device)
        places = torch.empty_like(parents)
        places[order] = numbers - (counts.cumsum(0) - counts)[parents[order]]
        self.most = int(counts.max())
        places += parents * self.most
        in_order = len(parents) == len(counts) * self.most and bool((places == numbers).all())
        self._places = None if in_order else places

    def attend(self, number: int, queries: Tensor, seen: Tensor, scale: float) -> Tensor:
        """What the newest token of each row reads, [R, H, G, D].

        Args:
            number: Which layer.
            queries: Those that share a key next to each other, [R, H, G, D].
            seen: What is added to attention over the positions of the trunk and the new ones, [R, 1, 1, W + S].
            scale: What queries are multiplied by.
        """
        shared, own = self.trunk.layers[number], self.layers[number]
        queries = queries * scale
        far = self._apart(self._together(queries) @ shared.keys.transpose(2, 3), queries.shape[2])
        keys, values, seen = own.whole(seen)
        near = queries @ keys.transpose(2, 3)
        weights = (torch.cat([far, near], dim=-1) + seen).softmax(-1)
        far, near = weights.split([far.shape[-1], near.shape[-1]], dim=-1)
        return self._apart(self._together(far) @ shared.values, queries.shape[2]) + near @ values

    def _together(self, by_row: Tensor) -> Tensor:
        """Rows that share their beginning side by side, [R, H, G, E] to [P, H, most of them * G, E]."""
        num_heads, group, size = by_row.shape[1:]
        if self._places is not None:
            everywhere = by_row.new_zeros(len(self.trunk.layers[0].keys) * self.most, num_heads, group, size)
            by_row = everywhere.index_copy(0, self._places, by_row)
        return by_row.view(-1, self.most, num_heads, group, size).transpose(1, 2).flatten(2, 3)

    def _apart(self, together: Tensor, group: int) -> Tensor:
        """The inverse of `_together`, with `group` queries to a row."""
        by_row = together.unflatten(2, (self.most, group)).transpose(1, 2).flatten(0, 1)
        return by_row if self._places is None else by_row.index_select(0, self._places)


def unfolded(rows: Rows, chosen: Tensor) -> tuple[Rows, Tensor]:
    """Rows each of which has all that it has read, and which of them are those `chosen` [n] of `rows`."""
    if not isinstance(rows.cache, BranchedCache):
        return rows, chosen
    cache, parents = DynamicCache(), rows.cache.parents[chosen]
    for shared, own in zip(rows.cache.trunk.layers, rows.cache.layers, strict=True):
        layer = ReservedLayer()
        layer.lazy_initialization(own.keys, own.values)
        layer.keys = torch.cat([shared.keys[parents], own.keys[chosen]], dim=2)
        layer.values = torch.cat([shared.values[parents], own.values[chosen]], dim=2)
        cache.layers.append(layer)
    return Rows(cache, rows.mask[chosen]), torch.arange(len(chosen), device=chosen.device)


def _empty(like: ReservedLayer, rows: int) -> ReservedLayer:
    layer = ReservedLayer()
    layer.lazy_initialization(like.keys, like.values)
    shape = (rows, like.keys.shape[1], 0, like.keys.shape[3])
    layer.keys, layer.values = like.keys.new_empty(shape), like.values.new_empty(shape)
    return layer
