"""Communication between the processes (ranks) of a run; with one process every function is the identity.

Ranks may hold batches of different sizes, or none at all. These functions therefore accept inputs of any size; they
only require that all ranks call them in the same order.
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
    """Number of processes of this run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Rank of this process."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def is_about_a_lost_rank(error: BaseException) -> bool:
    """Whether `error` was raised because another process has ended or does not answer."""
    if isinstance(error, dist.DistBackendError):
        return True
    messages = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting")
    return isinstance(error, RuntimeError) and any(message in str(error) for message in messages)


def sum_over_ranks(value: float | Tensor, device: torch.device | str = "cpu") -> Tensor:
    """Sum of `value` over all ranks, on `device`."""
    total = torch.as_tensor(value, device=device).detach().clone()
    if num_ranks() > 1:
        dist.all_reduce(total)
    return total


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace each gradient by its sum over all ranks; a missing gradient counts as zero.

    The backward pass has already summed the gradients of sharded parameters.
    """
    if num_ranks() == 1:
        return
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [weight.grad for weight in parameters if not isinstance(weight, DTensor)]
    replicated = [gradient for gradient in gradients if gradient is not None]
    for bucket in buckets(replicated):  # a LoRA adapter has many small matrices; one all-reduce each would be slow
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        dist.all_reduce(flat)
        for gradient, summed in zip(bucket, flat.split([gradient.numel() for gradient in bucket]), strict=True):
            gradient.copy_(summed.view_as(gradient))


def buckets(tensors: Sequence[Tensor], limit: int = 2**25) -> list[list[Tensor]]:
    """Group consecutive tensors of one dtype into buckets of at most `limit` bytes, or of one larger tensor."""
    groups: list[list[Tensor]] = []
    num_bytes = 0
    for tensor in tensors:
        if not groups or groups[-1][0].dtype != tensor.dtype or num_bytes + tensor.nbytes > limit:
            groups.append([])
            num_bytes = 0
        groups[-1].append(tensor)
        num_bytes += tensor.nbytes
    return groups


def gather_objects(value: Any) -> list[Any]:
    """The `value` of every rank, ordered by rank; values are pickled."""
    if num_ranks() == 1:
        return [value]
    gathered: list[Any] = [None] * num_ranks()
    dist.all_gather_object(gathered, value)
    return gathered


def on_all_rows(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """Apply `function` to the concatenated rows of all ranks and return the result for the rows of this rank.

    Args:
        function: Takes tensors [B, T] and returns one of that shape, or one of fewer dimensions that is about all rows.
        tensors: Own rows, [B, T] each; ranks may differ in B and T. Padding is 0, or False in masks.
    """
    if num_ranks() == 1:
        return function(*tensors)
    everyone = gather_objects([tensor.cpu() for tensor in tensors])
    width = max(part[0].shape[1] for part in everyone)
    all_rows = [
        torch.cat([nn.functional.pad(part[i], (0, width - part[i].shape[1])) for part in everyone])
        for i in range(len(tensors))
    ]
    result = function(*all_rows).to(tensors[0].device)
    if result.dim() < 2:
        return result
    first = sum(part[0].shape[0] for part in everyone[: dist.get_rank()])
    return result[first : first + tensors[0].shape[0], : tensors[0].shape[1]]


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor of a sharded one, which all ranks have to call for; any other tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def full_state(state: Any, keep: bool) -> Any:
    """The nested `state` with full tensors in main memory on ranks with `keep`, None on the others."""

    def gather(value: Any) -> Any:  # one tensor at a time, so that the other ranks never hold more than one
        if not isinstance(value, Tensor):
            return value
        value = full_tensor(value)
        return value.cpu() if keep else None

    state = tree_map(gather, state)
    return state if keep else None


def sharded_like(tensor: Tensor, example: Tensor) -> Tensor:
    """`tensor`, of which every rank has a full copy, sharded if `example` is, and on its device."""
    if isinstance(tensor, DTensor) or not isinstance(example, DTensor):
        return tensor.to(example.device)
    shards = distribute_tensor(tensor, example.device_mesh, example.placements, src_data_rank=None)
    return shards.to(example.device)  # main memory where shards are offloaded to the CPU


def padded_to_longest(items: Iterable[T], filler: T, device: torch.device | str) -> list[T]:
    """`items`, padded with `filler` until all ranks have equally many."""
    items = list(items)
    most = torch.tensor(len(items), device=device)
    if num_ranks() > 1:
        dist.all_reduce(most, dist.ReduceOp.MAX)
    return items + [filler] * (int(most) - len(items))
