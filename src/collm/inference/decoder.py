"""The forward pass of common decoders straight from their weights, for sampling: few operations, and no modules called.

On small models most of the time of a decoding step goes into what surrounds the arithmetic. Here a step is a dozen
operations per layer. Small models are copied into a form that needs even fewer: maps of the same input joined, norms
and adapters multiplied into the maps. Several of them, of one shape, then read side by side, each row with its own
weights, so that a team of agents takes one decode loop and the operations of one agent.
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

from collm.inference.cache import ReservedLayer
from collm.inference.shared_cache import BranchedCache
from collm.models.architectures import Decoder, Layer, low_rank, matrix
from collm.models.attention import attention

Member = tuple[PreTrainedModel, Decoder, str | None]
"""A language model, its parts, and the adapter on it, if any."""


@dataclass(frozen=True)
class Spans:
    """Whose rows are where.

    Args:
        parts: The number of a member and rows next to each other.
        even: Whether all members have equally many rows, in order.
    """

    parts: Sequence[tuple[int, slice]]
    even: bool


_AT_ONCE = 1024  # tokens; what more of them become between two maps goes through main memory
_FEW, _SHORT = range(2, 6), 1024  # rows, and their length
_SMALL = 2**23  # weights, adapters apart; what copies of more of them cost is more than they save


def is_small(lm: PreTrainedModel) -> bool:
    """Whether `lm` is read from a copy: it is small, and at full precision, where products of weights lose nothing."""
    size = sum(weight.numel() for name, weight in lm.named_parameters() if "lora_" not in name)
    return size <= _SMALL and all(weight.dtype == torch.float32 for weight in lm.parameters())


class LeanReader:
    """Reads tokens into a cache and says what comes next, each row with the weights of its owner.

    Args:
        members: Adapters on one model, or small models of one shape.
    """

    def __init__(self, members: Sequence[Member]):
        lms, decoders, adapters = zip(*members, strict=True)
        first, copied = decoders[0], is_small(lms[0])
        self.config = lms[0].config
        self.device = lms[0].device
        self.num_members = len(members)
        self.tokens = _Table([decoder.tokens.weight for decoder in decoders])
        self.places = _Table([decoder.places.weight for decoder in decoders]) if first.places else None
        self.rotation = _Rotation(first) if first.rotation else None
        stacks = zip(*(decoder.layers for decoder in decoders), strict=True)
        self.layers = [_Layer(stack, adapters, copied, first.head_size) for stack in stacks]
        # fused attention rounds its scores less
        self.branches = torch.finfo(first.head.weight.dtype).bits >= 32
        self.norm = _Norm(first.norm, bare=copied)
        self.head = _Maps([([decoder.head], decoder.norm) for decoder in decoders], adapters, copied)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Nothing has to be prepared."""
        yield

    def forward(
        self, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache, owners: Sequence[int]
    ) -> Tensor:
        """Logits after the last of the new tokens, [R, V]; see `reader.Reader`."""
        new = ids.shape[1]
        spans, ends = (_spans(owners, size, self.num_members) for size in (new, 1))
        states = self.tokens(ids.flatten(), spans)
        rotation = self.rotation(positions.flatten(), mask.shape[1], states.dtype) if self.rotation else None
        if self.places:
            states = states + self.places(positions.flatten(), spans)
        seen = _visible(mask, new, states.dtype)
        for index, layer in enumerate(self.layers):
            newest = index == len(self.layers) - 1  # what others become there is not read
            states = layer.attend(states, spans, rotation, seen, cache, ends if newest else None)
            states = layer.feed_forward(states, ends if newest else spans)
        return self.head(self.norm(states), ends)


class _Layer:
    """One layer of all members; states are [M, hidden size], the tokens of one row next to each other."""

    def __init__(self, stack: Sequence[Layer], adapters: Sequence[str | None], copied: bool, head_size: int):
        first = stack[0]
        self.number = first.number
        self.head_size = head_size
        self.before_attention = _Norm(first.before_attention, bare=copied)
        self.attention_in = _Maps([(one.attention_in, one.before_attention) for one in stack], adapters, copied)
        self.attention_out = _Maps([([one.attention_out], None) for one in stack], adapters, copied)
        self.before_feed_forward = _Norm(first.before_feed_forward, bare=copied)
        self.feed_forward_in = _Maps(
            [(one.feed_forward_in, one.before_feed_forward) for one in stack], adapters, copied
        )
        self.feed_forward_out = _Maps([([one.feed_forward_out], None) for one in stack], adapters, copied)
        weight = matrix(first.attention_out)[0]
        # at lower precision fused attention rounds its scores less
        self.reads_buffers = weight.device.type == "cpu" and weight.dtype == torch.float32
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
        seen: Tensor,
        cache: DynamicCache,
        ends: Spans | None,
    ) -> Tensor:
        """States after attention to all that is visible, [M, hidden size]; where there are `ends`, at the last token of
        each row alone, [R, hidden size]."""
        heads = self.attention_in(self.before_attention(states), spans)
        heads = heads.view(len(heads), -1, self.head_size)
        num_keys = (heads.shape[1] - self.num_queries) // 2
        turning, values = heads.split([self.num_queries + num_keys, num_keys], dim=1)
        if self.head_norms:
            turning = self._normed(turning, spans)
        if rotation is not None:
            cos, sin = rotation
            turning = torch.addcmul(turning * cos, turning.roll(self.head_size // 2, -1), sin)
        queries, keys = turning.split([self.num_queries, num_keys], dim=1)
        num_rows = len(seen)
        queries, keys, values = (
            part.view(num_rows, -1, part.shape[1], self.head_size).transpose(1, 2) for part in (queries, keys, values)
        )
        stored = cache.layers[self.number]
        keys, values = stored.update(keys, values)
        if ends is not None:
            states, spans = states.view(num_rows, -1, states.shape[-1])[:, -1], ends
            queries, seen = queries[:, :, -1:], seen[:, :, -1:]
        new = queries.shape[2]
        if new == 1:  # the queries that share a key stand in for several tokens
            queries = queries.reshape(num_rows, num_keys, -1, self.head_size)
        scale = self.head_size**-0.5
        if isinstance(cache, BranchedCache):
            read = cache.attend(self.number, queries, seen, scale)
        elif new == 1 and self.reads_buffers and isinstance(stored, ReservedLayer):
            read = stored.attend(queries, seen, scale)
        else:
            read = attention(queries, keys, values, seen, scale=scale)
        if new > 1:
            read = read.transpose(1, 2)
        return states + self.attention_out(read.reshape(len(states), -1), spans)

    def feed_forward(self, states: Tensor, spans: Spans) -> Tensor:
        """States after the feed-forward network, [M, hidden size]."""
        if len(states) <= _AT_ONCE:
            return self._feed_forward(states, spans)
        pieces = [
            (member, slice(start, min(start + _AT_ONCE, rows.stop)))
            for member, rows in spans.parts
            for start in range(rows.start, rows.stop, _AT_ONCE)
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

    def _normed(self, turning: Tensor, spans: Spans) -> Tensor:
        queries, keys = turning.split([self.num_queries, turning.shape[1] - self.num_queries], dim=1)
        members = spans.parts if len(self.head_norms) > 1 else [(0, slice(None))]
        parts = [
            torch.cat([norms[0](queries[rows]), norms[1](keys[rows])], dim=1)
            for norms, rows in ((self.head_norms[member], rows) for member, rows in members)
        ]
        return torch.cat(parts) if len(parts) > 1 else parts[0]


class _Maps:
    """Linear maps of one input side by side: [M, in] to [M, out of all], each row with the maps of its owner.

    Args:
        stack: For each member its maps and the norm before them, if any.
        adapters: Adapter of each member.
        copied: Multiply norms and adapters into copies; otherwise the weights are used where they are.
    """

    def __init__(
        self,
        stack: Sequence[tuple[Sequence[nn.Module], nn.Module | None]],
        adapters: Sequence[str | None],
        copied: bool,
    ):
        self.copies: tuple[Tensor, Tensor | None] | None = None  # [N, in, out of all] and [N, 1, out of all]
        self.maps: list[tuple[Tensor, Tensor | None]] = []
        self.changes: list[tuple[Tensor, Tensor] | None] = []
        if copied:
            merged = [_merged(*one, adapter) for one, adapter in zip(stack, adapters, strict=True)]
            weights, biases = zip(*merged, strict=True)
            self.copies = torch.stack(weights), None if biases[0] is None else torch.stack(biases)[:, None]
        else:
            self.maps = [matrix(one) for one in stack[0][0]]
            self.changes = [_side_by_side(stack[0][0], adapter) for adapter in adapters]

    def __call__(self, states: Tensor, spans: Spans) -> Tensor:
        if self.copies is not None:
            return self._with_copies(states, spans)
        parts = [_linear(states, *one) for one in self.maps]
        out = torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]
        for member, rows in spans.parts:
            if self.changes[member] is not None:
                down, up = self.changes[member]
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
    """A norm over the last dimension; `bare` without its weights, which are in the maps behind it then."""

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


class _Table:
    """Embeddings: numbers [M] to states [M, hidden size], each row from the table of its owner."""

    def __init__(self, weights: Sequence[Tensor]):
        self.weights = list(weights) if len(set(map(id, weights))) > 1 else [weights[0]]

    def __call__(self, numbers: Tensor, spans: Spans) -> Tensor:
        if len(self.weights) == 1:
            return F.embedding(numbers, self.weights[0])
        return torch.cat([F.embedding(numbers[rows], self.weights[member]) for member, rows in spans.parts])


class _Rotation:
    """Rotary places: the factors by which queries and keys are multiplied as they are, and turned by half."""

    def __init__(self, decoder: Decoder):
        self.module = decoder.rotation
        self.head_size = decoder.head_size
        self.factors: tuple[Tensor, Tensor] | None = None

    def __call__(self, positions: Tensor, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Factors at `positions` [M], all below `length`; [M, 1, head size] each."""
        if self.factors is None or len(self.factors[0]) < length:
            everywhere = torch.arange(2 * length, device=positions.device)[None]
            cos, sin = self.module(torch.empty((), dtype=dtype, device=positions.device), everywhere)
            half = self.head_size // 2
            self.factors = (cos[0, :, None], torch.cat([-sin[0, :, None, :half], sin[0, :, None, half:]], dim=-1))
        return self.factors[0][positions], self.factors[1][positions]


def _merged(maps: Sequence[nn.Module], norm: nn.Module | None, adapter: str | None) -> tuple[Tensor, Tensor | None]:
    """One weight [in, out of all] and bias for several maps, with what stands before and beside them."""
    weights, biases = [], []
    for one in maps:
        weight, bias = matrix(one)
        down, up = low_rank(one, adapter)
        if down.numel():
            weight = weight + (down @ up).T
        if isinstance(norm, nn.LayerNorm):
            bias = weight @ norm.bias + (0.0 if bias is None else bias)
        weights.append(weight if norm is None else weight * norm.weight)
        biases.append(bias)
    return torch.cat(weights).T, None if biases[0] is None else torch.cat(biases)


def _linear(states: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear`, [M, in] to [M, out]; a few short rows are multiplied from the other side, faster on a processor."""
    few = len(states) in _FEW and weight.shape[1] <= _SHORT and weight.is_contiguous()
    if not few or weight.device.type != "cpu" or weight.dtype != torch.float32:
        return F.linear(states, weight, bias)
    out = weight @ states.T if bias is None else torch.addmm(bias[:, None], weight, states.T)
    return out.T.contiguous()


def _side_by_side(maps: Sequence[nn.Module], adapter: str | None) -> tuple[Tensor, Tensor] | None:
    """What an adapter adds to maps of one input: [in, rank of all] and [rank of all, out of all]; None for nothing."""
    down, up = zip(*(low_rank(one, adapter) for one in maps), strict=True)
    joined = torch.cat(down, dim=1)
    return (joined, torch.block_diag(*up)) if joined.numel() else None


def _visible(mask: Tensor, new: int, dtype: torch.dtype) -> Tensor:
    """What is added to attention, [R, 1, S, W]: 0 where a token is seen."""
    width = mask.shape[1]
    seen = mask[:, None, None, :]
    if new > 1:
        order = torch.arange(width, device=mask.device)
        seen = seen & (order <= order[width - new :, None])
    # the smallest number instead of -inf, with which a row of padding alone would be NaN
    return torch.zeros(seen.shape, dtype=dtype, device=mask.device).masked_fill_(~seen, torch.finfo(dtype).min)


def _all_of(member: int) -> Spans:
    return Spans([(member, slice(None))], even=False)


def _spans(owners: Sequence[int], size: int, num_members: int) -> Spans:
    """Where the `size` tokens of each row are, by owner."""
    parts, start = [], 0
    for owner, rows in groupby(owners):
        stop = start + size * len(list(rows))
        parts.append((owner, slice(start, stop)))
        start = stop
    sizes = {rows.stop - rows.start for _, rows in parts}
    return Spans(parts, len(sizes) == 1 and [owner for owner, _ in parts] == list(range(num_members)))
