"""The equations of an update: advantages, and loss functions of policies and critics with their terms.

Pure functions of tensors. Losses are SUMS over the entries where the mask is True, never means, so that the losses of
micro-batches add up to the loss of the batch; the caller divides by the number of trajectories. A mask may select any
subset of the played turns, for example those in one micro-batch. Entries where the mask is False are ignored (they may
be NaN) and get no gradient.

Shapes: B trajectories, T turns, R rows, L tokens. Equation numbers refer to arXiv 2601.21972.
"""

from __future__ import annotations

import torch
from torch import Tensor

from collm.returns import discounted_returns, masked

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to this magnitude to keep `exp` finite; a clamped ratio has no gradient."""


def next_turn(values: Tensor, turn_mask: Tensor) -> Tensor:
    """V(h_{t+1}) from V(h_t), with 0 after the last played turn of a row.

    Args:
        values: V(h_t), [B, T].
        turn_mask: True at played turns, [B, T].

    Returns:
        Values of the next turn, [B, T].
    """
    values = masked(values, turn_mask)
    # The value after the last column is 0; a shorter row takes the 0 of its first masked turn.
    return torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)


def generalized_advantages(
    rewards: Tensor,
    values: Tensor,
    turn_mask: Tensor,
    discount: float,
    gae_lambda: float,
    next_values: Tensor | None = None,
) -> Tensor:
    """Generalized advantage estimates over turns (Schulman et al., arXiv 1506.02438).

    delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma lambda A_{t+1}. With lambda 0 this is the TD error
    of arXiv 2601.21972, eq. 2 and 4; with lambda 1 the return minus the value. The lambda-return that a critic
    regresses on is `generalized_advantages(...) + values` at the played turns.

    Args:
        rewards: Team reward of each turn, [B, T].
        values: V(h_t), [B, T].
        turn_mask: True at played turns, [B, T].
        discount: gamma.
        gae_lambda: lambda.
        next_values: V(h_{t+1}), [B, T]; by default from `values`. With those of another critic, lambda 1 no longer
            gives the return minus the value. The entry at the last played turn of a row is ignored.

    Returns:
        Advantages, 0 at masked turns, [B, T].
    """
    if next_values is None:
        next_values = next_turn(values, turn_mask)
    is_followed = torch.cat([turn_mask[:, 1:], torch.zeros_like(turn_mask[:, :1])], dim=1)
    next_values = masked(next_values, is_followed)
    deltas = masked(rewards + discount * next_values - values, turn_mask)
    return discounted_returns(deltas, turn_mask, discount * gae_lambda)


def policy_gradient_loss(
    log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, turn_mask: Tensor, clip: float | None = None
) -> Tensor:
    """Importance-weighted policy gradient over turns (arXiv 2601.21972, eq. 1, 2 and 4).

    The sum of -rho A with the ratio rho = pi(a | h) / pi_old(a | h) of complete responses. Its gradient is
    -rho A grad log pi, which is -A grad log pi while pi = pi_old. With `clip` it is PPO's clipped surrogate
    (arXiv 1707.06347, eq. 7), -min(rho A, clip(rho, 1 - clip, 1 + clip) A). The log-ratio is clamped to
    [-MAX_LOG_RATIO, MAX_LOG_RATIO].

    Args:
        log_probs: Log-probability of each response under the policy, summed over its tokens, [B, T].
        old_log_probs: The same under the behaviour policy, [B, T].
        advantages: Advantage of each response; no gradient flows into it, [B, T]. For responses that several
            trajectories share, the sums of their positive and of their negative advantages, [2, B, T].
        turn_mask: True at turns that count, [B, T].
        clip: Largest distance of the ratio from 1; None for no clipping.

    Returns:
        Sum over the turns that count, [].
    """
    advantages = advantages.detach()
    ratio = _log_ratio(log_probs, old_log_probs.detach(), turn_mask).exp()
    surrogate = ratio * advantages
    if clip is not None:
        surrogate = torch.minimum(surrogate, ratio.clamp(1 - clip, 1 + clip) * advantages)
    return -masked(surrogate, turn_mask).sum()


def sampler_weights(log_probs: Tensor, sampler_log_probs: Tensor, mask: Tensor, cap: float) -> Tensor:
    """Truncated importance weights of what trains against what sampled, min(pi / mu, cap); they carry no gradient.

    An engine that rounds otherwise than the trainer samples from mu, close to the policy pi of the same weights. The
    gradient E_mu[min(pi / mu, cap) A grad log pi] is then that of pi but for the truncation, which bounds its variance
    (truncated importance sampling: Ionides 2008, J. Comput. Graph. Stat. 17(2); for this gap: Yao et al. 2025, "Your
    Efficient RL Framework Secretly Brings You Off-Policy RL Training", where cap is C).

    Args:
        log_probs: log pi of tokens or of responses before the first step, any shape.
        sampler_log_probs: log mu, recorded while sampling, the same shape.
        mask: True at entries that count, the same shape.
        cap: Largest weight.

    Returns:
        The weights, 1 where `mask` is False.
    """
    return _log_ratio(log_probs.detach(), sampler_log_probs, mask).exp().clamp(max=cap)


def value_loss(
    values: Tensor, targets: Tensor, weights: Tensor, old_values: Tensor | None = None, clip: float | None = None
) -> Tensor:
    """Squared error of a critic, the weighted sum of (V - y)^2 (arXiv 2601.21972, eq. 3 and 5).

    This is the semi-gradient of TD(0): no gradient flows into the target. The paper does not say whether one flows
    into V(h_{t+1}). With `clip` it is that of PPO's value clipping, the weighted sum of max((V - y)^2,
    (V_clipped - y)^2) with V_clipped = V_old + clamp(V - V_old, -clip, clip).

    Args:
        values: V(h_t), [B, T].
        targets: Regression target y of the critic, [B, T].
        weights: Weight of each turn, 0 at turns that do not count, [B, T].
        old_values: V(h_t) at the time of the rollout, for `clip`; no gradient flows into it, [B, T].
        clip: Largest change of a value that can lower the loss; None for no clipping.

    Returns:
        Sum over the turns that count, [].
    """
    targets = targets.detach()
    errors = masked(values - targets, weights > 0).square()
    if clip is not None:
        assert old_values is not None, "a clip is relative to the values of the rollout"
        clipped = old_values.detach() + (values - old_values.detach()).clamp(-clip, clip)
        errors = torch.maximum(errors, masked(clipped - targets, weights > 0).square())
    return (weights * errors).sum()


def kl_penalty(log_probs: Tensor, reference_log_probs: Tensor, mask: Tensor) -> Tensor:
    """Estimate of KL(pi || pi_ref) from sampled tokens, the k3 of http://joschu.net/blog/kl-approx.html.

    The sum of exp(d) - d - 1 with d = log pi_ref - log pi, which is never negative, and 0 where pi = pi_ref. Its
    gradient is (1 - pi_ref / pi) grad log pi. d is clamped to [-MAX_LOG_RATIO, MAX_LOG_RATIO].

    Args:
        log_probs: Log-probability of each sampled token under the policy, [R, L].
        reference_log_probs: The same under the reference policy; no gradient flows into it, [R, L].
        mask: True at tokens that count, [R, L].

    Returns:
        Sum over the tokens that count, [].
    """
    difference = _log_ratio(reference_log_probs.detach(), log_probs, mask)
    return masked(difference.exp() - difference - 1, mask).sum()


def _log_ratio(log_probs: Tensor, other_log_probs: Tensor, mask: Tensor) -> Tensor:
    """log p - log q within [-MAX_LOG_RATIO, MAX_LOG_RATIO], 0 at masked entries."""
    return masked(log_probs - other_log_probs, mask).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
