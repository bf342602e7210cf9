"""Layers of known decoders as updates compute them: less is saved for backward, unread positions are skipped.

The hidden states of a prompt's tokens are not read after the last layer. That layer needs their keys and values, but
neither their queries nor its feed-forward network at these positions.
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

from collm.architectures.decoders import Decoder, Layer, decoder_of, linear_layers
from collm.kernels.attention import attention
from collm.kernels.linear import recomputed_linear

_MAX_SHARE_READ = 0.75  # of the positions; above it selecting them costs more than it saves
_USED_ARGUMENTS = ("cache", "past_key_values", "attention_mask", "position_embeddings")
# positions are in the embeddings or rotations already, and a cache is used where one is given
_IGNORED_ARGUMENTS = ("position_ids", "cache_position", "use_cache")
_DROPOUT_SETTINGS = ("attention_dropout", "attn_pdrop", "resid_pdrop")


@contextmanager
def needed_at(lm: PreTrainedModel, needed: Tensor) -> Iterator[None]:
    """Replace the layers of `lm`, so that its forward passes over rows of this shape are correct where `needed` only.

    The layers of unknown architectures are left as they are.

    Args:
        lm: The model.
        needed: True at the positions whose last hidden state is read, [R, S].
    """
    decoder = decoder_of(lm) if _is_supported(lm) else None
    adapter, has_dropout = _active_adapter(decoder) if decoder else (None, True)
    if has_dropout:
        yield
        return
    size, positions = int(needed.sum(1).max()), None
    if size <= _MAX_SHARE_READ * needed.shape[1]:
        # needed positions first, in order; rows with fewer of them are filled up with others
        positions = needed.int().argsort(dim=1, descending=True, stable=True)[:, : max(1, size)]
    # without an adapter all weights train, and recomputing costs more time than the memory it saves is worth
    replaced = [layer for layer in decoder.layers if adapter or (layer is decoder.layers[-1] and positions is not None)]
    for layer in replaced:
        selected = positions if layer is decoder.layers[-1] else None
        layer.module.forward = partial(_forward, layer, decoder.head_size, adapter, selected)
    try:
        yield
    finally:
        for layer in replaced:
            del layer.module.forward


def _is_supported(lm: PreTrainedModel) -> bool:
    """Whether the layers of a known decoder compute what they do here: no dropout, no autocast, this attention."""
    dropout = any(getattr(lm.config, name, 0.0) for name in _DROPOUT_SETTINGS)
    autocast = torch.is_autocast_enabled(lm.device.type)
    return lm.config._attn_implementation == "sdpa" and not autocast and not (lm.training and dropout)


def _active_adapter(decoder: Decoder) -> tuple[str | None, bool]:
    """The active adapter, if any, and whether there is dropout in front of it; not every linear layer need have it."""
    linears = (module for layer in decoder.layers for module in linear_layers(layer))
    for module in linears:
        if not isinstance(module, LoraLayer):
            continue
        if module.disable_adapters:
            return None, False
        (adapter,) = module.active_adapters
        if adapter in module.lora_dropout:
            dropout = module.lora_dropout[adapter]
            return adapter, dropout.training and not isinstance(dropout, nn.Identity)
    return None, False


def _forward(
    layer: Layer,
    head_size: int,
    adapter: str | None,
    positions: Tensor | None,
    states: Tensor,
    *args: Any,
    **given: Any,
) -> Tensor:
    """Outputs of the layer at `positions` [R, n] of `states` [R, S, hidden size], and 0 elsewhere; None: at all.

    Raises:
        TypeError: The layer is called with an argument that is not known here.
    """
    cache, attention_mask, position_embeddings = _arguments(layer.module, args, given)

    def select(states: Tensor) -> Tensor:
        return states if positions is None else _at(states, positions)

    def heads(flat: Tensor) -> Tensor:
        return flat.unflatten(-1, (-1, head_size))

    norm, linears = layer.before_attention, layer.attention_in
    if positions is not None and len(linears) == 3:
        (queries,) = recomputed_linear(norm, [select(states)], linears[:1], adapter, list(norm.parameters()))
        keys, values = recomputed_linear(norm, [states], linears[1:], adapter, list(norm.parameters()))
    else:
        projected = recomputed_linear(norm, [states], linears, adapter, list(norm.parameters()))
        queries, keys, values = projected if len(linears) == 3 else projected[0].chunk(3, dim=-1)
        queries = select(queries)
    queries, keys, values = (heads(flat) for flat in (queries, keys, values))
    if layer.query_norm is not None:
        queries, keys = layer.query_norm(queries), layer.key_norm(keys)
    if position_embeddings is not None:
        cos, sin = (factors.expand(len(states), -1, -1) for factors in position_embeddings)
        keys = keys * cos[:, :, None] + rotate_half(keys) * sin[:, :, None]
        queries = queries * select(cos)[:, :, None] + rotate_half(queries) * select(sin)[:, :, None]
    queries, keys, values = (one.transpose(1, 2) for one in (queries, keys, values))
    if cache is not None:
        keys, values = cache.update(keys, values, layer.index)
    attended = attention(
        queries,
        keys,
        values,
        _visible(attention_mask, positions, len(states), states.shape[1], keys.shape[2], states.device),
        is_causal=attention_mask is None and positions is None and states.shape[1] == keys.shape[2],
        scale=head_size**-0.5,
    )
    (change,) = recomputed_linear(_identity, [attended.transpose(1, 2).flatten(2)], [layer.attention_out], adapter)
    outputs = select(states) + change
    norm = layer.before_feed_forward
    hidden = recomputed_linear(norm, [outputs], layer.feed_forward_in, adapter, list(norm.parameters()))
    activation = _gated if len(hidden) == 2 else _gelu
    (change,) = recomputed_linear(activation, hidden, [layer.feed_forward_out], adapter)
    outputs = outputs + change
    if positions is None:
        return outputs
    return torch.zeros_like(states).scatter(1, positions[..., None].expand(-1, -1, states.shape[-1]), outputs)


def _arguments(
    layer: nn.Module, args: Sequence[Any], given: Mapping[str, Any]
) -> tuple[Cache | None, Tensor | None, tuple[Tensor, Tensor] | None]:
    """Cache, attention mask and position embeddings among the arguments of a layer.

    Versions of transformers differ in their names and order, so positional ones are named by the layer's signature.
    """
    names = list(signature(type(layer).forward).parameters)[2:]  # after self and the states
    arguments = {**dict(zip(names, args, strict=False)), **given}
    known = {name: arguments.pop(name) for name in _USED_ARGUMENTS if name in arguments}
    unknown = [name for name, value in arguments.items() if value is not None and name not in _IGNORED_ARGUMENTS]
    if unknown or len(args) > len(names):
        raise TypeError(
            f"{type(layer).__name__} was given {', '.join(map(repr, unknown or args[len(names) :]))}, which the fast "
            "updates of this version do not know; install a version of transformers that pyproject.toml allows."
        )
    cache = known.get("cache") if known.get("past_key_values") is None else known["past_key_values"]
    return cache, known.get("attention_mask"), known.get("position_embeddings")


def _visible(
    mask: Tensor | None, positions: Tensor | None, rows: int, new: int, width: int, device: torch.device
) -> Tensor | None:
    """Visibility of keys at the queries of `positions` [R, n] (None: of all), [R or 1, 1, n, W]; None: plain causal."""
    if mask is None:
        if positions is None and new == width:
            return None
        positions = torch.arange(new, device=device)[None] if positions is None else positions
        return (torch.arange(width, device=device) <= positions[..., None] + width - new)[:, None]
    if positions is None:
        return mask
    return _at(mask[:, 0].expand(rows, -1, -1), positions)[:, None]


def _at(states: Tensor, positions: Tensor) -> Tensor:
    """`states` [R, S, n] at `positions` [R, m], [R, m, n]."""
    return states.gather(1, positions[..., None].expand(-1, -1, states.shape[-1]))


def _identity(states: Tensor) -> Tensor:
    return states


def _gated(gate: Tensor, hidden: Tensor) -> Tensor:
    return F.silu(gate) * hidden


def _gelu(hidden: Tensor) -> Tensor:
    return F.gelu(hidden, approximate="tanh")
