"""Linear maps that keep for the backward pass only what is slow to compute again.

What a map reads is a norm or a gate away from something that is kept anyway, and takes little time to compute once
more. A low-rank change is added to what the map has written, in place, and nothing of the size of its output is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from collm.models.architectures import low_rank, matrix


def mapped(
    prepare: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    maps: Sequence[nn.Module],
    adapter: str | None,
    weights: Sequence[Tensor] = (),
) -> tuple[Tensor, ...]:
    """What several linear maps make of `prepare(*inputs)`, [..., out] each.

    Args:
        prepare: Computes what the maps read, [..., in]; called again in the backward pass.
        inputs: What it is computed from.
        maps: The maps, with low-rank adapters or without.
        adapter: The adapter that counts, if any.
        weights: Weights that `prepare` uses.
    """
    parts = [part for one in maps for part in (*matrix(one), *low_rank(one, adapter))]
    return _Mapped.apply(prepare, len(inputs), len(maps), *inputs, *parts, *weights)


class _Mapped(torch.autograd.Function):
    """Tensors are the inputs; weight [out, in], bias, [in, rank] and [rank, out] of each map; what `prepare` uses."""

    @staticmethod
    def forward(
        ctx: Any, prepare: Callable[..., Tensor], num_inputs: int, num_maps: int, *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        read = prepare(*tensors[:num_inputs])
        flat = read.flatten(0, -2)
        matrices, biases, downs, ups = _parts(tensors, num_inputs, num_maps)
        low = flat.to(downs[0].dtype) @ torch.cat(downs, dim=1)
        lows = low.split([down.shape[1] for down in downs], dim=1)
        outs = []
        for weight, bias, own, up in zip(matrices, biases, lows, ups, strict=True):
            out = F.linear(flat, weight, bias)
            if len(up):
                _add_product(out, own, up)
            outs.append(out.view(*read.shape[:-1], -1))
        ctx.prepare, ctx.num_inputs, ctx.num_maps = prepare, num_inputs, num_maps
        ctx.save_for_backward(low, *tensors)
        return tuple(outs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        low, *tensors = ctx.saved_tensors
        num_inputs, stop = ctx.num_inputs, ctx.num_inputs + 4 * ctx.num_maps
        needs = ctx.needs_input_grad[3:]
        with torch.enable_grad():
            again = [one.detach().requires_grad_(need) for one, need in zip(tensors[:num_inputs], needs, strict=False)]
            read = ctx.prepare(*again)
        flat = read.detach().flatten(0, -2)
        gradients = [gradient.flatten(0, -2) for gradient in gradients]
        matrices, _, downs, ups = _parts(tensors, num_inputs, ctx.num_maps)
        sizes = [down.shape[1] for down in downs]
        of_low = torch.cat([g.to(up.dtype) @ up.T for g, up in zip(gradients, ups, strict=True)], dim=1)
        of_downs = (flat.to(low.dtype).T @ of_low).split(sizes, dim=1)
        found: list[Tensor | None] = []
        for number, (gradient, own) in enumerate(zip(gradients, low.split(sizes, dim=1), strict=True)):
            weight, bias, _, up = needs[num_inputs + 4 * number : num_inputs + 4 * number + 4]
            found += [
                gradient.T @ flat if weight else None,
                gradient.sum(0) if bias else None,
                of_downs[number],
                own.T @ gradient.to(own.dtype) if up else None,
            ]
        wanted = [one for one in again if one.requires_grad]
        wanted += [one for one, need in zip(tensors[stop:], needs[stop:], strict=True) if need]
        of_inputs = iter(())
        if wanted:
            of_read = gradients[0] @ matrices[0]
            for gradient, weight in zip(gradients[1:], matrices[1:], strict=True):
                of_read.addmm_(gradient, weight)
            if sum(sizes):
                _add_product(of_read, of_low, torch.cat(downs, dim=1).T)
            of_inputs = iter(torch.autograd.grad(read, wanted, of_read.view_as(read)))
        before = [next(of_inputs) if need else None for need in needs[:num_inputs]]
        after = [next(of_inputs) if need else None for need in needs[stop:]]
        return None, None, None, *before, *found, *after


def _parts(tensors: Sequence[Tensor | None], start: int, number: int) -> tuple[Sequence[Tensor | None], ...]:
    """Weights, biases, and both parts of the low-rank changes of `number` maps."""
    return tuple(tensors[start + place : start + 4 * number : 4] for place in range(4))


def _add_product(out: Tensor, left: Tensor, right: Tensor) -> None:
    """Add a product to `out`, in place; adapters may be of higher precision than what they change."""
    if out.dtype == left.dtype:
        out.addmm_(left, right)
    else:
        out.copy_(torch.addmm(out.to(left.dtype), left, right))  # rounded once
