"""The decode loop: batched sampling from causal language models, with the log-probability of every sampled token.

All rows are decoded in one loop. Finished rows leave the batch, and log-probabilities are taken while decoding instead
of in a second forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from collm.architectures.forward import keeps_all_positions
from collm.inference.embedded.cache import Rows, join_rows
from collm.inference.embedded.forward import CachedModel
from collm.inference.embedded.prefill import PrefixCache, prefill
from collm.inference.embedded.shared_cache import expand_rows
from collm.inference.sampling import Responses, Sampling, draw, masks_of_rows
from collm.models.policy import Response
from collm.runtime.profiler import meter
from collm.runtime.progress import progress
from collm.sampling_mask import SamplingMask


@meter.phase("generate")
@torch.no_grad()
def generate(
    model: CachedModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    eos_ids: Sequence[int],
    generator: torch.Generator,
    prefix_cache: PrefixCache | None = None,
    owners: Sequence[int] | None = None,
) -> Responses:
    """Continue every prompt until an end token or the limit of its length.

    Args:
        model: The weights; call this inside its `active`.
        prompts: Token ids of each prompt, at least one token each.
        sampling: Sampling settings.
        eos_ids: Tokens that end a response; the one that did is part of it.
        generator: Source of random numbers, on the model's device.
        prefix_cache: States of earlier sequences; afterwards it holds those of the prompts and responses.
        owners: Index of the policy of each prompt, where several are batched; those of a policy are adjacent.

    Returns:
        For each prompt its sampled tokens, their log-probabilities at `temperature` and, where top-p, top-k or a
        shortest length cut the distribution, the sets they were drawn from; see `draw`.
    """
    owned = [(owner, tuple(prompt)) for owner, prompt in zip(owners or [0] * len(prompts), prompts, strict=True)]
    owners = [owner for owner, _ in owned]
    device, limit = model.device, sampling.max_new_tokens
    keeps = prefix_cache is not None and keeps_all_positions(model.config)
    start, logits = prefill(model, owned, prefix_cache or PrefixCache())
    cache, width = start.cache, start.mask.shape[1]
    # room for every token to come, so that the mask is sliced and never rebuilt
    mask = torch.cat([start.mask, start.mask.new_ones(len(prompts), limit)], dim=1)
    position = start.mask.sum(1, keepdim=True)

    ends = torch.tensor(list(eos_ids), dtype=torch.long, device=device)
    rows = torch.arange(len(prompts), device=device)  # the prompt of each row in the batch
    tokens = torch.zeros(len(prompts), limit, dtype=torch.long, device=device)
    log_probs = torch.zeros(len(prompts), limit, device=device)
    lengths = torch.full((len(prompts),), limit, device=device)
    alive = torch.ones(len(prompts), dtype=torch.bool, device=device)
    finished: list[tuple[Rows, Tensor]] = []  # states of rows that left the batch, and their prompts
    computed = 0
    drawn: list[tuple[SamplingMask, Tensor]] = []
    for step in range(limit):
        progress.tell("token {} of at most {}", step + 1, limit)
        forbidden = ends if step < sampling.min_new_tokens else None
        token, log_prob, kept = draw(logits, sampling, generator, forbidden)
        if kept is not None:
            drawn.append((kept, rows))
        tokens[rows, step], log_probs[rows, step] = token, log_prob
        ended = (token[:, None] == ends).any(-1) & alive
        lengths[rows[ended]] = step + 1
        alive &= ~ended
        if step + 1 == limit or not alive.any():
            break
        if alive.sum() <= 0.75 * len(alive):  # copying the cache pays off once enough rows have ended
            keep, gone = (which.nonzero().squeeze(1) for which in (alive, ~alive))
            if keeps:
                states = Rows(cache, _is_read(mask[:, : width + step], width, lengths[rows]))
                targets = torch.arange(len(gone), device=device)
                finished.append((join_rows([(*expand_rows(states, gone), targets)]), rows[gone]))
            cache.batch_select_indices(keep)
            rows, mask, position, token, alive = (x[keep] for x in (rows, mask, position, token, alive))
            owners = [owned[row][0] for row in rows.tolist()]
        computed += len(token)
        logits = model.forward(token[:, None], mask[:, : width + step + 1], position, cache, owners)
        position = position + 1
    sizes = lengths.tolist()
    # the last token of a response is sampled and never computed
    meter.count(sum(sizes) - len(sizes), computed)
    masks = masks_of_rows(drawn, sizes) if drawn else [None] * len(sizes)
    responses = [
        Response(tokens[row, :size].tolist(), log_probs[row, :size].tolist(), mask)
        for row, (size, mask) in enumerate(zip(sizes, masks, strict=True))
    ]
    if keeps and prefix_cache is not None:
        finished.append((Rows(cache, _is_read(mask[:, : width + step], width, lengths[rows])), rows))
        sequences = [
            (owner, (*prompt, *tokens[:-1])) for (owner, prompt), (tokens, _, _) in zip(owned, responses, strict=True)
        ]
        prefix_cache.replace([(states, [sequences[row] for row in numbers.tolist()]) for states, numbers in finished])
    return responses


def _is_read(mask: Tensor, width: int, lengths: Tensor) -> Tensor:
    """True at the tokens of prompts and responses, [R, W]; a row may have been decoded beyond the end of its response.

    Args:
        mask: True at the tokens of prompts and at all later positions, [R, W].
        width: Position at which responses begin.
        lengths: Number of tokens of each response, [R].
    """
    return mask & (torch.arange(mask.shape[1], device=mask.device) < width + lengths[:, None] - 1)
