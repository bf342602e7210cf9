"""Layers of known decoders as updates compute them: with adapters, so that less is kept; the last one where it is read.

Nothing reads what a prompt's tokens have become after the last layer. That layer needs their keys and values, but not
their queries, and not its feed-forward network at their places.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.models.llama.modeling_llama import rotate_half

from collm.kernels.linear import mapped
from collm.models.architectures import Layer, decoder_of
from collm.models.attention import attention

_WORTH_IT = 0.75  # of all places
_READ = ("cache", "past_key_values", "attention_mask", "position_embeddings")
# positions are in the embeddings or rotations already, and whether to use a cache is said by giving one
_WITHOUT_EFFECT = ("position_ids", "cache_position", "use_cache")
_NOISE = ("attention_dropout", "attn_pdrop", "resid_pdrop")


@contextmanager
def needed_at(lm: PreTrainedModel, needed: Tensor) -> Iterator[None]:
    """While it lasts, forward passes of `lm` over rows of this shape are right where `needed`, and maybe only there.

    Models that are not known well enough compute everything, in their own way.

    Args:
        lm: The model.
        needed: True at the places whose last hidden state is read, [R, S].
    """
    decoder = decoder_of(lm) if _is_plain(lm) else None
    adapter, noisy = _adapter_in_use(decoder.layers[0]) if decoder else (None, True)
    if noisy:
        yield
        return
    size, places = int(needed.sum(1).max()), None
    if size <= _WORTH_IT * needed.shape[1]:
        # those that are needed in order, and in rows with fewer of them some others
        places = needed.int().argsort(dim=1, descending=True, stable=True)[:, : max(1, size)]
    # where all weights train, what is computed again takes longer than what is saved
    own = [layer for layer in decoder.layers if adapter or (layer is decoder.layers[-1] and places is not None)]
    for layer in own:
        here = places if layer is decoder.layers[-1] else None
        layer.whole.forward = partial(_forward, layer, decoder.head_size, adapter, here)
    try:
        yield
    finally:
        for layer in own:
            del layer.whole.forward


def _is_plain(lm: PreTrainedModel) -> bool:
    """Whether layers compute what they do here."""
    noise = any(getattr(lm.config, name, 0.0) for name in _NOISE)
    mixed = torch.is_autocast_enabled(lm.device.type)
    return lm.config._attn_implementation == "sdpa" and not mixed and not (lm.training and noise)


def _adapter_in_use(layer: Layer) -> tuple[str | None, bool]:
    """The adapter that counts, if any, and whether there is noise in front of it."""
    first = layer.attention_in[0]
    if not isinstance(first, LoraLayer) or first.disable_adapters:
        return None, False
    (adapter,) = first.active_adapters
    noise = first.lora_dropout[adapter]
    return adapter, noise.training and not isinstance(noise, nn.Identity)


def _forward(
    layer: Layer,
    head_size: int,
    adapter: str | None,
    places: Tensor | None,
    states: Tensor,
    *args: Any,
    **given: Any,
) -> Tensor:
    """The layer at `places` [R, n] of `states` [R, S, hidden size], and 0 elsewhere; None: everywhere.

    Raises:
        TypeError: The layer is given an argument that is not known here.
    """
    cache, attention_mask, position_embeddings = _arguments(layer.whole, args, given)

    def chosen(everywhere: Tensor) -> Tensor:
        return everywhere if places is None else _at(everywhere, places)

    def heads(flat: Tensor) -> Tensor:
        return flat.unflatten(-1, (-1, head_size))

    norm, maps = layer.before_attention, layer.attention_in
    if places is not None and len(maps) == 3:
        (queries,) = mapped(norm, [chosen(states)], maps[:1], adapter, list(norm.parameters()))
        keys, values = mapped(norm, [states], maps[1:], adapter, list(norm.parameters()))
    else:
        found = mapped(norm, [states], maps, adapter, list(norm.parameters()))
        queries, keys, values = found if len(maps) == 3 else found[0].chunk(3, dim=-1)
        queries = chosen(queries)
    queries, keys, values = (heads(flat) for flat in (queries, keys, values))
    if layer.query_norm is not None:
        queries, keys = layer.query_norm(queries), layer.key_norm(keys)
    if position_embeddings is not None:
        cos, sin = (factors.expand(len(states), -1, -1) for factors in position_embeddings)
        keys = keys * cos[:, :, None] + rotate_half(keys) * sin[:, :, None]
        queries = queries * chosen(cos)[:, :, None] + rotate_half(queries) * chosen(sin)[:, :, None]
    queries, keys, values = (one.transpose(1, 2) for one in (queries, keys, values))
    if cache is not None:
        keys, values = cache.update(keys, values, layer.number)
    read = attention(
        queries,
        keys,
        values,
        _seen(attention_mask, places, len(states), states.shape[1], keys.shape[2], states.device),
        is_causal=attention_mask is None and places is None and states.shape[1] == keys.shape[2],
        scale=head_size**-0.5,
    )
    (change,) = mapped(_as_it_is, [read.transpose(1, 2).flatten(2)], [layer.attention_out], adapter)
    here = chosen(states) + change
    norm = layer.before_feed_forward
    hidden = mapped(norm, [here], layer.feed_forward_in, adapter, list(norm.parameters()))
    activation = _gated if len(hidden) == 2 else _gelu
    (change,) = mapped(activation, hidden, [layer.feed_forward_out], adapter)
    here = here + change
    if places is None:
        return here
    return torch.zeros_like(states).scatter(1, places[..., None].expand(-1, -1, states.shape[-1]), here)


def _arguments(
    layer: nn.Module, args: Sequence[Any], given: Mapping[str, Any]
) -> tuple[Cache | None, Tensor | None, tuple[Tensor, Tensor] | None]:
    """Cache, attention mask and position embeddings among the arguments of a layer after its states.

    Versions of transformers differ in their names and order, so positional ones are named by the layer's signature.
    """
    names = list(signature(type(layer).forward).parameters)[2:]  # after self and the states
    everything = {**dict(zip(names, args, strict=False)), **given}
    known = {name: everything.pop(name) for name in _READ if name in everything}
    unknown = [name for name, value in everything.items() if value is not None and name not in _WITHOUT_EFFECT]
    if unknown or len(args) > len(names):
        raise TypeError(
            f"{type(layer).__name__} was given {', '.join(map(repr, unknown or args[len(names) :]))}, which the fast "
            "updates of this version do not know; install a version of transformers that pyproject.toml allows."
        )
    cache = known.get("cache") if known.get("past_key_values") is None else known["past_key_values"]
    return cache, known.get("attention_mask"), known.get("position_embeddings")


def _seen(
    mask: Tensor | None, places: Tensor | None, rows: int, new: int, width: int, device: torch.device
) -> Tensor | None:
    """What is seen from `places` [R, n] (None: from everywhere), [R or 1, 1, n, W]; None: what comes before."""
    if mask is None:
        if places is None and new == width:
            return None
        places = torch.arange(new, device=device)[None] if places is None else places
        return (torch.arange(width, device=device) <= places[..., None] + width - new)[:, None]
    if places is None:
        return mask
    return _at(mask[:, 0].expand(rows, -1, -1), places)[:, None]


def _at(everywhere: Tensor, places: Tensor) -> Tensor:
    """`everywhere` [R, S, n] at `places` [R, m] alone, [R, m, n]."""
    return everywhere.gather(1, places[..., None].expand(-1, -1, everywhere.shape[-1]))


def _as_it_is(states: Tensor) -> Tensor:
    return states


def _gated(gate: Tensor, hidden: Tensor) -> Tensor:
    return F.silu(gate) * hidden


def _gelu(hidden: Tensor) -> Tensor:
    return F.gelu(hidden, approximate="tanh")
