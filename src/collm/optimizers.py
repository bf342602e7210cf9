"""Optimizers that take their step in one pass over the weights, where torch has that."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer

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
