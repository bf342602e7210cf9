"""Fully sharded data parallelism (FSDP2) for algorithms with several networks and optimizers.

Extends Lightning's `ModelParallelStrategy`: it selects the modules to shard, samples from sharded policies, and writes
checkpoints that any strategy and number of processes can resume from.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, OffloadPolicy
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from collm.errors import ConfigurationError
from collm.models.backbone import Backbone
from collm.models.dtypes import DTYPES
from collm.runtime.collectives import full_state, sharded_like
from collm.runtime.files import clean, present, read_file, replacing, reported
from collm.strategies.checkpoints import check_layout, meta_file, read_folder
from collm.strategies.lockstep import Lockstep
from collm.strategies.sharding import broadcast_replicated, gathered_bytes, shard, sharded_modules


class FullySharded(ModelParallelStrategy):
    """Every process holds a shard of each weight, gradient and optimizer state (FSDP2).

    Args:
        mixed_precision: Dtype in which weights are gathered and used, such as `bfloat16`; the shards keep the dtype in
            which they were loaded, and gradients are reduced in float32. By default the dtype of the weights.
        cpu_offload: Keep shards, gradients and optimizer states in main memory; slow, but saves GPU memory.
        sampling: How responses are sampled from sharded weights. `gathered`: gather the agents' weights once per
            rollout, which is fast and needs memory for the full models. `synchronized`: gather layer by layer at every
            token, with all processes in lockstep, for models that do not fit. `auto`: `gathered` if the full models
            take at most half of the memory that is free after gradients and optimizer states are allocated.
        save_distributed_checkpoint: Write a checkpoint as a folder with the shards of every process, instead of one
            file. Any strategy and number of processes can resume from either kind.
        process_group_backend: Backend of the collectives; by default that of the device.
        timeout: How long a process waits for another one before the run ends.
    """

    model: Any  # the algorithm; None before Lightning connects it

    def __init__(
        self,
        mixed_precision: Literal["float32", "bfloat16", "float16"] | None = None,
        cpu_offload: bool = False,
        sampling: Literal["auto", "gathered", "synchronized"] = "auto",
        save_distributed_checkpoint: bool = False,
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
    ):
        if cpu_offload and process_group_backend is None and torch.cuda.is_available():
            process_group_backend = "cpu:gloo,cuda:nccl"  # offloaded gradient norms are reduced on the CPU
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )
        self.param_dtype = None if mixed_precision is None else DTYPES[mixed_precision]
        self.cpu_offload = cpu_offload
        self.sampling = sampling
        self.lockstep: Lockstep | None = None  # while sampling is synchronized

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True  # Lightning's strategy restores optimizers elsewhere, and only from its own checkpoints

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def setup(self, trainer: Any) -> None:
        module: Any = self.lightning_module
        if trainer.validate_loop.inference_mode:
            raise ConfigurationError(
                "trainer.inference_mode is true, but weights gathered in inference mode cannot be trained afterwards; "
                "set it to false, as configs/strategies/fsdp.yaml does."
            )
        if any(isinstance(one, Backbone) and one.quantization for one in module.modules()):
            raise ConfigurationError("quantization is set, and quantized weights cannot be sharded; use strategy ddp.")
        if not sharded_modules(module):
            shard(
                module,
                self.device_mesh["data_parallel"],
                MixedPrecisionPolicy(param_dtype=self.param_dtype, reduce_dtype=torch.float32),
                CPUOffloadPolicy(pin_memory=self.root_device.type == "cuda") if self.cpu_offload else OffloadPolicy(),
            )
        super().setup(trainer)
        self._choose_sampling(module)
        module.gathering = self.ready_to_sample

    def model_to_device(self) -> None:
        broadcast_replicated(self.model, self.root_device)  # sharded tensors are already on their device
        self.model._device = self.root_device  # Lightning sets it only in `to`
        for backbone in self.model.modules():
            if isinstance(backbone, Backbone):  # its weights may be offloaded to main memory
                backbone.computes_on = self.root_device

    # Sampling

    def _choose_sampling(self, module: Any) -> None:
        lms = sampled_here(module)
        size = gathered_bytes(lms, self.param_dtype)
        stepped = [weight for opt in self.optimizers for group in opt.param_groups for weight in group["params"]]
        learners = {weight for weights in module.learners.values() for weight in weights}
        # a gradient and two moments of each stepped tensor, and the float32 copies that optimizers step
        states = 3 * sum(map(full_bytes, stepped)) + sum(map(full_bytes, set(stepped) - learners))
        states = 0 if self.cpu_offload else states
        free = free_memory(self.root_device, self.num_processes) - states // self.world_size
        fits = torch.tensor(int(2 * size <= free), device=self.root_device)
        dist.all_reduce(fits, dist.ReduceOp.MIN)
        if self.sampling == "auto":
            self.sampling = "gathered" if int(fits) else "synchronized"
        self.lockstep = Lockstep(lms, self.root_device) if self.sampling == "synchronized" else None
        rank_zero_info(
            f"sampling from sharded weights: {self.sampling} (the agents' weights take {size / 1e9:.2f} GB per device, "
            f"{max(0, free) / 1e9:.2f} GB are free; trainer.strategy.sampling chooses)"
        )

    @contextmanager
    def ready_to_sample(self) -> Iterator[None]:
        """Context in which policies can be sampled from; all ranks have to enter it, whatever they sample."""
        if self.lockstep is not None:
            with self.lockstep.running():
                yield
            return
        module: Any = self.lightning_module
        lms = sampled_here(module)
        for lm in lms:
            for one in sharded_modules(lm):
                one.set_reshard_after_forward(False, recurse=False)
                one.unshard()
        try:
            yield
        finally:
            for lm in lms:
                for one in sharded_modules(lm):
                    one.set_reshard_after_forward(True, recurse=False)
                    one.reshard()

    # Checkpoints: a single file equals the one that a single process would write

    def lightning_module_state_dict(self) -> dict[str, Any]:
        module: Any = self.lightning_module
        kept = module.stored_names()
        frozen = {
            name
            for name, weight in self.model.named_parameters(remove_duplicate=False)
            if isinstance(weight, DTensor) and name not in kept
        }
        return self._stored({name: value for name, value in self.model.state_dict().items() if name not in frozen})

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return self._stored(getattr(optimizer, "_optimizer", optimizer).state_dict())

    def _stored(self, state: dict[str, Any]) -> dict[str, Any]:
        """`state` for a checkpoint: full tensors on the first rank, or the shards of every rank."""
        return state if self._save_distributed_checkpoint else full_state(state, self.is_global_zero) or {}

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        path = Path(self.broadcast(str(filepath)))
        if not self._save_distributed_checkpoint:
            if self.is_global_zero:
                self.checkpoint_io.save_checkpoint(checkpoint, path, storage_options)
            return
        if self.is_global_zero:
            clean(path.parent, path.name)
        with replacing(path) if self.is_global_zero else reported(path) as unfinished:
            super().save_checkpoint(checkpoint, unfinished or path, storage_options)  # to the path of the first process
            self.barrier()  # all shards are written

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        path = present(self.broadcast(str(checkpoint_path)))
        if not path.is_dir():
            return self.checkpoint_io.load_checkpoint(path, weights_only=weights_only)
        weights = self.model.state_dict()
        trained = [[w for group in o.param_groups for w in group["params"]] for o in self.optimizers]

        def own_shard(keys: tuple[Any, ...], size: torch.Size, dtype: torch.dtype) -> Tensor:
            if keys[0] == "state_dict":
                weight = weights[keys[1]]
            elif trained:  # ("optimizer_0", "state", index of the weight, name)
                weight = trained[int(keys[0].removeprefix("optimizer_"))][int(keys[2])]
            else:  # no training, so no optimizers
                weight = None
            full = torch.empty(size, dtype=dtype)
            return full if weight is None or weight.shape != size else torch.empty_like(weight, dtype=dtype)

        meta = read_file(meta_file(path))
        check_layout(meta, path)
        return meta | read_folder(path, own_shard, alone=False)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        targets = self.model.state_dict()
        with torch.no_grad():
            for name, value in checkpoint["state_dict"].items():
                if name in targets:  # a reference of a run with `kl_weight`, for example, is not needed by all
                    targets[name].copy_(sharded_like(value, targets[name]))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            weights = [weight for group in optimizer.param_groups for weight in group["params"]]
            shards = {
                index: {
                    name: sharded_like(value, weights[index]) if _is_elementwise(value, weights[index]) else value
                    for name, value in entries.items()
                }
                for index, entries in state["state"].items()
            }
            optimizer.load_state_dict({"state": shards, "param_groups": state["param_groups"]})


def sampled_here(module: Any) -> list[nn.Module]:
    """The language models of the policies of an algorithm but those that servers sample."""
    policies = [one for one in module.policies.values() if one.has_weights and one.spec.engine != "endpoint"]
    return list(dict.fromkeys(policy.backbone.lm for policy in policies))


def _is_elementwise(value: Any, weight: nn.Parameter) -> bool:
    """Whether `value` has an entry for each element of `weight`, as moments have, unlike the step count."""
    return isinstance(value, Tensor) and value.shape == weight.shape


def full_bytes(weight: Tensor) -> int:
    """Bytes of the full tensor."""
    return weight.numel() * weight.dtype.itemsize


def free_memory(device: torch.device, num_processes: int) -> int:
    """Bytes still available to each of `num_processes` processes on this machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // max(1, num_processes)
