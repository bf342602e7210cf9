"""What the processes of a run tell one another; with one process every function is the identity.

Batches differ in size from rank to rank, and a rank may have none, so these take anything and count on nothing but that
all ranks call them in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def num_ranks() -> int:
    """Processes of this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_ranks(value: float | Tensor, device: torch.device | str = "cpu") -> Tensor:
    """Sum of `value` over all ranks, on `device`."""
    total = torch.as_tensor(value, device=device).detach().clone()
    if num_ranks() > 1:
        dist.all_reduce(total)
    return total


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace each gradient by its sum over all ranks; a rank without one adds nothing."""
    if num_ranks() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    for work in [dist.all_reduce(parameter.grad, async_op=True) for parameter in parameters]:
        work.wait()


def gather_objects(value: Any) -> list[Any]:
    """`value` of every rank, in the order of ranks; it is pickled."""
    if num_ranks() == 1:
        return [value]
    gathered: list[Any] = [None] * num_ranks()
    dist.all_gather_object(gathered, value)
    return gathered


def on_all_rows(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Apply `function` to the rows of all ranks put together, and keep what belongs to the own ones.

    Args:
        function: Takes tensors [B, T] and returns one of that shape, or a scalar.
        tensors: Own rows, [B, T] each; ranks may differ in B and T. Padding is 0, or False in masks.
    """
    if num_ranks() == 1:
        return function(*tensors)
    everyone = gather_objects([tensor.cpu() for tensor in tensors])
    width = max(part[0].shape[1] for part in everyone)
    whole = [
        torch.cat([nn.functional.pad(part[i], (0, width - part[i].shape[1])) for part in everyone])
        for i in range(len(tensors))
    ]
    result = function(*whole).to(tensors[0].device)
    if result.dim() == 0:
        return result
    first = sum(part[0].shape[0] for part in everyone[: dist.get_rank()])
    return result[first : first + tensors[0].shape[0], : tensors[0].shape[1]]
