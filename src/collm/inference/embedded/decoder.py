"""The forward pass of known decoders straight from their weights, for sampling, in few operations.

On small models most of the time of a decoding step is overhead around the arithmetic. Here a step is a dozen operations
per layer and calls no modules. Small models are copied into a form that needs even fewer: linear layers of the same
input are concatenated, and norms and adapters multiplied into them. Several small models of one shape are batched, each
row with its own weights, so that a team of agents takes one decode loop and as many operations as one agent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from collm.architectures.decoders import Decoder, Layer, weight_and_bias
from collm.inference.embedded.cache import ReservedLayer
from collm.inference.embedded.layers import Embedding, Linears, Norm, Rotation, Spans, all_of, spans_of
from collm.inference.embedded.shared_cache import SharedPrefixCache
from collm.kernels.attention import attention
from collm.runtime.progress import progress

Member = tuple[PreTrainedModel, Decoder, str | None]
"""A language model, its modules, and the adapter on it, if any."""


_TOKENS_PER_CHUNK = 1024  # of the feed-forward network; hidden states of more do not fit in processor caches
_MAX_COPIED_WEIGHTS = 2**23  # without adapters; copying more of them costs more than it saves


def is_small(lm: PreTrainedModel) -> bool:
    """Whether `lm` is sampled from a copy: it is small, and in float32, where products of weights lose no precision."""
    size = sum(weight.numel() for name, weight in lm.named_parameters() if "lora_" not in name)
    return size <= _MAX_COPIED_WEIGHTS and all(weight.dtype == torch.float32 for weight in lm.parameters())


class EmbeddedModel:
    """The weights of one or several policies, each row computed with those of its own policy; a `CachedModel`.

    Args:
        members: Adapters on one model, or small models of one shape.
    """

    def __init__(self, members: Sequence[Member]):
        lms, decoders, adapters = zip(*members, strict=True)
        first, copied = decoders[0], is_small(lms[0])
        self.config = lms[0].config
        self.device = lms[0].device
        self.num_members = len(members)
        self.tokens = Embedding([decoder.tokens.weight for decoder in decoders])
        self.positions = Embedding([decoder.positions.weight for decoder in decoders]) if first.positions else None
        self.rotation = Rotation(first) if first.rotation else None
        stacks = zip(*(decoder.layers for decoder in decoders), strict=True)
        self.layers = [_Layer(stack, adapters, copied, first.head_size) for stack in stacks]
        # at lower precision fused attention rounds its scores less
        self.shares_prefixes = torch.finfo(first.head.weight.dtype).bits >= 32
        self.norm = Norm(first.norm, bare=copied)
        self.head = Linears([([decoder.head], decoder.norm) for decoder in decoders], adapters, copied)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Nothing has to be activated."""
        yield

    def forward(
        self, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache, owners: Sequence[int]
    ) -> Tensor:
        """Logits after the last of the new tokens, [R, V]; see `CachedModel`."""
        new = ids.shape[1]
        ends = spans_of(owners, 1, self.num_members)
        spans = ends if new == 1 else spans_of(owners, new, self.num_members)
        states = self.tokens(ids.flatten(), spans)
        rotation = self.rotation(positions.flatten(), mask.shape[1], states.dtype) if self.rotation else None
        if self.positions:
            states = states + self.positions(positions.flatten(), spans)
        bias = _attention_bias(mask, new, states.dtype)
        for index, layer in enumerate(self.layers):
            if new > 1:
                progress.tell("prompts, layer {} of {}", index + 1, len(self.layers))
            is_last = index == len(self.layers) - 1  # where only the states of the last tokens are needed
            states = layer.attend(states, spans, rotation, bias, cache, ends if is_last else None)
            states = layer.feed_forward(states, ends if is_last else spans)
        return self.head(self.norm(states), ends)


class _Layer:
    """One layer of all members; states are [M, hidden size], the tokens of a row are adjacent."""

    def __init__(self, stack: Sequence[Layer], adapters: Sequence[str | None], copied: bool, head_size: int):
        first = stack[0]
        self.index = first.index
        self.head_size = head_size
        self.before_attention = Norm(first.before_attention, bare=copied)
        self.attention_in = Linears([(one.attention_in, one.before_attention) for one in stack], adapters, copied)
        self.attention_out = Linears([([one.attention_out], None) for one in stack], adapters, copied)
        self.before_feed_forward = Norm(first.before_feed_forward, bare=copied)
        self.feed_forward_in = Linears(
            [(one.feed_forward_in, one.before_feed_forward) for one in stack], adapters, copied
        )
        self.feed_forward_out = Linears([([one.feed_forward_out], None) for one in stack], adapters, copied)
        weight = weight_and_bias(first.attention_out)[0]
        # at lower precision fused attention rounds its scores less
        self.uses_buffers = weight.device.type == "cpu" and weight.dtype == torch.float32
        self.num_queries = weight.shape[1] // head_size
        self.gated = len(first.feed_forward_in) == 2
        self.head_norms: list[tuple[Norm, Norm]] = []
        if first.query_norm is not None:
            self.head_norms = [(Norm(one.query_norm), Norm(one.key_norm)) for one in stack]

    def attend(
        self,
        states: Tensor,
        spans: Spans,
        rotation: tuple[Tensor, Tensor] | None,
        bias: Tensor,
        cache: DynamicCache,
        ends: Spans | None,
    ) -> Tensor:
        """States after the attention, [M, hidden size]; with `ends` of the last token of each row, [R, hidden size].

        `spans` are the tokens of each member, and `ends` the last tokens of its rows.
        """
        heads = self.attention_in(self.before_attention(states), spans)
        heads = heads.view(heads.shape[0], -1, self.head_size)
        num_keys = (heads.shape[1] - self.num_queries) // 2
        rotated, values = heads.split([self.num_queries + num_keys, num_keys], dim=1)
        if self.head_norms:
            rotated = self._normed(rotated, spans)
        if rotation is not None:
            cos, sin = rotation
            rotated = torch.addcmul(rotated * cos, rotated.roll(self.head_size // 2, -1), sin)
        queries, keys = rotated.split([self.num_queries, num_keys], dim=1)
        num_rows = bias.shape[0]
        queries, keys, values = (
            part.view(num_rows, -1, part.shape[1], self.head_size).transpose(1, 2) for part in (queries, keys, values)
        )
        stored: Any = cache.layers[self.index]
        keys, values = stored.update(keys, values)
        if ends is not None:
            states, spans = states.view(num_rows, -1, states.shape[-1])[:, -1], ends
            queries, bias = queries[:, :, -1:], bias[:, :, -1:]
        new = queries.shape[2]
        if new == 1:  # the queries that share a key take the dimension of tokens
            queries = queries.reshape(num_rows, num_keys, -1, self.head_size)
        scale = self.head_size**-0.5
        if isinstance(cache, SharedPrefixCache):
            attended = cache.attend(self.index, queries, bias, scale)
        elif new == 1 and self.uses_buffers and isinstance(stored, ReservedLayer):
            attended = stored.attend(queries, bias, scale)
        else:
            attended = attention(queries, keys, values, bias, scale=scale)
        if new > 1:
            attended = attended.transpose(1, 2)
        return states + self.attention_out(attended.reshape(states.shape[0], -1), spans)

    def feed_forward(self, states: Tensor, spans: Spans) -> Tensor:
        """States after the feed-forward network, [M, hidden size]."""
        if states.shape[0] <= _TOKENS_PER_CHUNK:
            return self._feed_forward(states, spans)
        pieces = [
            (member, slice(start, min(start + _TOKENS_PER_CHUNK, rows.stop)))
            for member, rows in spans.parts
            for start in range(rows.start, rows.stop, _TOKENS_PER_CHUNK)
        ]
        return torch.cat([self._feed_forward(states[rows], all_of(member)) for member, rows in pieces])

    def _feed_forward(self, states: Tensor, spans: Spans) -> Tensor:
        hidden = self.feed_forward_in(self.before_feed_forward(states), spans)
        if self.gated:
            gate, hidden = hidden.chunk(2, dim=-1)
            hidden = F.silu(gate) * hidden
        else:
            hidden = F.gelu(hidden, approximate="tanh")
        return states + self.feed_forward_out(hidden, spans)

    def _normed(self, rotated: Tensor, spans: Spans) -> Tensor:
        queries, keys = rotated.split([self.num_queries, rotated.shape[1] - self.num_queries], dim=1)
        members = spans.parts if len(self.head_norms) > 1 else [(0, slice(None))]
        parts = [
            torch.cat([norms[0](queries[rows]), norms[1](keys[rows])], dim=1)
            for norms, rows in ((self.head_norms[member], rows) for member, rows in members)
        ]
        return torch.cat(parts) if len(parts) > 1 else parts[0]


def _attention_bias(mask: Tensor, new: int, dtype: torch.dtype) -> Tensor:
    """Number added to the attention scores, [R, 1, S, W]: 0 where a token is visible."""
    width = mask.shape[1]
    visible = mask[:, None, None, :]
    if new > 1:
        order = torch.arange(width, device=mask.device)
        visible = visible & (order <= order[width - new :, None])
    # the smallest number instead of -inf, with which a row of padding alone would be NaN
    return torch.zeros(visible.shape, dtype=dtype, device=mask.device).masked_fill_(~visible, torch.finfo(dtype).min)
