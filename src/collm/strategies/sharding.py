"""Parameters in parts: how the networks of an algorithm are sharded over the processes of a run (FSDP2).

Every process holds an equal part of each weight, its gradient and its optimizer state. A layer's weights are gathered
right before the layer runs and let go of after it. LoRA adapters, and value heads beside them, are small and stay whole
everywhere; so one optimizer never has to step both kinds.
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
    """Shard all backbones in `module` layer by layer, and the heads of critics that train whole backbones.

    Args:
        module: An algorithm whose models are loaded, the same weights on every rank.
        mesh: The ranks that share, one dimension.
        mixed_precision: What weights are gathered and gradients reduced in.
        offload: Where the parts lie.
    """
    names = {id(weight): name for name, weight in module.named_parameters()}
    backbones = [one for one in module.modules() if isinstance(one, Backbone)]
    for backbone in backbones:
        lm: Any = backbone.lm
        adapters = {weight for name in backbone.adapters for weight in backbone.adapter_parameters(name)}
        given: dict[str, Any] = {"mesh": mesh, "offload_policy": offload, "ignored_params": adapters}
        layers = set(lm._no_split_modules or ())
        for layer in [one for one in lm.modules() if type(one).__name__ in layers]:
            fully_shard(layer, mp_policy=mixed_precision, reshard_after_forward=True, **given)
        fully_shard(lm, mp_policy=mixed_precision, reshard_after_forward=True, **given)
        lm.within = lambda work: work()
        register_fsdp_forward_method(lm, "within")
        backbone.within = lm.within  # type: ignore[method-assign]
        backbone.saves_work = False
    for critic in [one for one in module.modules() if isinstance(one, ValueNetwork) and one.adapter is None]:
        fully_shard(critic, mesh=mesh, offload_policy=offload, reshard_after_forward=True)
    for one in sharded_modules(module):
        # losses are parts of a mean over all ranks, so gradients are summed, not averaged
        one.set_gradient_divide_factor(1.0)
        one.set_force_sum_reduction_for_comms(True)
    now = dict(module.named_parameters())
    module.learners = {
        name: [now[names[id(weight)]] for weight in weights] for name, weights in module.learners.items()
    }


def sharded_modules(module: nn.Module) -> list[FSDPModule]:
    """Everything in `module` that gathers its own weights."""
    return [one for one in module.modules() if isinstance(one, FSDPModule)]


def whole_tensors(module: nn.Module) -> Iterator[torch.Tensor]:
    """Parameters and buffers of which every rank has a copy of its own."""
    yield from (weight for weight in module.parameters() if not isinstance(weight, DTensor))
    yield from module.buffers()


def make_equal(module: nn.Module, device: torch.device) -> None:
    """Give all ranks the first one's adapters, heads and buffers, on `device`."""
    for tensor in whole_tensors(module):
        tensor.data = tensor.data.to(device)
        if dist.get_world_size() > 1:
            dist.broadcast(tensor.data, 0)


def gathered_bytes(lms: Sequence[nn.Module], dtype: torch.dtype | None) -> int:
    """What all weights of `lms` take when they are gathered in `dtype`, by default their own."""
    size = None if dtype is None else dtype.itemsize
    return sum(
        weight.numel() * (size or weight.dtype.itemsize)
        for lm in lms
        for weight in lm.parameters()
        if isinstance(weight, DTensor)
    )
