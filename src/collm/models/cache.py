"""A key/value cache that reserves room ahead.

The stock cache copies everything it holds for every new token; on small models and many rows that copy is most of the
time of decoding.
"""

from __future__ import annotations

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
            shape = (*key_states.shape[:-2], stop + max(_RESERVED_TOKENS, stop // 2), key_states.shape[-1])
            value_shape = (*shape[:-1], value_states.shape[-1])
            self._buffers = (key_states.new_empty(shape), value_states.new_empty(value_shape))
            if start:
                for buffer, kept in zip(self._buffers, old, strict=True):
                    buffer[..., :start, :] = kept
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., start:stop, :] = new
        self.keys, self.values = (buffer[..., :stop, :] for buffer in self._buffers)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._buffers = None  # made again, with room, at the next update


def make_cache(config: PretrainedConfig) -> DynamicCache:
    """The cache of a model; plain attention layers reserve room, layers of other kinds are as transformers has them."""
    cache = DynamicCache(config=config)
    cache.layers = [ReservedLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
