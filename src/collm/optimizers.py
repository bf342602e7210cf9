"""Optimizers that take their step in one pass over the weights, where torch has that."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from collm.errors import ConfigurationError

_DEVICES = ("cpu", "cuda")


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
