"""Weights of low precision learn at small rates: optimizers step float32 copies, and what samples is their rounding."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from actors import actors_of
from collm.algorithms.base import MultiAgentModule
from collm.algorithms.optimizers import float32_copies, fused, stepping_for
from collm.models.policy_spec import PolicySpec
from collm.samplers.parallel import Parallel
from collm.trajectory import collate
from toy import Toy
from untrained import without_trainer

RATE = 5e-6


def adamw(weights: list[nn.Parameter], **kwargs: Any) -> torch.optim.Optimizer:
    optimizer = fused(torch.optim.AdamW([{"params": float32_copies(weights), "lr": RATE}], **kwargs))
    return stepping_for(optimizer, weights)


def gradients(steps: int, shape: tuple[int, ...] = (64, 8)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator).bfloat16() for _ in range(steps)]


def stepped(optimizer: torch.optim.Optimizer, weight: nn.Parameter, steps: list[Tensor]) -> None:
    for gradient in steps:
        weight.grad = gradient.to(weight.dtype)
        optimizer.step()
        assert weight.grad is None


@pytest.fixture
def start() -> Tensor:
    return torch.randn(64, 8, generator=torch.Generator().manual_seed(0)).bfloat16()


def test_steps_are_those_of_float32_weights(start: Tensor) -> None:
    weight, plain = nn.Parameter(start.clone()), nn.Parameter(start.float())
    optimizer, expected = adamw([weight]), torch.optim.AdamW([plain], lr=RATE, fused=True)
    for gradient in gradients(20):
        stepped(optimizer, weight, [gradient])
        plain.grad = gradient.float()
        expected.step()
    (kept,) = optimizer.param_groups[0]["params"]
    assert kept.dtype == torch.float32
    assert kept.equal(plain)
    assert weight.equal(plain.bfloat16())
    assert kept.ne(start.float()).float().mean() > 0.99
    # without copies nearly all of these steps are lost: at 1, the next number is 0.0078 away, and a step 0.000005
    bare = nn.Parameter(start.clone())
    stepped_bare = torch.optim.AdamW([bare], lr=RATE)
    for gradient in gradients(20):
        bare.grad = gradient
        stepped_bare.step()
    assert bare.eq(start).float().mean() > 0.9


@pytest.mark.parametrize("saved_after", [0, 5])
def test_copies_are_part_of_the_state(start: Tensor, saved_after: int) -> None:
    steps = gradients(12)
    weight = nn.Parameter(start.clone())
    optimizer = adamw([weight])
    stepped(optimizer, weight, steps[:saved_after])
    state, before = copy.deepcopy(optimizer.state_dict()), weight.detach().clone()
    stepped(optimizer, weight, steps[saved_after:])

    again = nn.Parameter(before)
    resumed = adamw([again])
    resumed.load_state_dict(state)
    stepped(resumed, again, steps[saved_after:])
    assert again.equal(weight)
    (one,), (two,) = optimizer.param_groups[0]["params"], resumed.param_groups[0]["params"]
    assert one.equal(two)
    assert set(resumed.state[two]) == {"step", "exp_avg", "exp_avg_sq"}
    assert resumed.state[two]["exp_avg"].dtype == torch.float32


def test_steps_continue_from_a_replaced_weight(start: Tensor) -> None:
    """As after a checkpoint without copies; what was not replaced keeps what was rounded away."""
    weight = nn.Parameter(start.clone())
    optimizer = adamw([weight], weight_decay=0.0)
    stepped(optimizer, weight, gradients(5))
    (kept,) = optimizer.param_groups[0]["params"]
    before = kept.detach().clone()
    with torch.no_grad():
        weight[0] = 3.0
    weight.grad = torch.zeros_like(weight)
    for state in optimizer.state.values():
        state["exp_avg"].zero_()
    optimizer.step()
    assert kept[0].eq(3.0).all()
    assert kept[1:].equal(before[1:])


def test_float32_weights_are_stepped_themselves() -> None:
    weights = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2, dtype=torch.float64))]
    assert all(one is two for one, two in zip(float32_copies(weights), weights, strict=True))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_agents_of_low_precision_move(tiny_folder: str, dtype: str) -> None:
    torch.manual_seed(0)
    env = Toy(1, horizon=1)
    spec = PolicySpec(tiny_folder, dtype=dtype, learning_rate=RATE, max_new_tokens=3)
    module = without_trainer(MultiAgentModule(agent_ids=env.agent_ids, policy=spec))
    weights = module.learners["a1"]
    (optimizer,) = module.optimizers()
    copies = optimizer.param_groups[0]["params"]
    before = [weight.detach().float() for weight in weights]
    touched = [torch.zeros_like(weight, dtype=torch.bool) for weight in weights]
    step = optimizer.step

    def noting() -> None:
        for seen, weight in zip(touched, weights, strict=True):
            seen |= weight.grad.ne(0)
        step()

    optimizer.step = noting
    for number in range(20):
        batch = collate(Parallel().rollout(env, env.tasks("train"), actors_of(module.policies), number, "cpu"))
        module.update_policies(batch, {"a1": torch.tensor([[1.0], [-2.0], [0.5], [1.5]])})
        for weight, kept in zip(weights, copies, strict=True):
            assert weight.dtype == getattr(torch, dtype)
            assert weight.equal(kept.to(weight.dtype))
    moved = torch.cat([(kept != old)[seen] for kept, old, seen in zip(copies, before, touched, strict=True)])
    assert len(moved) > 10_000
    assert moved.float().mean() > 0.99
    # what was sampled from is what is scored: the ratio begins at 1, up to the rounding of the two passes
    drifts = [value for name, value in module.logged if name == "policy/log_prob_drift/a1"]
    assert len(drifts) == 20
    assert max(drifts) < 0.03


def test_the_copies_can_be_left_out(tiny_folder: str) -> None:
    spec = PolicySpec(tiny_folder, dtype="bfloat16")
    module = without_trainer(MultiAgentModule(agent_ids=["a1"], policy=spec, float32_weights=False))
    (optimizer,) = module.optimizers()
    assert optimizer.param_groups[0]["params"] == module.learners["a1"]


def test_a_resumed_run_is_bit_equal(fit: Callable[..., int], run_folder: Path) -> None:
    args = ("--model=MAGRPO", "--model.policy.dtype=bfloat16", "--data.num_generations=2", "--model.kl_weight=0.1")
    args += ("--model.policy.random_weights=true", "--trainer.limit_val_batches=0")
    assert fit(*args, "--trainer.max_epochs=3") == 0
    assert fit(*args, "--trainer.max_epochs=2") == 0
    paths = [run_folder.with_name(f"version_{number}") / "checkpoints" / "last.ckpt" for number in range(3)]
    assert fit(*args, "--trainer.max_epochs=3", f"--ckpt_path={paths[1]}") == 0
    whole, _, resumed = (torch.load(path, weights_only=True) for path in paths)
    assert whole["optimizer_states"][0]["state"][0]["float32_weight"].dtype == torch.float32
    assert_close(resumed["optimizer_states"], whole["optimizer_states"], rtol=0, atol=0)
    assert_close(resumed["state_dict"], whole["state_dict"], rtol=0, atol=0)
