"""Batched sampling from a causal language model, with the log-probability of every sampled token.

One decode loop for all rows: finished rows leave the batch, and log-probabilities are taken while decoding instead of
in a second pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.generation.logits_process import TopKLogitsWarper, TopPLogitsWarper

from collm.inference.cache import Rows, is_plain, join_rows
from collm.inference.forward import Reader
from collm.inference.prefill import Memory, prefill
from collm.inference.shared_cache import unfolded
from collm.runtime.profiler import meter


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Args:
        max_new_tokens: Largest number of tokens of one response.
        temperature: Divides the logits.
        top_p: Draw from the smallest set of tokens with this much probability; 1 is all of them.
        top_k: Draw from this many most likely tokens; 0 is all of them.
        greedy: Take the most likely token instead of drawing.
        min_new_tokens: Smallest number of tokens of one response; until then nothing ends it.
        allowed_ids: The only tokens that are drawn; None is all of them.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    greedy: bool = False
    min_new_tokens: int = 0
    allowed_ids: Sequence[int] | None = None


@meter.phase("generate")
@torch.no_grad()
def generate(
    reader: Reader,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    eos_ids: Sequence[int],
    generator: torch.Generator,
    memory: Memory | None = None,
    owners: Sequence[int] | None = None,
) -> list[tuple[list[int], list[float]]]:
    """Continue every prompt until it ends itself or reaches the limit.

    Args:
        reader: What reads them; call this within its `reading`.
        prompts: Token ids of each prompt, at least one token each.
        sampling: How tokens are drawn.
        eos_ids: Tokens that end a response; the one that did is part of it.
        generator: Source of chance on the reader's device.
        memory: What has been read before; afterwards it holds what was read and written here.
        owners: Whose each prompt is, where several policies read at once; those of one next to each other.

    Returns:
        For each prompt its sampled tokens and their log-probabilities under the distribution at `temperature`,
        before top-p and top-k cut it.
    """
    owned = [(owner, tuple(prompt)) for owner, prompt in zip(owners or [0] * len(prompts), prompts, strict=True)]
    owners = [owner for owner, _ in owned]
    device, limit = reader.device, sampling.max_new_tokens
    start, logits = prefill(reader, owned, memory or Memory())
    cache, width = start.cache, start.mask.shape[1]
    # room for every token to come, so that the mask is sliced and never rebuilt
    mask = torch.cat([start.mask, start.mask.new_ones(len(prompts), limit)], dim=1)
    position = start.mask.sum(1, keepdim=True)

    ends = torch.tensor(list(eos_ids), dtype=torch.long, device=device)
    rows = torch.arange(len(prompts), device=device)  # the prompt behind each row that is still computed
    tokens = torch.zeros(len(prompts), limit, dtype=torch.long, device=device)
    log_probs = torch.zeros(len(prompts), limit, device=device)
    lengths = torch.full((len(prompts),), limit, device=device)
    alive = torch.ones(len(prompts), dtype=torch.bool, device=device)
    left: list[tuple[Rows, Tensor]] = []  # what the rows that are done have read, and whose they are
    computed = 0
    for step in range(limit):
        forbidden = ends if step < sampling.min_new_tokens else None
        token, log_prob = draw(logits, sampling, generator, forbidden)
        tokens[rows, step], log_probs[rows, step] = token, log_prob
        ended = torch.isin(token, ends) & alive
        lengths[rows[ended]] = step + 1
        alive &= ~ended
        if step + 1 == limit or not alive.any():
            break
        if alive.sum() <= 0.75 * len(alive):  # copying the cache is worth it once enough rows are done
            keep, gone = (which.nonzero().squeeze(1) for which in (alive, ~alive))
            if memory is not None and is_plain(cache):
                read = Rows(cache, _read(mask[:, : width + step], width, lengths[rows]))
                everyone = torch.arange(len(gone), device=device)
                left.append((join_rows([(*unfolded(read, gone), everyone)]), rows[gone]))
            cache.batch_select_indices(keep)
            rows, mask, position, token, alive = (x[keep] for x in (rows, mask, position, token, alive))
            owners = [owned[row][0] for row in rows.tolist()]
        computed += len(token)
        logits = reader.forward(token[:, None], mask[:, : width + step + 1], position, cache, owners)
        position = position + 1
    sizes = lengths.tolist()
    # the last token of a response is drawn and never read
    meter.count(sum(sizes) - len(sizes), computed)
    drawn = [(tokens[row, :size].tolist(), log_probs[row, :size].tolist()) for row, size in enumerate(sizes)]
    if memory is not None:
        left.append((Rows(cache, _read(mask[:, : width + step], width, lengths[rows])), rows))
        sequences = [
            (owner, (*prompt, *tokens[:-1])) for (owner, prompt), (tokens, _) in zip(owned, drawn, strict=True)
        ]
        memory.replace([(read, [sequences[row] for row in who.tolist()]) for read, who in left])
    return drawn


def _read(mask: Tensor, width: int, lengths: Tensor) -> Tensor:
    """Positions of prompts and responses that count, [R, W]: after a response ended, its row may have gone on.

    Args:
        mask: True at the positions of the prompts that count and at all later ones, [R, W].
        width: Where responses begin.
        lengths: How many tokens each response has, [R].
    """
    return mask & (torch.arange(mask.shape[1], device=mask.device) < width + lengths[:, None] - 1)


def restrict(logits: Tensor, allowed_ids: Sequence[int] | None) -> Tensor:
    """Logits under which only `allowed_ids` have any probability, [..., V]; all of them where it is None."""
    if allowed_ids is None:
        return logits
    # the smallest number instead of -inf, whose product with a probability of 0 would be NaN in the entropy
    restricted = torch.full_like(logits, torch.finfo(logits.dtype).min)
    restricted[..., allowed_ids] = logits[..., allowed_ids]
    return restricted


def draw(
    logits: Tensor, sampling: Sampling, generator: torch.Generator, forbidden: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One token per row and its log-probability at the sampling temperature, [R] each.

    Args:
        logits: Of the next token, [R, V].
        sampling: How it is drawn.
        generator: Source of chance.
        forbidden: Tokens that are not drawn; like the cuts of top-p and top-k they leave log-probabilities alone.
    """
    logits = restrict(logits.float() / sampling.temperature, sampling.allowed_ids)
    log_probs = logits.log_softmax(-1)
    if forbidden is not None:
        logits = logits.index_fill(-1, forbidden, -torch.inf)
    if sampling.greedy:
        token = logits.argmax(-1)
        return token, log_probs.gather(-1, token[:, None]).squeeze(-1)
    if sampling.top_k:
        logits = TopKLogitsWarper(min(sampling.top_k, logits.shape[-1]))(None, logits)
    if sampling.top_p < 1.0:
        logits = TopPLogitsWarper(sampling.top_p)(None, logits)
    # one number per row and the inverse of the cumulative distribution; `multinomial` draws one for every token there
    # is, which takes longer than a small model
    below = logits.softmax(-1, dtype=torch.float64).cumsum(-1)
    chance = torch.rand(len(below), 1, dtype=torch.float64, device=below.device, generator=generator)
    token = torch.searchsorted(below, chance * below[:, -1:], right=True)
    return token.squeeze(-1), log_probs.gather(-1, token).squeeze(-1)
