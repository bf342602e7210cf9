"""Linear layers that save little for the backward pass.

The input of a linear layer is a norm or an activation of a tensor that is saved anyway, and is quickly computed again.
The output of a LoRA adapter is added in place to that of the layer, so that no tensor of that size is saved for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from collm.architectures.decoders import lora_matrices, weight_and_bias


def recomputed_linear(
    prepare: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    layers: Sequence[nn.Module],
    adapter: str | None,
    weights: Sequence[Tensor] = (),
) -> tuple[Tensor, ...]:
    """Outputs of several linear layers of the same input `prepare(*inputs)`, [..., out] each.

    Args:
        prepare: Computes the input of the layers, [..., in]; called again in the backward pass.
        inputs: Arguments of `prepare`.
        layers: The linear layers, with LoRA adapters or without.
        adapter: The active adapter, if any.
        weights: Weights that `prepare` uses.
    """
    parts = [part for layer in layers for part in (*weight_and_bias(layer), *lora_matrices(layer, adapter))]
    return _RecomputedLinear.apply(prepare, len(inputs), len(layers), *inputs, *parts, *weights)


class _RecomputedLinear(torch.autograd.Function):
    """Takes inputs; weight [out, in], bias, [in, rank] and [rank, out] of each layer; weights of `prepare`."""

    @staticmethod
    def forward(
        ctx: Any, prepare: Callable[..., Tensor], num_inputs: int, num_layers: int, *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        prepared = prepare(*tensors[:num_inputs])
        flat = prepared.flatten(0, -2)
        matrices, biases, downs, ups = _parts(tensors, num_inputs, num_layers)
        joined = torch.cat(downs, dim=1)  # in the highest precision; that of layers without an adapter is the weights'
        low = flat.to(joined.dtype) @ joined
        lows = low.split([down.shape[1] for down in downs], dim=1)
        outs = []
        for weight, bias, own, up in zip(matrices, biases, lows, ups, strict=True):
            out = F.linear(flat, weight, bias)
            if len(up):
                _add_product(out, own, up)
            outs.append(out.view(*prepared.shape[:-1], -1))
        ctx.prepare, ctx.num_inputs, ctx.num_layers = prepare, num_inputs, num_layers
        ctx.save_for_backward(low, *tensors)
        return tuple(outs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        low, *tensors = ctx.saved_tensors
        num_inputs, stop = ctx.num_inputs, ctx.num_inputs + 4 * ctx.num_layers
        needs = ctx.needs_input_grad[3:]
        with torch.enable_grad():
            inputs = [one.detach().requires_grad_(need) for one, need in zip(tensors[:num_inputs], needs, strict=False)]
            prepared = ctx.prepare(*inputs)
        flat = prepared.detach().flatten(0, -2)
        gradients = [gradient.flatten(0, -2) for gradient in gradients]
        matrices, _, downs, ups = _parts(tensors, num_inputs, ctx.num_layers)
        ranks = [down.shape[1] for down in downs]
        of_low = torch.cat([g.to(up.dtype) @ up.T for g, up in zip(gradients, ups, strict=True)], dim=1)
        of_downs = (flat.to(low.dtype).T @ of_low).split(ranks, dim=1)
        of_layers: list[Tensor | None] = []
        for index, (gradient, own) in enumerate(zip(gradients, low.split(ranks, dim=1), strict=True)):
            weight, bias, _, up = needs[num_inputs + 4 * index : num_inputs + 4 * index + 4]
            of_layers += [
                gradient.T @ flat if weight else None,
                gradient.sum(0) if bias else None,
                of_downs[index],
                own.T @ gradient.to(own.dtype) if up else None,
            ]
        wanted = [one for one in inputs if one.requires_grad]
        wanted += [one for one, need in zip(tensors[stop:], needs[stop:], strict=True) if need]
        of_wanted = iter(())
        if wanted:
            of_prepared = gradients[0] @ matrices[0]
            for gradient, weight in zip(gradients[1:], matrices[1:], strict=True):
                of_prepared.addmm_(gradient, weight)
            if sum(ranks):
                _add_product(of_prepared, of_low, torch.cat(downs, dim=1).T)
            of_wanted = iter(torch.autograd.grad(prepared, wanted, of_prepared.view_as(prepared)))
        of_inputs = [next(of_wanted) if need else None for need in needs[:num_inputs]]
        of_weights = [next(of_wanted) if need else None for need in needs[stop:]]
        return None, None, None, *of_inputs, *of_layers, *of_weights


def _parts(tensors: Sequence[Tensor | None], start: int, num_layers: int) -> tuple[Sequence[Tensor | None], ...]:
    """Weights, biases, and both LoRA matrices of `num_layers` linear layers."""
    return tuple(tensors[start + kind : start + 4 * num_layers : 4] for kind in range(4))


def _add_product(out: Tensor, left: Tensor, right: Tensor) -> None:
    """Add a product to `out`, in place; LoRA matrices may be of higher precision than the layer."""
    if out.dtype == left.dtype:
        out.addmm_(left, right)
    else:
        out.copy_(torch.addmm(out.to(left.dtype), left, right))  # rounded once
