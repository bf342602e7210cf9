"""Linear layers, norms and embeddings of several policies, each row computed with the weights of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from collm.architectures.decoders import Decoder, lora_matrices, weight_and_bias

_FEW_ROWS, _SHORT_ROW = range(2, 6), 1024  # numbers of rows, and their largest size


@dataclass(frozen=True)
class Spans:
    """The rows of each member.

    Args:
        parts: Index of a member and its adjacent rows.
        even: Whether all members have equally many rows, in order.
    """

    parts: Sequence[tuple[int, slice]]
    even: bool


def all_of(member: int) -> Spans:
    return Spans([(member, slice(None))], even=False)


def spans_of(owners: Sequence[int], size: int, num_members: int) -> Spans:
    """The tokens of each member, `size` of them in every row."""
    parts, start = [], 0
    for owner, rows in groupby(owners):
        stop = start + size * len(list(rows))
        parts.append((owner, slice(start, stop)))
        start = stop
    sizes = {rows.stop - rows.start for _, rows in parts}
    return Spans(parts, len(sizes) == 1 and [owner for owner, _ in parts] == list(range(num_members)))


class Linears:
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
            return self._with_copies(*self.copies, states, spans)
        parts = [_linear(states, *one) for one in self.weights]
        out = torch.cat(parts, dim=-1) if len(parts) > 1 else parts[0]
        for member, rows in spans.parts:
            if (lora := self.adapters[member]) is not None:
                down, up = lora
                out[rows] += (states[rows].to(down.dtype) @ down @ up).to(out.dtype)
        return out

    @staticmethod
    def _with_copies(weights: Tensor, biases: Tensor | None, states: Tensor, spans: Spans) -> Tensor:
        if not spans.even:
            parts = [states[rows] @ weights[member] for member, rows in spans.parts]
            if biases is not None:
                parts = [part + biases[member] for part, (member, _) in zip(parts, spans.parts, strict=True)]
            return torch.cat(parts)
        states = states.view(weights.shape[0], -1, states.shape[-1])
        out = torch.bmm(states, weights) if biases is None else torch.baddbmm(biases, states, weights)
        return out.flatten(0, 1)


class Norm:
    """A norm over the last dimension; `bare` without its weights, which are then part of the next linear layers."""

    def __init__(self, module: Any, bare: bool = False):
        self.shape = tuple(module.weight.shape)
        self.centers = isinstance(module, nn.LayerNorm)
        self.eps = module.eps if self.centers else module.variance_epsilon
        self.weight = None if bare else module.weight
        self.bias = None if bare or not self.centers else module.bias

    def __call__(self, states: Tensor) -> Tensor:
        if self.centers:
            return F.layer_norm(states, self.shape, self.weight, self.bias, self.eps)
        return F.rms_norm(states, self.shape, self.weight, self.eps)


class Embedding:
    """Embeddings: indices [M] to states [M, hidden size], each row with the weights of its member."""

    def __init__(self, weights: Sequence[Tensor]):
        same = all(weight is weights[0] for weight in weights)
        self.weights = [weights[0]] if same else list(weights)

    def __call__(self, indices: Tensor, spans: Spans) -> Tensor:
        if len(self.weights) == 1:
            return F.embedding(indices, self.weights[0])
        return torch.cat([F.embedding(indices[rows], self.weights[member]) for member, rows in spans.parts])


class Rotation:
    """Rotary embedding: factors of queries and keys, and of their halves exchanged."""

    def __init__(self, decoder: Decoder):
        self.module: Any = decoder.rotation
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


def _merged(layers: Sequence[nn.Module], norm: Any, adapter: str | None) -> tuple[Tensor, Tensor | None]:
    """Weight [in, out of all] and bias [out of all] of linear layers, with the norm before them and an adapter."""
    weights: list[Tensor] = []
    biases: list[Any] = []
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
