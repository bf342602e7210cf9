"""Log-probabilities of sampled tokens, and the entropy of the distributions they came from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from collm.sampling_mask import SamplingMask

LOGITS_PER_CHUNK = 2**23  # 32 MB of float32 logits at a time


def restrict(logits: Tensor, allowed_ids: Sequence[int] | None) -> Tensor:
    """Logits [..., V] under which only `allowed_ids` have any probability; unchanged where that is None."""
    if allowed_ids is None:
        return logits
    # the smallest number instead of -inf, whose product with a probability of 0 would be NaN in the entropy
    restricted = torch.full_like(logits, torch.finfo(logits.dtype).min)
    restricted[..., allowed_ids] = logits[..., allowed_ids]
    return restricted


def score(
    head: Callable[[Tensor], Tensor],
    states: Tensor,
    targets: Tensor,
    vocabulary_size: int,
    temperature: float,
    allowed_ids: Sequence[int] | None,
    sampling_mask: SamplingMask | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probability of every target and entropy of the distribution it came from, [M] each.

    The logits are computed in chunks, which are recomputed in the backward pass, so that no [M, V] tensor of all of
    them exists.

    Args:
        head: Computes logits [M, V] from last hidden states [M, hidden size].
        states: Last hidden states from which the targets are predicted, [M, hidden size].
        targets: Token indices, [M].
        vocabulary_size: Number of logits, V.
        temperature: Divides the logits.
        allowed_ids: The only tokens with any probability; None for all.
        sampling_mask: The set of each target, outside which no token has any probability; None for all tokens.
    """
    size = max(1, LOGITS_PER_CHUNK // vocabulary_size)
    pieces, chunks = [], states.split(size)
    masks = [None] * len(chunks) if sampling_mask is None else sampling_mask.split([len(chunk) for chunk in chunks])
    for chunk, target, mask in zip(chunks, targets.split(size), masks, strict=True):
        given = (head, chunk, target, temperature, allowed_ids, mask)
        recompute = len(states) > size and torch.is_grad_enabled()
        pieces.append(checkpoint(_score, *given, use_reentrant=False) if recompute else _score(*given))
    log_probs, entropies = (torch.cat(values) for values in zip(*pieces, strict=True))
    return log_probs, entropies


def _score(
    head: Callable[[Tensor], Tensor],
    states: Tensor,
    targets: Tensor,
    temperature: float,
    allowed_ids: Sequence[int] | None,
    sampling_mask: SamplingMask | None,
) -> tuple[Tensor, Tensor]:
    logits = head(states)
    logits = restrict(logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature, allowed_ids)
    if sampling_mask is not None:
        logits = logits.masked_fill(~sampling_mask.dense(logits.shape[-1]), torch.finfo(logits.dtype).min)
    log_probs = logits.log_softmax(-1)
    entropy = -(log_probs.exp() * log_probs).sum(-1)
    return log_probs.gather(-1, targets[:, None]).squeeze(-1), entropy
