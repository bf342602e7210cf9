"""Returns of turns, baselines of groups, and scales of advantages.

Pure functions of tensors [B, T] (B trajectories, T turns). `turn_mask` is True at played turns, which are a prefix of
each row. Three rules hold for every function:

    - inputs at masked turns are ignored (they may be NaN), and the result there is 0;
    - the horizon is finite: after the last played turn of a row the return and the value are 0, without a bootstrap;
    - statistics cover the given tensors; a caller that splits a batch over processes must gather it first.

Equation numbers refer to arXiv 2601.21972.
"""

from __future__ import annotations

import torch
from torch import Tensor

_ROUNDING = 1e-5  # a deviation up to this is taken for rounding noise, and nothing is divided by it


def discounted_returns(rewards: Tensor, turn_mask: Tensor, discount: float) -> Tensor:
    """Reward to go, G_t = r_t + gamma G_{t+1} (arXiv 2601.21972, eq. 1).

    Args:
        rewards: Team reward of each turn, [B, T].
        turn_mask: True at played turns, [B, T].
        discount: gamma.

    Returns:
        G, 0 at masked turns, [B, T].
    """
    rewards = masked(rewards, turn_mask)
    returns = torch.zeros_like(rewards)
    following = torch.zeros_like(rewards[:, 0])
    for turn in reversed(range(rewards.shape[1])):
        following = rewards[:, turn] + discount * following  # 0 after the last played turn
        returns[:, turn] = following
    return returns


def node_returns(returns: Tensor, nodes: Tensor, weights: Tensor, turn_mask: Tensor) -> Tensor:
    """Return of every joint action of a rollout tree: r + gamma times the mean return of its children.

    By linearity it is computed as the weighted mean over the paths through the joint action.

    Args:
        returns: Reward to go along each path, [B, T].
        nodes: Joint action at each turn of each path, numbered from 0, [B, T].
        weights: Probability that a random descent of the tree takes each path, up to a factor, [B].
        turn_mask: True at played turns, [B, T].

    Returns:
        One return for each of the M joint actions, [M].
    """
    index, weight = nodes[turn_mask], weights[:, None].expand_as(returns)[turn_mask]
    empty = returns.new_zeros(int(index.max()) + 1 if index.numel() else 0)
    return empty.index_add(0, index, weight * returns[turn_mask]) / empty.index_add(0, index, weight)


def group_mean_baseline(returns: Tensor, groups: Tensor, turn_mask: Tensor) -> Tensor:
    """Mean return of the group at each turn: b(h_t) of arXiv 2601.21972, eq. 1, as in MAGRPO (arXiv 2508.04652).

    The members of a group are its trajectories that played any turn. A member whose episode is over contributes its
    reward to go, which is 0. A group of one is its own baseline, so its advantages and its gradient are 0.

    Args:
        returns: Reward to go, [B, T].
        groups: Group of each trajectory, [B].
        turn_mask: True at played turns, [B, T].

    Returns:
        Baselines, 0 at masked turns, [B, T].
    """
    peers = _peers(groups, turn_mask)
    return masked(_sum_over_peers(returns, peers, turn_mask) / _num_peers(peers), turn_mask)


def leave_one_out_baseline(returns: Tensor, groups: Tensor, turn_mask: Tensor) -> Tensor:
    """Mean return of the other members of the group at each turn, as in RLOO (arXiv 2402.14740) and MARLOO.

    Members whose episode is over contribute their reward to go, 0, so the last member still playing has the baseline
    0. The baseline does not depend on the trajectory's own actions, so the policy gradient stays unbiased, and in a
    group of K members the advantage is K / (K - 1) times that of `group_mean_baseline`. A member without peers, whose
    episodes failed before their first turn, is its own baseline, so its advantage and its gradient are 0.

    Arguments and result are those of `group_mean_baseline`.
    """
    peers = _peers(groups, turn_mask)
    others = _sum_over_peers(returns, peers, turn_mask) - masked(returns, turn_mask)
    num_others = _num_peers(peers) - 1
    return masked(torch.where(num_others > 0, others / num_others.clamp(min=1), returns), turn_mask)


def group_max_baseline(returns: Tensor, groups: Tensor, turn_mask: Tensor) -> Tensor:
    """Largest return of the group at each turn (MAReMax), so that no advantage is positive.

    Members whose episode is over contribute their reward to go, 0. A group of one is its own baseline.

    Arguments and result are those of `group_mean_baseline`.
    """
    if not len(returns):  # a rank without finished episodes
        return returns
    peers = _peers(groups, turn_mask)[:, :, None]
    candidates = torch.where(peers, masked(returns, turn_mask)[None], -torch.inf)
    return masked(candidates.amax(dim=1), turn_mask)


def normalize_advantages(advantages: Tensor, turn_mask: Tensor, weights: Tensor | None = None) -> Tensor:
    """Subtract the mean of all played turns from advantages, and divide by the population standard deviation.

    A single entry is returned unchanged: it has no deviation, and centering would make it 0.

    Args:
        advantages: Advantages, [B, T].
        turn_mask: True at played turns, [B, T].
        weights: Weight of each entry in mean and deviation, [B, T]; by default all weigh the same.

    Returns:
        Normalized advantages, 0 at masked turns, [B, T].
    """
    if turn_mask.sum() < 2:
        return masked(advantages, turn_mask)
    counted = turn_mask.to(advantages) if weights is None else turn_mask * weights
    count = counted.sum()
    centered = masked(advantages - (counted * masked(advantages, turn_mask)).sum() / count, turn_mask)
    std = ((counted * centered.square()).sum() / count).sqrt()
    return centered / torch.where(std > _ROUNDING, std, 1.0)


def group_standardize(advantages: Tensor, groups: Tensor, turn_mask: Tensor) -> Tensor:
    """Divide advantages by the population standard deviation of their group at their turn (GRPO, arXiv 2402.03300).

    A baseline shared by the group does not change the deviation, so this equals GRPO's division by the deviation of
    the returns. Only trajectories that played the turn count. Where fewer than two of a group did, or where they do
    not differ, advantages are returned unchanged.

    Args:
        advantages: Advantages, [B, T].
        groups: Group of each trajectory, [B].
        turn_mask: True at played turns, [B, T].

    Returns:
        Standardized advantages, 0 at masked turns, [B, T].
    """
    # [B, B, T]: True where row j belongs to the group of row i and played turn t. Sums over j instead of a matrix
    # product, which autocast or TF32 would round to a few digits.
    peers = (groups[:, None] == groups)[:, :, None] & turn_mask[None]
    count = peers.sum(dim=1).clamp(min=1)
    entries = masked(advantages, turn_mask)
    mean = torch.where(peers, entries[None], 0.0).sum(dim=1) / count
    std = (torch.where(peers, entries[None] - mean[:, None], 0.0).square().sum(dim=1) / count).sqrt()
    return masked(entries / torch.where(std > _ROUNDING, std, 1.0), turn_mask)


def explained_variance(values: Tensor, targets: Tensor, turn_mask: Tensor) -> Tensor:
    """1 - Var(targets - values) / Var(targets) with the mean of each turn taken away, over all turns and at each one.

    1 is a perfect critic, 0 one that knows no more than the turn: with a reward at every turn the number of turns that
    are left says most about the reward to go, and to know that is worth nothing.

    Args:
        values: V(h_t), [B, T].
        targets: What the critic predicts, [B, T].
        turn_mask: True at played turns, [B, T].

    Returns:
        Of all turns together, then of each turn; NaN where the targets do not vary within a turn, [1 + T].
    """
    if not len(targets):
        return targets.new_full((1 + targets.shape[1],), torch.nan)
    errors = _within_turns(masked(targets - values, turn_mask), turn_mask)
    spread = _within_turns(masked(targets, turn_mask), turn_mask)
    # Equality, not a zero variance: rounding gives seven equal targets of 0.1 a tiny positive one.
    high = torch.where(turn_mask, targets, -torch.inf).amax(0)
    low = torch.where(turn_mask, targets, torch.inf).amin(0)
    spread = torch.where(high > low, spread, 0.0)
    errors, spread = (torch.cat([sums.sum()[None], sums]) for sums in (errors, spread))
    return torch.where(spread > 0, 1 - errors / spread, torch.nan)


def equal_groups(rewards: Tensor, groups: Tensor) -> Tensor:
    """Which trajectories belong to a group of two or more whose rewards do not differ at any turn.

    With any group baseline, all advantages of such a group are 0.

    Args:
        rewards: Rewards, or returns, 0 where no turn was played, [B, T].
        groups: Group of each trajectory, [B].

    Returns:
        True for members of such groups, [B].
    """
    peers = groups[:, None] == groups
    # smaller differences are taken for rounding noise
    differ = ((rewards[:, None] - rewards).abs() > 1e-6).any(-1) & peers
    return ~differ.any(1) & (peers.sum(1) > 1)


def masked(values: Tensor, mask: Tensor) -> Tensor:
    """`values` where `mask` is True, 0 elsewhere.

    A product with the mask would keep NaN. In a loss the mask must also come before any operation that can overflow: a
    later mask would multiply a zero gradient by an infinite derivative, which is NaN.
    """
    return torch.where(mask, values, 0.0)


def _within_turns(entries: Tensor, mask: Tensor) -> Tensor:
    """Sum of squared deviations from the mean of each turn, over the rows where `mask` is True, [T]."""
    mean = entries.sum(0) / mask.sum(0).clamp(min=1)
    return masked(entries - mean, mask).square().sum(0)


def _peers(groups: Tensor, turn_mask: Tensor) -> Tensor:
    """True at [i, j] where trajectory j belongs to the group of i and played any turn, [B, B]."""
    return (groups[:, None] == groups) & turn_mask[:, 0]


def _num_peers(peers: Tensor) -> Tensor:
    """Number of members of each trajectory's group, at least 1, [B, 1]."""
    return peers.sum(dim=1, keepdim=True).clamp(min=1)


def _sum_over_peers(returns: Tensor, peers: Tensor, turn_mask: Tensor) -> Tensor:
    """Sum of the group's returns, 0 for episodes that are over, [B, T]."""
    # Not a matrix product, which autocast or TF32 would round to a few digits.
    return torch.where(peers[:, :, None], masked(returns, turn_mask)[None], 0.0).sum(dim=1)
