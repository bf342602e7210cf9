"""What the processes of a run tell one another; with one process every function is the identity.

Batches differ in size from rank to rank, and a rank may have none, so these take anything and count on nothing but that
all ranks call them in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils._pytree import tree_map

T = TypeVar("T")


def num_ranks() -> int:
    """Processes of this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process among those of the run."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def is_about_a_lost_rank(error: BaseException) -> bool:
    """Whether `error` comes from waiting for a process that has ended or does not answer."""
    if isinstance(error, dist.DistBackendError):
        return True
    signs = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def sum_over_ranks(value: float | Tensor, device: torch.device | str = "cpu") -> Tensor:
    """Sum of `value` over all ranks, on `device`."""
    total = torch.as_tensor(value, device=device).detach().clone()
    if num_ranks() > 1:
        dist.all_reduce(total)
    return total


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace each gradient by its sum over all ranks; a rank without one adds nothing.

    Those of sharded parameters have been summed in the backward pass.
    """
    if num_ranks() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    copies = [p.grad for p in parameters if p.grad is not None and not isinstance(p, DTensor)]
    for bucket in buckets(copies):  # one by one, the many matrices of an adapter take longer to begin than to travel
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        dist.all_reduce(flat)
        for gradient, summed in zip(bucket, flat.split([gradient.numel() for gradient in bucket]), strict=True):
            gradient.copy_(summed.view_as(gradient))


def buckets(tensors: Sequence[Tensor], limit: int = 2**25) -> list[list[Tensor]]:
    """Tensors of one type next to each other, in groups of at most `limit` bytes or one tensor."""
    found: list[list[Tensor]] = []
    held = 0
    for tensor in tensors:
        if not found or found[-1][0].dtype != tensor.dtype or held + tensor.nbytes > limit:
            found.append([])
            held = 0
        found[-1].append(tensor)
        held += tensor.nbytes
    return found


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


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that the ranks hold in parts (all of them have to ask); any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(state: Any, keep: bool) -> Any:
    """`state`, nested, with its tensors whole and in main memory; None for ranks that do not `keep` it."""

    def gather(value: Any) -> Any:  # one tensor at a time, so that only who keeps them ever holds more
        if not isinstance(value, Tensor):
            return value
        value = whole(value)
        return value.cpu() if keep else None

    state = tree_map(gather, state)
    return state if keep else None


def parts_like(tensor: Tensor, model: Tensor) -> Tensor:
    """`tensor`, which every rank has whole, held in parts if `model` is, and on its device."""
    if isinstance(tensor, DTensor) or not isinstance(model, DTensor):
        return tensor.to(model.device)
    parts = distribute_tensor(tensor, model.device_mesh, model.placements, src_data_rank=None)
    return parts.to(model.device)  # which is main memory where parts are kept there


def evened(items: Iterable[T], filler: T, device: torch.device | str) -> list[T]:
    """`items`, followed by `filler` until all ranks have as many."""
    items = list(items)
    most = torch.tensor(len(items), device=device)
    if num_ranks() > 1:
        dist.all_reduce(most, dist.ReduceOp.MAX)
    return items + [filler] * (int(most) - len(items))
