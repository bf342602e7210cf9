"""Sharding of an algorithm's networks over the processes of a run (FSDP2).

Every process holds an equal shard of each weight, its gradient and its optimizer state. A layer's weights are gathered
right before the layer runs and freed after it. LoRA adapters, and the value heads of critics with LoRA, are small and
stay replicated, so no optimizer has to step both kinds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, OffloadPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.fsdp import MixedPrecisionPolicy as MixedPrecision
from torch.distributed.tensor import DTensor

from collm.critics.value_network import ValueNetwork
from collm.models.backbone import Backbone


def shard(
    module: Any,
    mesh: DeviceMesh,
    mixed_precision: MixedPrecision,
    offload: OffloadPolicy,
) -> None:
    """Shard all backbones in `module` layer by layer, and the value heads of critics without LoRA.

    Args:
        module: An algorithm whose models are loaded, with the same weights on every rank.
        mesh: The ranks, a mesh of one dimension.
        mixed_precision: Dtypes in which weights are gathered and gradients reduced.
        offload: Whether shards are offloaded to main memory.
    """
    names = {id(weight): name for name, weight in module.named_parameters()}
    backbones = [child for child in module.modules() if isinstance(child, Backbone)]
    for backbone in backbones:
        lm: Any = backbone.lm
        adapters = {weight for name in backbone.adapters for weight in backbone.adapter_parameters(name)}
        options: dict[str, Any] = {"mesh": mesh, "offload_policy": offload, "ignored_params": adapters}
        layers = set(lm._no_split_modules or ())
        for layer in [child for child in lm.modules() if type(child).__name__ in layers]:
            fully_shard(layer, mp_policy=mixed_precision, reshard_after_forward=True, **options)
        fully_shard(lm, mp_policy=mixed_precision, reshard_after_forward=True, **options)
        lm.with_weights = lambda work: work()
        register_fsdp_forward_method(lm, "with_weights")
        backbone.with_weights = lm.with_weights  # type: ignore[method-assign]
        backbone.fast_updates = False
    for critic in [child for child in module.modules() if isinstance(child, ValueNetwork) and child.adapter is None]:
        fully_shard(critic, mesh=mesh, offload_policy=offload, reshard_after_forward=True)
    for sharded in sharded_modules(module):
        # each rank's loss is already divided by the number of trajectories of all ranks, so gradients are summed
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)
    parameters = dict(module.named_parameters())
    module.learners = {
        name: [parameters[names[id(weight)]] for weight in weights] for name, weights in module.learners.items()
    }


def sharded_modules(module: nn.Module) -> list[FSDPModule]:
    """All submodules that FSDP has wrapped."""
    return [child for child in module.modules() if isinstance(child, FSDPModule)]


def replicated_tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    """Parameters and buffers of which every rank has a full copy."""
    yield from (weight for weight in module.parameters() if not isinstance(weight, DTensor))
    yield from module.buffers()


def broadcast_replicated(module: nn.Module, device: torch.device) -> None:
    """Copy the adapters, value heads and buffers of the first rank to all ranks, on `device`."""
    for tensor in replicated_tensors(module):
        tensor.data = tensor.data.to(device)
        if dist.get_world_size() > 1:
            dist.broadcast(tensor.data, 0)


def gathered_bytes(lms: Sequence[nn.Module], dtype: torch.dtype | None) -> int:
    """Bytes of all sharded weights of `lms` when they are gathered in `dtype`, by default their own."""
    size = None if dtype is None else dtype.itemsize
    return sum(
        weight.numel() * (size or weight.dtype.itemsize)
        for lm in lms
        for weight in lm.parameters()
        if isinstance(weight, DTensor)
    )
