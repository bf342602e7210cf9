"""The forward pass of known decoders straight from their weights, for sampling, in few operations.

On small models most of the time of a decoding step is overhead around the arithmetic. Here a step is a dozen operations
per layer and calls no modules. Small models are copied into a form that needs even fewer: linear layers of the same
input are concatenated, and norms and adapters multiplied into them. Several small models of one shape are batched, each
row with its own weights, so that a team of agents takes one decode loop and as many operations as one agent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from collm.architectures.decoders import Decoder, Layer, lora_matrices, weight_and_bias
from collm.inference.embedded.cache import ReservedLayer
from collm.inference.embedded.shared_cache import SharedPrefixCache
from collm.kernels.attention import attention

Member = tuple[PreTrainedModel, Decoder, str | None]
"""A language model, its modules, and the adapter on it, if any."""


@dataclass(frozen=True)
class Spans:
    """The rows of each member.

    Args:
        parts: Index of a member and its adjacent rows.
        even: Whether all members have equally many rows, in order.
    """

    parts: Sequence[tuple[int, slice]]
    even: bool


_TOKENS_PER_CHUNK = 1024  # of the feed-forward network; hidden states of more do not fit in processor caches
_FEW_ROWS, _SHORT_ROW = range(2, 6), 1024  # numbers of rows, and their largest size
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
        self.tokens = _Embedding([decoder.tokens.weight for decoder in decoders])
        self.positions = _Embedding([decoder.positions.weight for decoder in decoders]) if first.positions else None
        self.rotation = _Rotation(first) if first.rotation else None
        stacks = zip(*(decoder.layers for decoder in decoders), strict=True)
        self.layers = [_Layer(stack, adapters, copied, first.head_size) for stack in stacks]
        # at lower precision fused attention rounds its scores less
        self.shares_prefixes = torch.finfo(first.head.weight.dtype).bits >= 32
        self.norm = _Norm(first.norm, bare=copied)
        self.head = _Linears([([decoder.head], decoder.norm) for decoder in decoders], adapters, copied)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Nothing has to be activated."""
        yield

    def forward(
        self, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache, owners: Sequence[int]
    ) -> Tensor:
        """Logits after the last of the new tokens, [R, V]; see `CachedModel`."""
        new = ids.shape[1]
        spans, ends = (_spans(owners, size, self.num_members) for size in (new, 1))
        states = self.tokens(ids.flatten(), spans)
        rotation = self.rotation(positions.flatten(), mask.shape[1], states.dtype) if self.rotation else None
        if self.positions:
            states = states + self.positions(positions.flatten(), spans)
        bias = _attention_bias(mask, new, states.dtype)
        for index, layer in enumerate(self.layers):
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
        self.before_attention = _Norm(first.before_attention, bare=copied)
        self.attention_in = _Linears([(one.attention_in, one.before_attention) for one in stack], adapters, copied)
        self.attention_out = _Linears([([one.attention_out], None) for one in stack], adapters, copied)
        self.before_feed_forward = _Norm(first.before_feed_forward, bare=copied)
        self.feed_forward_in = _Linears(
            [(one.feed_forward_in, one.before_feed_forward) for one in stack], adapters, copied
        )
        self.feed_forward_out = _Linears([([one.feed_forward_out], None) for one in stack], adapters, copied)
        weight = weight_and_bias(first.attention_out)[0]
        # at lower precision fused attention rounds its scores less
        self.uses_buffers = weight.device.type == "cpu" and weight.dtype == torch.float32
        self.num_queries = weight.shape[1] // head_size
        self.gated = len(first.feed_forward_in) == 2
        self.head_norms = None
        if first.query_norm is not None:
            self.head_norms = [(_Norm(one.query_norm), _Norm(one.key_norm)) for one in stack]

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
        heads = heads.view(len(heads), -1, self.head_size)
        num_keys = (heads.shape[1] - self.num_queries) // 2
        rotated, values = heads.split([self.num_queries + num_keys, num_keys], dim=1)
        if self.head_norms:
            rotated = self._normed(rotated, spans)
        if rotation is not None:
            cos, sin = rotation
            rotated = torch.addcmul(rotated * cos, rotated.roll(self.head_size // 2, -1), sin)
        queries, keys = rotated.split([self.num_queries, num_keys], dim=1)
        num_rows = len(bias)
        queries, keys, values = (
            part.view(num_rows, -1, part.shape[1], self.head_size).transpose(1, 2) for part in (queries, keys, values)
        )
        stored = cache.layers[self.index]
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
        return states + self.attention_out(attended.reshape(len(states), -1), spans)

    def feed_forward(self, states: Tensor, spans: Spans) -> Tensor:
        """States after the feed-forward network, [M, hidden size]."""
        if len(states) <= _TOKENS_PER_CHUNK:
            return self._feed_forward(states, spans)
        pieces = [
            (member, slice(start, min(start + _TOKENS_PER_CHUNK, rows.stop)))
            for member, rows in spans.parts
            for start in range(rows.start, rows.stop, _TOKENS_PER_CHUNK)
        ]
        return torch.cat([self._feed_forward(states[rows], _all_of(member)) for member, rows in pieces])

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


class _Linears:
    """Several linear layers of one input: [M, in] to [M, out of all], each row with the weights of its member.

    Args:
        stack: Linear layers of each member, and the norm before them, if any.
        adapters: Adapter of each member.
        copied: Copy the weights, multiplied by norms and adapters; otherwise they are used in place.
    """

    def __init__(
        self,
        stack: Sequence[tuple[Sequence[nn.Module], nn.Module | None]],
        adapters: Sequence[str | None],
        copied: bool,
    ):
        self.copies: tuple[Tensor, Tensor | None] | None = None  # [N, in, out of all] and [N, 1, out of all]
        self.weights: list[tuple[Tensor, Tensor | None]] = []
        self.adapters: list[tuple[Tensor, Tensor] | None] = []
        if copied:
            merged = [_merged(*one, adapter) for one, adapter in zip(stack, adapters, strict=True)]
            weights, biases = zip(*merged, strict=True)
            self.copies = torch.stack(weights), None if biases[0] is None else torch.stack(biases)[:, None]
        else:
            self.weights = [weight_and_bias(one) for one in stack[0][0]]
            self.adapters = [_joined_lora(stack[0][0], adapter) for adapter in adapters]

    def __call__(self, states: Tensor, spans: Spans) -> Tensor:
        if self.copies is not None:
            return self._with_copies(states, spans)
        parts = [_linear(states, *one) for one in self.weights]
        out = torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]
        for member, rows in spans.parts:
            if self.adapters[member] is not None:
                down, up = self.adapters[member]
                out[rows] += (states[rows].to(down.dtype) @ down @ up).to(out.dtype)
        return out

    def _with_copies(self, states: Tensor, spans: Spans) -> Tensor:
        weights, biases = self.copies
        if not spans.even:
            parts = [states[rows] @ weights[member] for member, rows in spans.parts]
            if biases is not None:
                parts = [part + biases[member] for part, (member, _) in zip(parts, spans.parts, strict=True)]
            return torch.cat(parts)
        states = states.view(len(weights), -1, states.shape[-1])
        out = torch.bmm(states, weights) if biases is None else torch.baddbmm(biases, states, weights)
        return out.flatten(0, 1)


class _Norm:
    """A norm over the last dimension; `bare` without its weights, which are then part of the next linear layers."""

    def __init__(self, module: nn.Module, bare: bool = False):
        self.shape = tuple(module.weight.shape)
        self.centers = isinstance(module, nn.LayerNorm)
        self.eps = module.eps if self.centers else module.variance_epsilon
        self.weight = None if bare else module.weight
        self.bias = None if bare or not self.centers else module.bias

    def __call__(self, states: Tensor) -> Tensor:
        if self.centers:
            return F.layer_norm(states, self.shape, self.weight, self.bias, self.eps)
        return F.rms_norm(states, self.shape, self.weight, self.eps)


class _Embedding:
    """Embeddings: indices [M] to states [M, hidden size], each row with the weights of its member."""

    def __init__(self, weights: Sequence[Tensor]):
        same = all(weight is weights[0] for weight in weights)
        self.weights = [weights[0]] if same else list(weights)

    def __call__(self, indices: Tensor, spans: Spans) -> Tensor:
        if len(self.weights) == 1:
            return F.embedding(indices, self.weights[0])
        return torch.cat([F.embedding(indices[rows], self.weights[member]) for member, rows in spans.parts])


class _Rotation:
    """Rotary embedding: factors of queries and keys, and of their halves exchanged."""

    def __init__(self, decoder: Decoder):
        self.module = decoder.rotation
        self.head_size = decoder.head_size
        self.factors: tuple[Tensor, Tensor] | None = None

    def __call__(self, positions: Tensor, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Factors at `positions` [M], all below `length`; [M, 1, head size] each."""
        if self.factors is None or len(self.factors[0]) < length:
            numbers = torch.arange(2 * length, device=positions.device)[None]
            cos, sin = self.module(torch.empty((), dtype=dtype, device=positions.device), numbers)
            half = self.head_size // 2
            self.factors = (cos[0, :, None], torch.cat([-sin[0, :, None, :half], sin[0, :, None, half:]], dim=-1))
        return self.factors[0][positions], self.factors[1][positions]


def _merged(layers: Sequence[nn.Module], norm: nn.Module | None, adapter: str | None) -> tuple[Tensor, Tensor | None]:
    """Weight [in, out of all] and bias [out of all] of linear layers, with the norm before them and an adapter."""
    weights, biases = [], []
    for layer in layers:
        weight, bias = weight_and_bias(layer)
        down, up = lora_matrices(layer, adapter)
        if down.numel():
            weight = weight + (down @ up).T
        if isinstance(norm, nn.LayerNorm):
            bias = weight @ norm.bias + (0.0 if bias is None else bias)
        weights.append(weight if norm is None else weight * norm.weight)
        biases.append(bias)
    return torch.cat(weights).T, None if biases[0] is None else torch.cat(biases)


def _linear(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear`, [M, in] to [M, out]; for a few short rows the transposed product, faster on a processor."""
    few = len(states) in _FEW_ROWS and weight.shape[1] <= _SHORT_ROW and weight.is_contiguous()
    if not few or weight.device.type != "cpu" or weight.dtype != torch.float32:
        return F.linear(states, weight, bias)
    out = weight @ states.T if bias is None else torch.addmm(bias[:, None], weight, states.T)
    return out.T.contiguous()


def _joined_lora(layers: Sequence[nn.Module], adapter: str | None) -> tuple[Tensor, Tensor] | None:
    """LoRA matrices of linear layers of one input, [in, rank of all] and [rank of all, out of all]; None for none."""
    down, up = zip(*(lora_matrices(layer, adapter) for layer in layers), strict=True)
    joined = torch.cat(down, dim=1)
    return (joined, torch.block_diag(*up)) if joined.numel() else None


def _attention_bias(mask: Tensor, new: int, dtype: torch.dtype) -> Tensor:
    """Number added to the attention scores, [R, 1, S, W]: 0 where a token is visible."""
    width = mask.shape[1]
    visible = mask[:, None, None, :]
    if new > 1:
        order = torch.arange(width, device=mask.device)
        visible = visible & (order <= order[width - new :, None])
    # the smallest number instead of -inf, with which a row of padding alone would be NaN
    return torch.zeros(visible.shape, dtype=dtype, device=mask.device).masked_fill_(~visible, torch.finfo(dtype).min)


def _all_of(member: int) -> Spans:
    return Spans([(member, slice(None))], even=False)


def _spans(owners: Sequence[int], size: int, num_members: int) -> Spans:
    """The tokens of each member, `size` of them in every row."""
    parts, start = [], 0
    for owner, rows in groupby(owners):
        stop = start + size * len(list(rows))
        parts.append((owner, slice(start, stop)))
        start = stop
    sizes = {rows.stop - rows.start for _, rows in parts}
    return Spans(parts, len(sizes) == 1 and [owner for owner, _ in parts] == list(range(num_members)))
