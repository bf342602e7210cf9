"""Losses to minimize, and the estimates they are made of.

Pure functions of tensors. Losses are SUMS over masked entries, never means, so that those of micro-batches add up to
that of the batch; the caller divides by the number of trajectories. A mask may select any subset of the played turns,
for example those whose tokens a micro-batch holds. What stands at masked entries is never read and gets no gradient.

Letters: B trajectories, T turns, R rows, L tokens, V vocabulary. Equation numbers are those of arXiv 2601.21972.
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to this size, so that `exp` stays finite; beyond it a ratio has no gradient."""


def policy_gradient_loss(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, turn_mask: Tensor, clip: float | None = None
) -> Tensor:
    """Importance-weighted policy gradient over turns (arXiv 2601.21972, eq. 1, 2 and 4).

    The sum of -rho A with rho = pi(a | h) / pi_old(a | h), the ratio of whole responses. Its gradient is
    -rho A grad log pi, and -A grad log pi where the policy is still the one that sampled. With `clip` it is PPO's
    pessimistic surrogate (arXiv 1707.06347, eq. 7) of that ratio, -min(rho A, clip(rho, 1 - clip, 1 + clip) A),
    which stops rewarding a move further than the clip allows. The log-ratio is clamped to
    [-MAX_LOG_RATIO, MAX_LOG_RATIO].

    Args:
        log_probs: Log-probability of each response under the policy, summed over its tokens, [B, T].
        old_log_probs: The same under the behaviour policy, [B, T].
        advantages: Advantage of each response; no gradient flows into it, [B, T]. Of a response that several
            trajectories share, the positive and the negative ones, [2, B, T]; their terms are added.
        turn_mask: True at turns that count, [B, T].
        clip: Largest distance of the ratio from 1, None for the plain ratio.

    Returns:
        Sum over the turns that count, [].
    """
    advantages = advantages.detach()
    ratio = _log_ratio(log_probs, old_log_probs.detach(), turn_mask).exp()
    surrogate = ratio * advantages
    if clip is not None:
        surrogate = torch.minimum(surrogate, ratio.clamp(1 - clip, 1 + clip) * advantages)
    return -_masked_sum(surrogate, turn_mask)


def value_loss(values: Tensor, targets: Tensor, turn_mask: Tensor) -> Tensor:
    """Squared error of a critic, the sum of (V - y)^2 (arXiv 2601.21972, eq. 3 and 5).

    The target is held fixed: the paper does not say whether the gradient enters V(h_{t+1}), and a semi-gradient is
    what TD(0) means.

    Args:
        values: V(h_t), [B, T].
        targets: What the critic regresses on; no gradient flows into it, [B, T].
        turn_mask: True at turns that count, [B, T].

    Returns:
        Sum over the turns that count, [].
    """
    return _masked(values - targets.detach(), turn_mask).square().sum()


def clipped_value_loss(values: Tensor, old_values: Tensor, targets: Tensor, turn_mask: Tensor, clip: float) -> Tensor:
    """Squared error that does not reward moving a value further than `clip` from where it was (PPO's value clipping).

    The sum of max((V - y)^2, (V_clipped - y)^2) with V_clipped = V_old + clamp(V - V_old, -clip, clip).

    Args:
        values: V(h_t), [B, T].
        old_values: V(h_t) at the time of the rollout; no gradient flows into it, [B, T].
        targets: What the critic regresses on; no gradient flows into it, [B, T].
        turn_mask: True at turns that count, [B, T].
        clip: Largest move that lowers the loss.

    Returns:
        Sum over the turns that count, [].
    """
    old_values, targets = old_values.detach(), targets.detach()
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    error, clipped_error = _masked(values - targets, turn_mask), _masked(clipped - targets, turn_mask)
    return torch.maximum(error.square(), clipped_error.square()).sum()


def kl_penalty(log_probs: Tensor, reference_log_probs: Tensor, mask: Tensor) -> Tensor:
    """Estimate of KL(pi || pi_ref) from sampled tokens, the k3 of http://joschu.net/blog/kl-approx.html.

    The sum of exp(d) - d - 1 with d = log pi_ref - log pi, which is never negative and 0 where both agree. Its
    gradient is (1 - pi_ref / pi) grad log pi. d is clamped to [-MAX_LOG_RATIO, MAX_LOG_RATIO].

    Args:
        log_probs: Log-probability of each sampled token under the policy, [R, L].
        reference_log_probs: The same under the reference policy; no gradient flows into it, [R, L].
        mask: True at tokens that count, [R, L].

    Returns:
        Sum over the tokens that count, [].
    """
    difference = _log_ratio(reference_log_probs.detach(), log_probs, mask)
    return _masked_sum(difference.exp() - difference - 1, mask)


def _masked(values: Tensor, mask: Tensor) -> Tensor:
    """`values` where `mask` is True, 0 elsewhere.

    A product with the mask would keep NaN. For the gradient it must also come before anything that can overflow: a
    mask applied later multiplies its zero gradient with an infinite slope.
    """
    return torch.where(mask, values, 0.0)


def _masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum of `values` where `mask` is True."""
    return _masked(values, mask).sum()


def _log_ratio(log_probs: Tensor, other_log_probs: Tensor, mask: Tensor) -> Tensor:
    """log p - log q within [-MAX_LOG_RATIO, MAX_LOG_RATIO], 0 at masked entries."""
    return _masked(log_probs - other_log_probs, mask).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
