"""AdamW with moments of 8 bits, from bitsandbytes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from collm.algorithms.optimizers import float32_copies, fused, stepping_for
from collm.errors import ConfigurationError

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed: pip install collm[lowbit]"
)


def made(weights: list[nn.Parameter], name: str) -> torch.optim.Optimizer:
    if name == "8 bits":
        import bitsandbytes

        return fused(bitsandbytes.optim.AdamW8bit([{"params": weights, "lr": 0.01}]))
    return fused(torch.optim.AdamW([{"params": weights, "lr": 0.01}]))


def stepped(name: str) -> tuple[torch.Tensor, torch.optim.Optimizer]:
    """A weight after 20 steps towards another one."""
    start, end = torch.randn(2, 64, 128, generator=torch.Generator().manual_seed(0))
    weight = nn.Parameter(start.clone())
    optimizer = made([weight], name)
    for _ in range(20):
        weight.grad = weight.detach() - end
        optimizer.step()
    return weight.detach() - start, optimizer


def test_steps_follow_those_of_float32() -> None:
    (moved, exact), (found, optimizer) = stepped("float32"), stepped("8 bits")
    (state,) = optimizer.state.values()
    assert state["state1"].dtype == state["state2"].dtype == torch.uint8
    # 20 steps of 0.01 lead about 0.2 far: within 15 % anywhere, and 3 % on average
    assert moved.abs().max() == pytest.approx(0.2, rel=0.1)
    assert (found - moved).abs().max() < 0.15 * 0.2
    assert (found - moved).abs().mean() < 0.03 * 0.2
    assert not found.equal(moved)
    assert sum(entry.nbytes for entry in state.values() if torch.is_tensor(entry)) < 0.3 * sum(
        entry.nbytes for entry in next(iter(exact.state.values())).values()
    )


def test_shards_are_refused(tmp_path: Path) -> None:
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        weight = nn.Parameter(distribute_tensor(torch.zeros(8, 8), init_device_mesh("cpu", (1,)), [Shard(0)]))
        with pytest.raises(ConfigurationError, match="AdamW8bit of bitsandbytes cannot step shards; train LoRA"):
            made([weight], "8 bits")
    finally:
        dist.destroy_process_group()


def test_float32_copies_of_bfloat16_weights_go_on_from_a_checkpoint() -> None:
    def learner() -> tuple[list[nn.Parameter], Any]:
        generator = torch.Generator().manual_seed(0)
        weights = [nn.Parameter(torch.randn(size, 64, generator=generator).bfloat16()) for size in (128, 8)]
        return weights, stepping_for(made(float32_copies(weights), "8 bits"), weights)

    def step(weights: list[nn.Parameter], optimizer: torch.optim.Optimizer, times: int) -> None:
        for _ in range(times):
            for weight in weights:
                weight.grad = (weight.detach() + 1).sign()
            optimizer.step()

    weights, optimizer = learner()
    optimizer.param_groups[0]["lr"] = 1e-4  # most steps are too small for bfloat16
    step(weights, optimizer, 3)
    again, resumed = learner()
    with torch.no_grad():
        for new, old in zip(again, weights, strict=True):
            new.copy_(old)
    resumed.load_state_dict(optimizer.state_dict())
    for learned, other in ((weights, optimizer), (again, resumed)):
        step(learned, other, 3)
    pairs = zip(optimizer.param_groups[0]["params"], resumed.param_groups[0]["params"], strict=True)
    assert all(one.equal(other) for one, other in pairs)
