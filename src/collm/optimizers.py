"""Optimizers that take their step in one pass over the weights, where torch has that."""

from __future__ import annotations

from torch.optim import Optimizer

_DEVICES = ("cpu", "cuda")


def fused(optimizer: Optimizer) -> Optimizer:
    """The optimizer, which steps in torch's fused way unless its user has chosen how."""
    unset = all(optimizer.defaults.get(name, False) is None for name in ("fused", "foreach"))
    devices = {weight.device.type for group in optimizer.param_groups for weight in group["params"]}
    if unset and devices.issubset(_DEVICES):
        for group in optimizer.param_groups:
            group["fused"] = True
    return optimizer
