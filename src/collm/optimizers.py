"""Optimizers that take their step in one pass over the weights, where torch has that, and in float32.

The step of a weight of lower precision is often smaller than half the distance to the next number it can be: at a
learning rate of 5e-6 most bfloat16 weights would never move. So optimizers step float32 copies. After every step each
weight is its copy, rounded; what is sampled from and what gradients are computed with are these rounded weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from collm.errors import ConfigurationError

_DEVICES = ("cpu", "cuda")
_COPY = "float32_weight"  # its name in the state of an optimizer


def fused(optimizer: Optimizer) -> Optimizer:
    """The optimizer, which steps in torch's fused way unless its user has chosen how.

    Weights of other kinds, such as parts of sharded ones, are left to the plain step, which torch has for all of them.
    """
    unset = all(optimizer.defaults.get(name, False) is None for name in ("fused", "foreach"))
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    if unset and all(type(weight) is nn.Parameter and weight.device.type in _DEVICES for weight in weights):
        for group in optimizer.param_groups:
            group["fused"] = True
    return optimizer


def check_optimizer(make: Callable[..., Optimizer], schedule: Callable[[Optimizer], Any] | None) -> None:
    """Refuse optimizers and learning-rate schedules that cannot be made, by making one for a single weight.

    Args:
        make: Makes an optimizer from parameter groups.
        schedule: Makes its schedule, if there is one.
    """
    weight = nn.Parameter(torch.zeros(1, 1))
    name = "model.optimizer"
    try:
        optimizer = make([{"params": [weight], "lr": 1e-3}])
        check_finite(name, optimizer.defaults)
        if schedule is not None:
            name = "model.lr_schedule"
            made = schedule(optimizer)
            check_finite(name, {key: value for key, value in vars(made).items() if not key.startswith("_")})
            optimizer.step()
            made.step()
    except ConfigurationError:
        raise
    except Exception as error:  # whatever the constructors of others make of their arguments
        raise ConfigurationError(f"{name}: {error} ({type(error).__name__}); correct its arguments.") from error


def check_finite(name: str, settings: dict[str, Any]) -> None:
    """Refuse settings that are NaN, or tuples with NaN in them."""
    for key, value in settings.items():
        if any(math.isnan(number) for number in _floats(value)):
            raise ConfigurationError(f"{name}.{key} is {value}; it must be a finite number.")


def _floats(value: Any) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, (list, tuple)):
        for entry in value:
            yield from _floats(entry)


def float32_copies(weights: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """`weights` for an optimizer to step: copies in float32 of those of lower precision, the others themselves."""
    return [weight if _is_wide(weight) else nn.Parameter(weight.detach().float()) for weight in weights]


def stepping_for(optimizer: Optimizer, weights: Sequence[nn.Parameter]) -> Optimizer:
    """The optimizer, whose steps count for `weights` wherever it steps copies of them.

    The copies are part of its state dict. A copy whose rounded value is not its weight any more, as after weights were
    loaded, starts from the weight again.

    Args:
        optimizer: An optimizer of one group over `float32_copies(weights)`, or over `weights`.
        weights: What gradients are computed for.
    """
    copies = optimizer.param_groups[0]["params"]
    pairs = [(weight, copy) for weight, copy in zip(weights, copies, strict=True) if weight is not copy]
    if not pairs:
        return optimizer

    @torch.no_grad()
    def take_gradients(*args: Any) -> None:
        for weight, copy in pairs:
            copy.copy_(torch.where(copy.to(weight.dtype) == weight, copy, weight.float()))
            copy.grad = None if weight.grad is None else weight.grad.float()
            weight.grad = None

    @torch.no_grad()
    def round_weights(*args: Any) -> None:
        for weight, copy in pairs:
            weight.copy_(copy)
            copy.grad = None

    def store(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        state = dict(state_dict["state"])
        for number, (weight, copy) in enumerate(zip(weights, copies, strict=True)):
            if weight is not copy:
                state[number] = {**state.get(number, {}), _COPY: copy.detach()}
        return {**state_dict, "state": state}

    @torch.no_grad()
    def restore(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        state = {}
        for number, entries in state_dict["state"].items():
            state[number] = {name: value for name, value in entries.items() if name != _COPY}
            if _COPY in entries:
                copies[number].copy_(entries[_COPY])
        # optimizers take an entry for one of a weight they have stepped
        return {**state_dict, "state": {number: entries for number, entries in state.items() if entries}}

    optimizer.register_step_pre_hook(take_gradients)
    optimizer.register_step_post_hook(round_weights)
    optimizer.register_state_dict_post_hook(store)
    optimizer.register_load_state_dict_pre_hook(restore)
    return optimizer


def drop_gradients(weights: Iterable[nn.Parameter]) -> None:
    """Forget the gradients of `weights`."""
    for weight in weights:
        weight.grad = None


def _is_wide(weight: nn.Parameter) -> bool:
    return not weight.is_floating_point() or torch.finfo(weight.dtype).bits >= 32
