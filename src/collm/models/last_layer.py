"""The last layer is computed only where its result is read: at the tokens that are scored.

Nothing reads what a prompt's tokens have become after the last layer. That layer needs their keys and values, but not
their queries, and not its feed-forward network at their places.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.models.llama.modeling_llama import rotate_half

from collm.models.families import Layer, decoder_of

_WORTH_IT = 0.75  # of all places
_NOISE = ("attention_dropout", "attn_pdrop", "resid_pdrop")


@contextmanager
def only_at(lm: PreTrainedModel, needed: Tensor) -> Iterator[None]:
    """While it lasts, forward passes of `lm` over rows of this shape are right where `needed`, and maybe only there.

    Models that are not known well enough compute everything.

    Args:
        lm: The model.
        needed: True at the places whose last hidden state is read, [R, S].
    """
    size = int(needed.sum(1).max())
    decoder = decoder_of(lm) if size <= _WORTH_IT * needed.shape[1] and _is_plain(lm) else None
    if decoder is None:
        yield
        return
    # those that are needed in order, and in rows with fewer of them some others
    places = needed.int().argsort(dim=1, descending=True, stable=True)[:, : max(1, size)]
    layer = decoder.layers[-1]
    layer.whole.forward = partial(_forward, layer, decoder.head_size, places)
    try:
        yield
    finally:
        del layer.whole.forward


def _is_plain(lm: PreTrainedModel) -> bool:
    """Whether attention is computed as it is here."""
    noise = any(getattr(lm.config, name, 0.0) for name in _NOISE)
    return lm.config._attn_implementation == "sdpa" and not (lm.training and noise)


def _forward(
    layer: Layer,
    head_size: int,
    places: Tensor,
    states: Tensor,
    past_key_values: Cache | None = None,
    attention_mask: Tensor | None = None,
    *others: Any,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    **given: Any,
) -> Tensor:
    """The layer at `places` [R, n] of `states` [R, S, hidden size], and 0 elsewhere."""

    def chosen(everywhere: Tensor) -> Tensor:
        return everywhere.gather(1, places[..., None].expand(-1, -1, everywhere.shape[-1]))

    def heads(flat: Tensor) -> Tensor:
        return flat.unflatten(-1, (-1, head_size))

    inputs = layer.before_attention(states)
    if len(layer.attention_in) == 3:
        to_queries, to_keys, to_values = layer.attention_in
        queries, keys, values = to_queries(chosen(inputs)), to_keys(inputs), to_values(inputs)
    else:
        queries, keys, values = layer.attention_in[0](inputs).chunk(3, dim=-1)
        queries = chosen(queries)
    queries, keys, values = (heads(flat) for flat in (queries, keys, values))
    if layer.query_norm is not None:
        queries, keys = layer.query_norm(queries), layer.key_norm(keys)
    if position_embeddings is not None:
        cos, sin = (factors.expand(len(states), -1, -1) for factors in position_embeddings)
        keys = keys * cos[:, :, None] + rotate_half(keys) * sin[:, :, None]
        queries = queries * chosen(cos)[:, :, None] + rotate_half(queries) * chosen(sin)[:, :, None]
    queries, keys, values = (one.transpose(1, 2) for one in (queries, keys, values))
    if past_key_values is not None:
        keys, values = past_key_values.update(keys, values, layer.number)
    if attention_mask is None:
        before = keys.shape[2] - states.shape[1]
        seen = torch.arange(keys.shape[2], device=places.device) <= places[..., None] + before
    else:
        seen = attention_mask[:, 0].expand(len(states), -1, -1)
        seen = seen.gather(1, places[..., None].expand(-1, -1, seen.shape[-1]))
    read = F.scaled_dot_product_attention(
        queries,
        keys,
        values,
        attn_mask=seen[:, None],
        scale=head_size**-0.5,
        enable_gqa=queries.shape[1] > keys.shape[1],
    )
    here = chosen(states) + layer.attention_out(read.transpose(1, 2).flatten(2))
    inputs = layer.before_feed_forward(here)
    hidden = [one(inputs) for one in layer.feed_forward_in]
    hidden = F.silu(hidden[0]) * hidden[1] if len(hidden) == 2 else F.gelu(hidden[0], approximate="tanh")
    here = here + layer.feed_forward_out(hidden)
    return torch.zeros_like(states).scatter(1, places[..., None].expand(-1, -1, states.shape[-1]), here)
