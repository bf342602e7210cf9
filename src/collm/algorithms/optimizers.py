"""Fused optimizers that step float32 copies (master weights) of weights in lower precision.

A step is often smaller than half the distance to the next bfloat16 number: at a learning rate of 5e-6 most bfloat16
weights would never change. So optimizers step float32 copies, and after every step each weight is its rounded copy.
Sampling and gradients use the rounded weights.
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
_COPY = "float32_weight"  # name of the float32 copy in the state of an optimizer


def fused(optimizer: Optimizer) -> Optimizer:
    """Switch `optimizer` to torch's fused implementation, unless its user has chosen one.

    Optimizers of other tensors than plain parameters, such as shards, keep the default implementation.

    Raises:
        ConfigurationError: An optimizer of bitsandbytes would step shards.
    """
    unset = all(optimizer.defaults.get(name, False) is None for name in ("fused", "foreach"))
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    plain = all(type(weight) is nn.Parameter for weight in weights)
    if not plain and type(optimizer).__module__.startswith("bitsandbytes"):
        raise ConfigurationError(
            f"model.optimizer: {type(optimizer).__name__} of bitsandbytes cannot step shards; train LoRA adapters, use "
            "strategy ddp, or choose an optimizer of torch."
        )
    if unset and plain and all(weight.device.type in _DEVICES for weight in weights):
        for group in optimizer.param_groups:
            group["fused"] = True
    return optimizer


def check_optimizer(make: Callable[..., Optimizer], schedule: Callable[[Optimizer], Any] | None) -> None:
    """Refuse optimizers and learning-rate schedules that cannot be constructed, by constructing one for one weight.

    Args:
        make: Constructs an optimizer from parameter groups.
        schedule: Constructs its schedule, if there is one.
    """
    weight = nn.Parameter(torch.zeros(1, 1))
    name = "model.optimizer"
    try:
        optimizer = make([{"params": [weight], "lr": 1e-3}])
        check_finite(name, optimizer.defaults)
        if schedule is not None:
            name = "model.lr_schedule"
            scheduler = schedule(optimizer)
            check_finite(name, {key: value for key, value in vars(scheduler).items() if not key.startswith("_")})
            optimizer.step()
            scheduler.step()
    except ConfigurationError:
        raise
    except Exception as error:  # constructors of torch and users raise errors of many types
        raise ConfigurationError(f"{name}: {error} ({type(error).__name__}); correct its arguments.") from error


def check_finite(name: str, settings: dict[str, Any]) -> None:
    """Refuse settings that are NaN or contain NaN."""
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
    """The parameters that an optimizer steps: float32 copies of weights in lower precision, the others themselves."""
    return [weight if _has_full_precision(weight) else nn.Parameter(weight.detach().float()) for weight in weights]


def stepping_for(optimizer: Optimizer, weights: Sequence[nn.Parameter]) -> Optimizer:
    """Add hooks to `optimizer` that copy gradients of `weights` to their float32 copies, and the steps back.

    The copies are part of the optimizer's state dict. If a weight no longer equals its rounded copy, for example after
    weights were loaded, the copy is set to the weight before the step.

    Args:
        optimizer: An optimizer with one group, over `float32_copies(weights)` or over `weights`.
        weights: The parameters for which gradients are computed.
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
    def restore(state_dict: dict[str, Any]) -> None:
        state = {}
        for number, entries in state_dict["state"].items():
            state[number] = {name: value for name, value in entries.items() if name != _COPY}
            if _COPY in entries:
                copies[number].copy_(entries[_COPY])
        # torch takes any entry as the state of a weight that has been stepped
        load({**state_dict, "state": {number: entries for number, entries in state.items() if entries}})

    load = optimizer.load_state_dict  # in place of a hook, which optimizers of bitsandbytes do not call
    optimizer.register_step_pre_hook(take_gradients)
    optimizer.register_step_post_hook(round_weights)
    optimizer.register_state_dict_post_hook(store)
    optimizer.load_state_dict = restore  # type: ignore[method-assign]
    return optimizer


def drop_gradients(weights: Iterable[nn.Parameter]) -> None:
    """Set the gradients of `weights` to None."""
    for weight in weights:
        weight.grad = None


def _has_full_precision(weight: nn.Parameter) -> bool:
    return not weight.is_floating_point() or torch.finfo(weight.dtype).bits >= 32
