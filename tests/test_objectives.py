"""Expected numbers are worked by hand from the formulas; the arithmetic stands next to them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from collm.objectives import (
    MAX_LOG_RATIO,
    kl_penalty,
    policy_gradient_loss,
    value_loss,
)

LN2 = math.log(2.0)
MASK = torch.tensor([[True, True, False]])
ADVANTAGES = torch.tensor([[3.0, -1.0, 7.0]])


def gradient(loss: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    """Gradient of the scalar `loss` at `at`."""
    leaf = at.clone().requires_grad_()
    (result,) = torch.autograd.grad(loss(leaf), leaf)
    return result


def with_nan(values: Tensor, mask: Tensor) -> Tensor:
    """`values` with NaN where `mask` is False."""
    return values.masked_fill(~mask, math.nan)


# Every loss as a function of its first argument and the mask, the other arguments made from the first.
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "policy_gradient": lambda x, m: policy_gradient_loss(x, with_nan(x * 0.5, m).detach(), with_nan(x, m), m),
    "clipped": lambda x, m: policy_gradient_loss(x, with_nan(x * 0.5, m).detach(), with_nan(x, m), m, clip=0.2),
    "value": lambda x, m: value_loss(x, with_nan(x * 0.5, m).detach(), m),
    "clipped_value": lambda x, m: value_loss(x, with_nan(x * 0.5, m), m, with_nan(x * 0.9, m), clip=0.2),
    "kl": lambda x, m: kl_penalty(x, with_nan(x * 0.5, m), m),
}


# Policy


def test_policy_gradient_loss() -> None:
    # Ratios 2 and 1/2: -(2*3 + 0.5*(-1)) = -5.5. Gradient -rho*A: -6, 0.5.
    old = torch.tensor([[-1.0, -2.0, -3.0]])
    log_probs = old + torch.tensor([[LN2, -LN2, LN2]])
    assert_close(policy_gradient_loss(log_probs, old, ADVANTAGES, MASK), torch.tensor(-5.5))
    result = gradient(lambda x: policy_gradient_loss(x, old, ADVANTAGES, MASK), log_probs)
    assert_close(result, torch.tensor([[-6.0, 0.5, 0.0]]))


@pytest.mark.parametrize("clip", [None, 0.2])
def test_on_policy_gradient_is_that_of_reinforce(clip: float | None) -> None:
    log_probs = torch.tensor([[-1.0, -2.0, -3.0]])
    on_policy = gradient(lambda x: policy_gradient_loss(x, log_probs, ADVANTAGES, MASK, clip), log_probs)
    assert_close(on_policy, torch.tensor([[-3.0, 1.0, 0.0]]))  # -A: descending raises log pi of the good action


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "loss", "slope"),
    [
        # Moved too far in the wanted direction: the clip holds and there is nothing left to gain.
        (LN2, 3.0, -1.2 * 3, 0.0),  # ratio 2 -> 1.2
        (-LN2, -1.0, 0.8 * 1, 0.0),  # ratio 0.5 -> 0.8
        # Moved in the wrong direction: the minimum keeps the unclipped term and its gradient -rho*A.
        (LN2, -1.0, 2.0 * 1, 2.0),
        (-LN2, 3.0, -0.5 * 3, -1.5),
        # Within the clip nothing changes: ratio 1.1.
        (math.log(1.1), 3.0, -3.3, -3.3),
    ],
)
def test_clipping_is_pessimistic(log_ratio: float, advantage: float, loss: float, slope: float) -> None:
    old, mask = torch.tensor([[-4.0]]), torch.tensor([[True]])
    log_probs, advantages = old + log_ratio, torch.tensor([[advantage]])
    assert_close(policy_gradient_loss(log_probs, old, advantages, mask, clip=0.2), torch.tensor(loss))
    result = gradient(lambda x: policy_gradient_loss(x, old, advantages, mask, clip=0.2), log_probs)
    assert_close(result, torch.tensor([[slope]]))


def test_plain_clipping_without_the_minimum_would_give_another_number() -> None:
    """With ratio 2 and advantage -1 a plain clip says 1.2, and would stop correcting a move the wrong way."""
    old, mask, advantages = torch.tensor([[-4.0]]), torch.tensor([[True]]), torch.tensor([[-1.0]])
    plain = -(torch.tensor(2.0).clamp(0.8, 1.2) * -1.0)
    assert_close(plain, torch.tensor(1.2))
    with pytest.raises(AssertionError):
        assert_close(policy_gradient_loss(old + LN2, old, advantages, mask, clip=0.2), plain)


def test_ratio_is_that_of_complete_responses() -> None:
    """Two tokens, each twice as likely as before: the response is four times as likely."""
    token_log_probs, old = torch.tensor([-1.0, -2.0]), torch.tensor([-1.0 - LN2, -2.0 - LN2])
    loss = policy_gradient_loss(
        token_log_probs.sum().view(1, 1), old.sum().view(1, 1), torch.tensor([[1.0]]), torch.tensor([[True]])
    )
    assert_close(loss, torch.tensor(-4.0))


def test_extreme_ratio_stays_finite() -> None:
    log_probs, old, mask = torch.tensor([[0.0]]), torch.tensor([[-1000.0]]), torch.tensor([[True]])
    loss = policy_gradient_loss(log_probs, old, torch.tensor([[1.0]]), mask)
    assert_close(loss, torch.tensor(-math.exp(MAX_LOG_RATIO)))
    result = gradient(lambda x: policy_gradient_loss(x, old, torch.tensor([[1.0]]), mask), log_probs)
    assert_close(result, torch.tensor([[0.0]]))


def test_no_gradient_flows_into_advantages_or_old_log_probs() -> None:
    log_probs = torch.tensor([[-1.0, -2.0, -3.0]], requires_grad=True)
    advantages = ADVANTAGES.clone().requires_grad_()
    old = torch.tensor([[-1.5, -2.5, -3.5]], requires_grad=True)
    loss = policy_gradient_loss(log_probs, old, advantages, MASK)
    loss.backward()
    assert log_probs.grad is not None
    assert advantages.grad is None
    assert old.grad is None


# Critic


def test_value_loss() -> None:
    # (1 - 3)^2 + (2 - 1)^2 = 5. Gradient 2(V - y): -4, 2.
    values, targets = torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[3.0, 1.0, 0.0]])
    assert_close(value_loss(values, targets, MASK), torch.tensor(5.0))
    assert_close(gradient(lambda x: value_loss(x, targets, MASK), values), torch.tensor([[-4.0, 2.0, 0.0]]))


@pytest.mark.parametrize(
    ("value", "loss", "slope"),
    [
        # Old value 1, target 3, clip 0.5.
        (2.0, (1.5 - 3) ** 2, 0.0),  # moved 1 towards the target: clipped to 1.5, nothing left to gain
        (1.25, (1.25 - 3) ** 2, 2 * (1.25 - 3)),  # within the clip
        (0.0, (0.0 - 3) ** 2, 2 * (0.0 - 3)),  # moved away: 9 > (0.5 - 3)^2, the full error and its gradient
    ],
)
def test_clipped_value_loss(value: float, loss: float, slope: float) -> None:
    values, mask = torch.tensor([[value]]), torch.tensor([[True]])
    old_values, targets = torch.tensor([[1.0]]), torch.tensor([[3.0]])
    assert_close(value_loss(values, targets, mask, old_values, clip=0.5), torch.tensor(loss))
    # Within the clip both errors are the same; the gradient of their maximum is that of either.
    result = gradient(lambda x: value_loss(x, targets, mask, old_values, clip=0.5), values)
    assert_close(result, torch.tensor([[slope]]))


def test_no_gradient_flows_into_targets() -> None:
    values = torch.tensor([[1.0]], requires_grad=True)
    targets = torch.tensor([[3.0]], requires_grad=True)
    old_values = torch.tensor([[1.0]], requires_grad=True)
    mask = torch.tensor([[True]])
    (value_loss(values, targets, mask) + value_loss(values, targets, mask, old_values, 0.5)).backward()
    assert targets.grad is None
    assert old_values.grad is None
    assert_close(values.grad, torch.tensor([[-8.0]]))  # twice 2*(1 - 3)


# Reference policy and entropy


def test_kl_penalty() -> None:
    # d = ln 2, -ln 2: (2 - ln 2 - 1) + (0.5 + ln 2 - 1) = 0.5. Gradient 1 - exp(d): -1, 0.5.
    log_probs = torch.tensor([[-2.0, -3.0, -4.0]])
    reference = log_probs + torch.tensor([[LN2, -LN2, 5.0]])
    assert_close(kl_penalty(log_probs, reference, MASK), torch.tensor(0.5))
    result = gradient(lambda x: kl_penalty(x, reference, MASK), log_probs)
    assert_close(result, torch.tensor([[-1.0, 0.5, 0.0]]))


def test_kl_penalty_is_zero_for_equal_policies_and_never_negative() -> None:
    generator = torch.Generator().manual_seed(0)
    log_probs, reference = -5 * torch.rand(2, 64, 1, generator=generator)
    mask = torch.ones(1, 1, dtype=torch.bool)
    assert kl_penalty(log_probs, log_probs, mask) == 0
    assert all(kl_penalty(p.view(1, 1), q.view(1, 1), mask) >= 0 for p, q in zip(log_probs, reference, strict=True))


def test_kl_penalty_has_the_expectation_of_the_kl() -> None:
    """Summed with the policy's own probabilities the estimator is KL(pi || pi_ref), not KL(pi_ref || pi)."""
    policy, reference = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    one = torch.tensor([[True]])
    estimates = [
        kl_penalty(p.log().view(1, 1), q.log().view(1, 1), one) for p, q in zip(policy, reference, strict=True)
    ]
    # 0.5 ln 2.5 + 0.3 ln 1.5 + 0.2 ln (1/3) = 0.458145 + 0.121640 - 0.219722
    assert_close((policy * torch.stack(estimates)).sum(), torch.tensor(0.360062), atol=2e-6, rtol=0)
    # The other way round: 0.2 ln 0.4 + 0.2 ln (2/3) + 0.6 ln 3 = -0.183258 - 0.081093 + 0.659167 = 0.394816
    with pytest.raises(AssertionError):
        assert_close((policy * torch.stack(estimates)).sum(), torch.tensor(0.394816), atol=2e-6, rtol=0)


# Properties of every loss


@pytest.mark.parametrize("name", LOSSES)
def test_masked_elements_change_nothing(name: str) -> None:
    """NaN under the mask reaches neither the value nor any gradient."""
    loss, values = LOSSES[name], torch.tensor([[-1.0, -2.0, -3.0]])
    broken = with_nan(values, MASK)
    shorter = torch.tensor([[-1.0, -2.0]])
    assert_close(loss(broken, MASK), loss(shorter, MASK[:, :2]))
    result = gradient(lambda x: loss(x, MASK), broken)
    assert_close(result, torch.cat([gradient(lambda x: loss(x, MASK[:, :2]), shorter), torch.zeros(1, 1)], dim=1))


@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_micro_batches_add_up(name: str) -> None:
    """Sums, not means: masks that split the turns in two give the loss of the whole, gradients included."""
    loss, values = LOSSES[name], -torch.rand(4, 3, generator=torch.Generator().manual_seed(0))
    everything = torch.ones(4, 3, dtype=torch.bool)
    first = torch.arange(4)[:, None].expand(4, 3) < 1
    assert_close(loss(values, first) + loss(values, ~first), loss(values, everything))
    halves = gradient(lambda x: loss(x, first) + loss(x, ~first), values)
    assert_close(halves, gradient(lambda x: loss(x, everything), values))


@pytest.mark.parametrize("name", LOSSES)
def test_an_empty_mask_gives_zero(name: str) -> None:
    values = torch.tensor([[-1.0, -2.0]])
    nothing = torch.zeros(1, 2, dtype=torch.bool)
    assert LOSSES[name](values, nothing) == 0
    assert_close(gradient(lambda x: LOSSES[name](x, nothing), values), torch.zeros(1, 2))
