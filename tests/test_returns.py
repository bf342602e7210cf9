"""Expected numbers are worked by hand from the formulas; the arithmetic stands next to them."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from collm.objectives import generalized_advantages, next_turn
from collm.returns import (
    discounted_returns,
    equal_groups,
    explained_variance,
    group_max_baseline,
    group_mean_baseline,
    group_standardize,
    leave_one_out_baseline,
    node_returns,
    normalize_advantages,
)

NAN = math.nan
BASELINES = [group_mean_baseline, leave_one_out_baseline, group_max_baseline]

# Two rows: one of three turns, one of two turns whose last column is padding.
REWARDS = torch.tensor([[1.0, 2.0, 4.0], [3.0, 5.0, 0.0]])
VALUES = torch.tensor([[0.5, 1.0, 2.0], [1.0, 3.0, 0.0]])
MASK = torch.tensor([[True, True, True], [True, True, False]])

# gamma = 0.5: row 0: 1 - 0.5 + 0.5*1, 2 - 1 + 0.5*2, 4 - 2; row 1: 3 - 1 + 0.5*3, 5 - 3 (no value after the end).
TD_ERRORS = torch.tensor([[1.0, 2.0, 2.0], [3.5, 2.0, 0.0]])


def random_batch(seed: int, lengths: list[int], width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards, values and turn mask of rows with the given numbers of turns, with NaN at the padding."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    rewards = torch.randn(len(lengths), width, generator=generator)
    values = torch.randn(len(lengths), width, generator=generator)
    return rewards.masked_fill(~mask, NAN), values.masked_fill(~mask, NAN), mask


def every_function(groups: Tensor) -> dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """All functions [B, T] -> [B, T] of this module as functions of (rewards, values, turn_mask)."""
    return {
        "returns": lambda r, v, m: discounted_returns(r, m, 0.9),
        "next_turn": lambda r, v, m: next_turn(v, m),
        "gae": lambda r, v, m: generalized_advantages(r, v, m, 0.9, 0.7),
        "mean": lambda r, v, m: group_mean_baseline(r, groups, m),
        "leave_one_out": lambda r, v, m: leave_one_out_baseline(r, groups, m),
        "max": lambda r, v, m: group_max_baseline(r, groups, m),
        "normalize": lambda r, v, m: normalize_advantages(r, m),
        "standardize": lambda r, v, m: group_standardize(r, groups, m),
    }


FUNCTION_NAMES = list(every_function(torch.zeros(1)))


# Returns, targets, advantages


def test_discounted_returns() -> None:
    # Row 0: 4; 2 + 0.5*4 = 4; 1 + 0.5*4 = 3. Row 1: 5; 3 + 0.5*5 = 5.5.
    assert_close(discounted_returns(REWARDS, MASK, 0.5), torch.tensor([[3.0, 4.0, 4.0], [5.5, 5.0, 0.0]]))


def test_discounted_returns_without_discount_are_sums() -> None:
    assert_close(discounted_returns(REWARDS, MASK, 1.0), torch.tensor([[7.0, 6.0, 4.0], [8.0, 5.0, 0.0]]))


def test_values_of_the_next_turn() -> None:
    assert_close(next_turn(VALUES, MASK), torch.tensor([[1.0, 2.0, 0.0], [3.0, 0.0, 0.0]]))


def test_one_step_td_error_is_gae_with_lambda_zero() -> None:
    assert_close(generalized_advantages(REWARDS, VALUES, MASK, 0.5, 0.0), TD_ERRORS)


def test_generalized_advantages() -> None:
    # gamma*lambda = 0.5*0.5 = 0.25. Row 0: 2; 2 + 0.25*2 = 2.5; 1 + 0.25*2.5 = 1.625. Row 1: 2; 3.5 + 0.25*2 = 4.
    expected = torch.tensor([[1.625, 2.5, 2.0], [4.0, 2.0, 0.0]])
    assert_close(generalized_advantages(REWARDS, VALUES, MASK, 0.5, 0.5), expected)


def test_next_values_of_another_critic() -> None:
    # Never read after the end of a row. Errors, gamma = 0.5:
    # 1 + 0.5*6 - 0.5 = 3.5, 2 - 0.5*2 - 1 = 0, 4 - 2 = 2; 3 + 0.5*2 - 1 = 3, 5 - 3 = 2.
    later = torch.tensor([[6.0, -2.0, 9.0], [2.0, 9.0, NAN]])
    errors = torch.tensor([[3.5, 0.0, 2.0], [3.0, 2.0, 0.0]])
    assert_close(generalized_advantages(REWARDS, VALUES, MASK, 0.5, 0.0, next_values=later), errors)
    # gamma*lambda = 0.25. Row 0: 2; 0 + 0.25*2 = 0.5; 3.5 + 0.25*0.5 = 3.625. Row 1: 2; 3 + 0.25*2 = 3.5.
    expected = torch.tensor([[3.625, 0.5, 2.0], [3.5, 2.0, 0.0]])
    assert_close(generalized_advantages(REWARDS, VALUES, MASK, 0.5, 0.5, next_values=later), expected)


def test_single_turn_advantage_is_reward_minus_value() -> None:
    one_turn = torch.tensor([[True]])
    # 3 - 1, whatever the discount and lambda: there is no next turn.
    result = generalized_advantages(torch.tensor([[3.0]]), torch.tensor([[1.0]]), one_turn, 0.9, 0.95)
    assert_close(result, torch.tensor([[2.0]]))


@pytest.mark.parametrize("seed", range(3))
def test_gae_limits(seed: int) -> None:
    rewards, values, mask = random_batch(seed, [4, 1, 3], 4)
    played_values = values.masked_fill(~mask, 0.0)
    monte_carlo = discounted_returns(rewards, mask, 0.9) - played_values
    td_error = torch.where(mask, rewards + 0.9 * next_turn(values, mask) - played_values, 0.0)
    assert_close(generalized_advantages(rewards, values, mask, 0.9, 1.0), monte_carlo)
    assert_close(generalized_advantages(rewards, values, mask, 0.9, 0.0), td_error)


def test_a_value_after_the_end_would_give_another_number() -> None:
    """The padding of row 1 holds a value of 100: the target 5 + 0.5*100 = 55 of a leaking variant is not ours."""
    values = VALUES.clone()
    values[1, 2] = 100.0
    shifted = torch.cat([values[:, 1:], torch.zeros(2, 1)], dim=1)
    leaking = (REWARDS + 0.5 * shifted) * MASK
    assert leaking[1, 1] == 55.0
    targets = generalized_advantages(REWARDS, values, MASK, 0.5, 0.0) + values * MASK
    assert_close(targets[1, 1], torch.tensor(5.0))
    with pytest.raises(AssertionError):
        assert_close(targets, leaking)


def test_a_discount_off_by_one_turn_would_give_another_number() -> None:
    """gamma^t r_t summed from the start of the episode is another quantity from turn 1 on."""
    from_start = torch.tensor([[1 + 0.5 * 2 + 0.25 * 4, 0.5 * 2 + 0.25 * 4, 0.25 * 4]])
    with pytest.raises(AssertionError):
        assert_close(discounted_returns(REWARDS[:1], MASK[:1], 0.5), from_start)


# Baselines. Group 7 has the returns (1, 3), (5, -) ; group 3 has (2, 4), (6, 8).
RETURNS = torch.tensor([[1.0, 3.0], [2.0, 4.0], [5.0, 0.0], [6.0, 8.0]])
GROUPS = torch.tensor([7, 3, 7, 3])
GROUP_MASK = torch.tensor([[True, True], [True, True], [True, False], [True, True]])


def test_group_mean_baseline() -> None:
    # Group 7: (1+5)/2, (3+0)/2, an ended episode counts 0. Group 3: (2+6)/2, (4+8)/2.
    expected = torch.tensor([[3.0, 1.5], [4.0, 6.0], [3.0, 0.0], [4.0, 6.0]])
    assert_close(group_mean_baseline(RETURNS, GROUPS, GROUP_MASK), expected)


def test_leave_one_out_baseline() -> None:
    # Of two members the other's return; turn 1 of group 7: the other has ended, 0.
    expected = torch.tensor([[5.0, 0.0], [6.0, 8.0], [1.0, 0.0], [2.0, 4.0]])
    assert_close(leave_one_out_baseline(RETURNS, GROUPS, GROUP_MASK), expected)


def test_leave_one_out_baseline_of_three() -> None:
    returns, groups = torch.tensor([[1.0], [2.0], [6.0]]), torch.zeros(3)
    # (2+6)/2, (1+6)/2, (1+2)/2
    result = leave_one_out_baseline(returns, groups, torch.ones(3, 1, dtype=torch.bool))
    assert_close(result, torch.tensor([[4.0], [3.5], [1.5]]))


def test_group_max_baseline() -> None:
    expected = torch.tensor([[5.0, 3.0], [6.0, 8.0], [5.0, 0.0], [6.0, 8.0]])
    assert_close(group_max_baseline(RETURNS, GROUPS, GROUP_MASK), expected)


def test_group_max_baseline_counts_an_ended_episode_as_zero() -> None:
    # Turn 1: max(-3, 0 of the ended one).
    returns = torch.tensor([[-1.0, -3.0], [-2.0, 0.0]])
    mask = torch.tensor([[True, True], [True, False]])
    assert_close(group_max_baseline(returns, torch.zeros(2), mask), torch.tensor([[-1.0, 0.0], [-1.0, 0.0]]))


def test_a_mean_over_the_whole_batch_would_give_another_number() -> None:
    # (1+2+5+6)/4 = 3.5 at turn 0 is neither 3 nor 4.
    whole = group_mean_baseline(RETURNS, torch.zeros(4), GROUP_MASK)
    assert_close(whole[:, 0], torch.full((4,), 3.5))
    with pytest.raises(AssertionError):
        assert_close(group_mean_baseline(RETURNS, GROUPS, GROUP_MASK), whole)


@pytest.mark.parametrize("lengths", [[3, 3, 3, 3], [3, 1, 2, 1]])
def test_leave_one_out_is_scaled_group_mean(lengths: list[int]) -> None:
    """R - mean of the others = K / (K - 1) * (R - mean), also where episodes have ended and count 0."""
    rewards, _, mask = random_batch(0, lengths, 3)
    returns, groups = discounted_returns(rewards, mask, 1.0), torch.zeros(4)
    leave_one_out = returns - leave_one_out_baseline(returns, groups, mask)
    assert_close(leave_one_out, 4 / 3 * (returns - group_mean_baseline(returns, groups, mask)))


def test_group_of_one() -> None:
    returns, groups, mask = torch.tensor([[1.0, 2.0]]), torch.tensor([5]), torch.tensor([[True, True]])
    for baseline in BASELINES:
        assert_close(baseline(returns, groups, mask), returns)


def test_a_member_whose_peers_failed_has_no_advantage() -> None:
    """Groups are refused below two, but an episode that fails before its first turn leaves its group smaller."""
    returns = torch.tensor([[2.0], [NAN], [4.0], [6.0]])
    groups, mask = torch.tensor([0, 0, 1, 1]), torch.tensor([[True], [False], [True], [True]])
    advantages = torch.where(mask, returns - leave_one_out_baseline(returns, groups, mask), 0.0)
    assert_close(advantages, torch.tensor([[0.0], [0.0], [-2.0], [2.0]]))


@pytest.mark.parametrize("baseline", BASELINES)
def test_a_trajectory_without_turns_is_not_a_group_member(baseline: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """An episode that failed before its first turn has no return: it must not pull the baseline towards 0."""
    returns, groups = torch.tensor([[2.0], [4.0], [NAN]]), torch.zeros(3)
    mask = torch.tensor([[True], [True], [False]])
    expected = torch.cat([baseline(returns[:2], groups[:2], mask[:2]), torch.zeros(1, 1)])
    assert_close(baseline(returns, groups, mask), expected)


def test_leave_one_out_ignores_a_group_that_never_played() -> None:
    returns, mask = torch.tensor([[2.0], [4.0], [NAN]]), torch.tensor([[True], [True], [False]])
    result = leave_one_out_baseline(returns, torch.tensor([0, 0, 1]), mask)
    assert_close(result, torch.tensor([[4.0], [2.0], [0.0]]))


# Scaling


def test_normalize_advantages() -> None:
    # Played: 1, 3, 5. Mean 3, population variance (4+0+4)/3, deviation sqrt(8/3): -2/sqrt(8/3) = -sqrt(3/2).
    advantages, mask = torch.tensor([[1.0, 3.0], [5.0, 9.0]]), torch.tensor([[True, True], [True, False]])
    root = math.sqrt(1.5)
    assert_close(normalize_advantages(advantages, mask), torch.tensor([[-root, 0.0], [root, 0.0]]))
    # a single entry is left alone
    assert_close(normalize_advantages(advantages[:1, :1], mask[:1, :1]), advantages[:1, :1])


def test_normalized_advantages_of_uneven_trees_are_centered_with_the_weights_of_paths() -> None:
    """One child of the root ends, its sibling is continued twice: paths of 1 / 2, 1 / 4 and 1 / 4, times three."""
    advantages = torch.tensor([[1.0], [-1.0], [-1.0]])
    weights = torch.tensor([[1.5], [0.75], [0.75]])  # mean (1.5 - 0.75 - 0.75) / 3 = 0, variance 1
    mask = torch.ones(3, 1, dtype=torch.bool)
    assert_close(normalize_advantages(advantages, mask, weights), advantages)
    assert normalize_advantages(advantages, mask).sum().abs() < 1e-6  # all alike: 1.41, -0.71, -0.71
    assert_close(normalize_advantages(advantages, mask)[0, 0], torch.tensor(2.0**0.5))


def test_a_rank_without_episodes_has_no_largest_return() -> None:
    none = torch.zeros(0, 1)
    assert group_max_baseline(none, torch.zeros(0, dtype=torch.long), none.bool()).shape == (0, 1)


def test_normalize_advantages_uses_the_population_deviation() -> None:
    """1, 5 have the deviation 2; the sample deviation sqrt(8) would give 1/sqrt(2)."""
    result = normalize_advantages(torch.tensor([[1.0], [5.0]]), torch.ones(2, 1, dtype=torch.bool))
    assert_close(result, torch.tensor([[-1.0], [1.0]]))
    with pytest.raises(AssertionError):
        assert_close(result, torch.tensor([[-1.0], [1.0]]) / math.sqrt(2))


def test_equal_advantages_are_not_amplified() -> None:
    """Rounding noise of equal rewards must not become advantages of order one."""
    equal, mask = torch.full((7, 1), 0.1), torch.ones(7, 1, dtype=torch.bool)
    assert normalize_advantages(equal, mask).abs().max() < 1e-6
    noise = equal - group_mean_baseline(equal, torch.zeros(7), mask)
    assert group_standardize(noise, torch.zeros(7), mask).abs().max() < 1e-6


def test_group_standardize() -> None:
    # Turn 0: group 7 has 1, 5: deviation 2; group 3 has 2, 6: deviation 2. Turn 1: group 7 has a lone 3, unchanged;
    # group 3 has 4, 8: deviation 2.
    expected = torch.tensor([[0.5, 3.0], [1.0, 2.0], [2.5, 0.0], [3.0, 4.0]])
    assert_close(group_standardize(RETURNS, GROUPS, GROUP_MASK), expected)


def test_grpo_advantages_of_a_group_of_two_are_one_and_minus_one() -> None:
    advantages = RETURNS - group_mean_baseline(RETURNS, GROUPS, GROUP_MASK)
    result = group_standardize(advantages, GROUPS, GROUP_MASK)
    assert_close(result[:, 0], torch.tensor([-1.0, -1.0, 1.0, 1.0]))


def test_explained_variance_leaves_out_what_the_turn_explains() -> None:
    mask = torch.tensor([[True, True], [True, True], [True, False]])
    targets = torch.tensor([[11.0, 1.0], [13.0, 5.0], [15.0, NAN]])
    # First turn: 11, 13, 15 deviate by -2, 0, 2, squares 8. Residuals 1, 1, -2, mean 0, squares 6: 1 - 6/8.
    # Second turn: 1, 5, squares 8. Residuals 0, -1, squares 1/2: 1 - 1/16. Together 1 - 6.5/16.
    values = torch.tensor([[10.0, 1.0], [12.0, 6.0], [17.0, NAN]])
    assert_close(explained_variance(values, targets, mask), torch.tensor([1 - 6.5 / 16, 0.25, 1 - 1 / 16]))
    assert_close(explained_variance(targets, targets, mask), torch.ones(3))
    # Whoever knows the turn alone knows nothing, and constant offsets of a turn cost nothing.
    by_turn = torch.tensor([13.0, 3.0]).expand(3, 2)
    assert_close(explained_variance(by_turn, targets, mask), torch.zeros(3))
    assert_close(explained_variance(targets + by_turn, targets, mask), torch.ones(3))


def test_explained_variance_of_constant_targets_is_nan() -> None:
    mask, targets = torch.ones(7, 1, dtype=torch.bool), torch.full((7, 1), 0.1)
    # Rounding: a test for a variance of 0 would miss these.
    assert targets.var(correction=0) > 0
    assert explained_variance(torch.rand(7, 1), targets, mask).isnan().all()
    assert explained_variance(torch.rand(7, 1), torch.rand(7, 1), ~mask).isnan().all()
    assert explained_variance(torch.zeros(0, 2), torch.zeros(0, 2), torch.zeros(0, 2).bool()).isnan().all()
    # One turn that is constant takes nothing from the others.
    both = torch.tensor([[0.1, 1.0], [0.1, 3.0]])
    found = explained_variance(torch.tensor([[0.0, 1.0], [5.0, 2.0]]), both, torch.ones(2, 2).bool())
    assert found[1].isnan()
    assert_close(found[2], torch.tensor(0.75))  # residuals 0 and 1, squares 1/2 of 2


def test_equal_groups() -> None:
    rewards = torch.tensor([[0.0, 2.0], [0.0, 2.0], [0.0, 2.0], [1.0, 1.0], [0.0, 5.0]])
    groups = torch.tensor([0, 0, 1, 1, 2])  # 0 does not differ; 1 has the same return, paid at other turns; 2 is alone
    assert equal_groups(rewards, groups).tolist() == [True, True, False, False, False]


# Properties of every function


@pytest.mark.parametrize("name", FUNCTION_NAMES)
def test_masked_turns_are_zero(name: str) -> None:
    rewards, values, mask = random_batch(1, [3, 1, 2, 3], 3)
    result = every_function(torch.tensor([0, 0, 1, 1]))[name](rewards, values, mask)
    assert result.isfinite().all()
    assert (result[~mask] == 0).all()


@pytest.mark.parametrize("name", FUNCTION_NAMES)
def test_padding_changes_nothing(name: str) -> None:
    rewards, values, mask = random_batch(2, [3, 1, 2, 3], 3)
    function = every_function(torch.tensor([0, 0, 1, 1]))[name]
    padding = torch.full((4, 2), 1e3)
    padded = function(
        torch.cat([rewards, padding], dim=1),
        torch.cat([values, padding], dim=1),
        torch.cat([mask, torch.zeros(4, 2, dtype=torch.bool)], dim=1),
    )
    assert_close(padded[:, :3], function(rewards, values, mask))
    assert (padded[:, 3:] == 0).all()


@pytest.mark.parametrize("name", FUNCTION_NAMES)
def test_permuted_rows_give_permuted_results(name: str) -> None:
    rewards, values, mask = random_batch(3, [3, 1, 2, 3, 3], 3)
    groups, order = torch.tensor([4, 9, 4, 9, 4]), torch.tensor([3, 0, 4, 2, 1])
    expected = every_function(groups)[name](rewards, values, mask)[order]
    assert_close(every_function(groups[order])[name](rewards[order], values[order], mask[order]), expected)


def test_node_returns_weigh_the_paths_of_an_uneven_tree() -> None:
    """Joint action 0 is followed by 1, which ends the episode, and by 2, which is followed by 3 and 4."""
    nodes = torch.tensor([[0, 1, 0], [0, 2, 3], [0, 2, 4]])
    played = torch.tensor([[True, True, False], [True] * 3, [True] * 3])
    returns = torch.tensor([[8.0, 7.0, torch.nan], [2.0, 1.0, 3.0], [4.0, 5.0, 9.0]])
    found = node_returns(returns, nodes, torch.tensor([2.0, 1.0, 1.0]), played)
    # (2 * 8 + 2 + 4) / 4; then each its own, and (1 + 5) / 2
    assert_close(found, torch.tensor([5.5, 7.0, 3.0, 3.0, 9.0]))
