"""The fused step is the plain one, and only taken where nobody has chosen another."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from collm.algorithms.optimizers import fused


def stepped(optimizer: torch.optim.Optimizer, weight: torch.nn.Parameter) -> torch.Tensor:
    for scale in (1.0, -0.5):
        weight.grad = scale * torch.linspace(-1, 1, weight.numel())
        optimizer.step()
    return weight.detach()


def test_adamw_steps_fused_and_alike() -> None:
    ours, plain = (torch.nn.Parameter(torch.ones(5)) for _ in range(2))
    optimizer = fused(torch.optim.AdamW([{"params": [ours], "lr": 0.1}]))
    assert optimizer.param_groups[0]["fused"] is True
    found = stepped(optimizer, ours)
    assert_close(found, stepped(torch.optim.AdamW([plain], lr=0.1, fused=False), plain))
    # first step: lr times the sign of the gradient, and decay of 1 % of lr
    fresh = torch.nn.Parameter(torch.ones(2))
    optimizer = fused(torch.optim.AdamW([fresh], lr=0.1))
    fresh.grad = torch.tensor([3.0, -0.2])
    optimizer.step()
    assert_close(fresh.detach(), torch.tensor([0.999 - 0.1, 0.999 + 0.1]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("chosen", [{"fused": False}, {"foreach": True}, {"foreach": False}])
def test_the_users_choice_of_implementation_stays(chosen: dict[str, bool]) -> None:
    optimizer = fused(torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], **chosen))
    assert not optimizer.param_groups[0]["fused"]


def test_optimizers_without_a_fused_step_stay_as_they_are() -> None:
    optimizer = fused(torch.optim.Rprop([torch.nn.Parameter(torch.ones(1))]))
    assert "fused" not in optimizer.param_groups[0]
