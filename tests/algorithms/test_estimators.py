"""Every estimator against the policy gradient of a game that is solved exactly.

Expectations are sums over everything that can be drawn, so that they hold to rounding; one test draws for real. The
advantages come from the algorithms themselves and from the functions they call.
"""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from collm.algorithms.magrpo import MAGRPO
from collm.algorithms.mareinforce import MAREINFORCE
from collm.algorithms.maremax import MAReMax
from collm.algorithms.marloo import MARLOO
from collm.algorithms.monte_carlo import MonteCarlo
from collm.objectives import generalized_advantages, policy_gradient_loss
from collm.returns import discounted_returns

PAYOFF = torch.tensor([[3.0, -1.0, 0.5], [0.0, 2.0, -2.0], [1.0, 0.0, 5.0]], dtype=torch.float64)
LOGITS = torch.tensor([[0.3, -0.4, 0.1], [-0.2, 0.5, 0.2]], dtype=torch.float64)  # one row per agent
MONTE_CARLO = [MAREINFORCE, MARLOO, MAGRPO, MAReMax]


# One turn: gradients of the matrix game


def joint_probabilities(logits: Tensor) -> Tensor:
    """Probability of each joint action, [9]."""
    first, second = logits.softmax(-1)
    return torch.outer(first, second).flatten()


def true_gradient(logits: Tensor, discounted: float = 1.0) -> Tensor:
    """Gradient of the expected payoff, [2, 3]."""
    logits = logits.clone().requires_grad_()
    (joint_probabilities(logits) * PAYOFF.flatten()).sum().backward()
    return logits.grad * discounted


def gradients(logits: Tensor, groups: Tensor, advantages: Tensor) -> Tensor:
    """Ascent directions of the policy loss, one for each group.

    Args:
        logits: Policies, [2, 3].
        groups: Joint actions (0 to 8) of each group, [G, K].
        advantages: Their advantages, [G, K].

    Returns:
        Gradient of the mean over the group, [G, 2, 3].
    """
    table = logits.expand(len(groups), 2, 3).clone().requires_grad_()
    log_probs = table.log_softmax(-1)
    for agent, actions in enumerate((groups // 3, groups % 3)):
        taken = log_probs[:, agent].gather(1, actions)
        loss = policy_gradient_loss(taken, taken.detach(), advantages, torch.ones_like(groups, dtype=torch.bool))
        (loss / groups.shape[1]).backward(retain_graph=True)
    return -table.grad


def advantages_of(algorithm: MonteCarlo, groups: Tensor) -> Tensor:
    """What the algorithm makes of the payoffs of `groups` [G, K], each of them a group of single-turn episodes."""
    returns = discounted_returns(PAYOFF.flatten()[groups].view(-1, 1), torch.ones(groups.numel(), 1).bool(), 1.0)
    mask = torch.ones_like(returns, dtype=torch.bool)
    pieces = [
        algorithm.advantages(part, torch.arange(len(part)) // groups.shape[1], mask[: len(part)])
        for part in returns.split(100 * groups.shape[1])
    ]
    return torch.cat(pieces).view(groups.shape)


def every_group(size: int) -> tuple[Tensor, Tensor]:
    """All groups [9^K, K] and their probabilities [9^K]."""
    groups = torch.tensor(list(product(range(9), repeat=size)))
    return groups, joint_probabilities(LOGITS)[groups].prod(-1)


def expected_gradient(algorithm: MonteCarlo, size: int) -> Tensor:
    groups, probabilities = every_group(size)
    each = gradients(LOGITS, groups, advantages_of(algorithm, groups))
    return (probabilities[:, None, None] * each).sum(0)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_mareinforce_is_unbiased(make, size: int) -> None:
    assert_close(expected_gradient(make(MAREINFORCE, size), size), true_gradient(LOGITS))


@pytest.mark.parametrize("size", [2, 3])
def test_marloo_is_unbiased(make, size: int) -> None:
    assert_close(expected_gradient(make(MARLOO, size), size), true_gradient(LOGITS))


@pytest.mark.parametrize("size", [2, 3])
def test_magrpo_is_shorter_by_its_own_part_of_the_baseline(make, size: int) -> None:
    assert_close(expected_gradient(make(MAGRPO, size), size), true_gradient(LOGITS) * (size - 1) / size)


@pytest.mark.parametrize("size", [2, 3])
def test_maremax_ascends_the_mean_less_a_part_of_the_best(make, size: int) -> None:
    logits = LOGITS.clone().requires_grad_()
    groups, _ = every_group(size)
    best = PAYOFF.flatten()[groups].amax(-1)
    (joint_probabilities(logits)[groups].prod(-1) * best).sum().backward()
    expected = true_gradient(LOGITS) - logits.grad / size
    assert_close(expected_gradient(make(MAReMax, size), size), expected)
    # a bias of direction, not of length alone
    alike = torch.cosine_similarity(expected.flatten(), true_gradient(LOGITS).flatten(), dim=0)
    assert alike < 0.99


def test_critics_that_know_the_value_are_unbiased_in_one_turn() -> None:
    """With one state V(h) = V_i(h_i) = J, so that CC and DC are the same."""
    groups, probabilities = every_group(1)
    rewards = PAYOFF.flatten()[groups]
    value = (joint_probabilities(LOGITS) * PAYOFF.flatten()).sum().expand_as(rewards)
    advantages = generalized_advantages(rewards, value, torch.ones_like(rewards).bool(), 1.0, 0.0)
    each = gradients(LOGITS, groups, advantages)
    assert_close((probabilities[:, None, None] * each).sum(0), true_gradient(LOGITS))


@pytest.mark.parametrize("cls", MONTE_CARLO)
def test_drawn_averages_come_close(make, cls: type[MonteCarlo]) -> None:
    """20,000 groups of 4: within 4 standard errors of the expectation, entry by entry."""
    size, generator = 4, torch.Generator().manual_seed(0)
    drawn = torch.multinomial(joint_probabilities(LOGITS), 20_000 * size, True, generator=generator).view(-1, size)
    each = gradients(LOGITS, drawn, advantages_of(make(cls, size), drawn))
    errors = each.std(0) / len(each) ** 0.5
    expected = {MAGRPO: 0.75, MARLOO: 1.0, MAREINFORCE: 1.0}
    if cls is MAReMax:
        assert ((each.mean(0) - true_gradient(LOGITS)).abs() > 4 * errors).any()
    else:
        assert ((each.mean(0) - expected[cls] * true_gradient(LOGITS)).abs() < 4 * errors).all()


def test_baselines_lower_the_variance(make) -> None:
    """The same unbiased gradient, from payoffs that are all far from 0."""
    groups, probabilities = every_group(3)
    spread = {}
    for cls in (MAREINFORCE, MARLOO):
        algorithm = make(cls, 3)
        rewards = (PAYOFF.flatten() + 10)[groups].view(-1, 1)
        mask = torch.ones_like(rewards, dtype=torch.bool)
        advantages = algorithm.advantages(rewards, torch.arange(len(rewards)) // 3, mask).view(groups.shape)
        each = gradients(LOGITS, groups, advantages)
        mean = (probabilities[:, None, None] * each).sum(0)
        assert_close(mean, true_gradient(LOGITS))
        spread[cls] = float((probabilities[:, None, None] * (each - mean) ** 2).sum())
    assert spread[MARLOO] < spread[MAREINFORCE] / 5
