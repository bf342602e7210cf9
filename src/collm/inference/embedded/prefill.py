"""Prefill: prompts become key/value states, known beginnings are taken from a cache, and equal prompts computed once.

A dialogue grows at its end, so the next prompt of an agent begins with its last one and its response. `PrefixCache`
keeps the states of both between the turns of a rollout, and only new tokens are computed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from collm.architectures.forward import keeps_all_positions
from collm.errors import TrainingError
from collm.inference.embedded.cache import Rows, join_rows, make_cache
from collm.inference.embedded.forward import CachedModel
from collm.inference.embedded.shared_cache import SharedPrefixCache, expand_rows
from collm.inference.sampling import pad_left
from collm.packing import similar_lengths
from collm.runtime.profiler import meter

_MIN_SHARED_POSITIONS = 1024  # that would be copied otherwise; every step then has a few more operations

Prompt = tuple[int, tuple[int, ...]]
"""Index of the policy that a sequence belongs to, and its tokens."""


class PrefixCache:
    """Key/value states of sequences, valid until the weights change."""

    def __init__(self):
        self._rows: dict[Prompt, tuple[Rows, int]] = {}  # states that hold a sequence, and its row there

    def replace(self, states: Sequence[tuple[Rows, Sequence[Prompt]]]) -> None:
        """Keep the states of sequences, one for each row, and drop all that were kept before."""
        self._rows = {sequence: (rows, index) for rows, sequences in states for index, sequence in enumerate(sequences)}

    def lookup(self, prompts: Sequence[Prompt]) -> list[tuple[int, Rows, int] | None]:
        """Length, states and row of the longest known beginning of each prompt, at least one token shorter than it."""
        lengths = sorted({len(tokens) for _, tokens in self._rows}, reverse=True)
        beginnings = []
        for owner, tokens in prompts:
            candidates = ((owner, tokens[:length]) for length in lengths if length < len(tokens))
            known = (candidate for candidate in candidates if candidate in self._rows)
            beginnings.append(next(((len(one[1]), *self._rows[one]) for one in known), None))
        return beginnings


def prefill(model: CachedModel, prompts: Sequence[Prompt], prefix_cache: PrefixCache) -> tuple[Rows, Tensor]:
    """Compute prompts, those of similar length in one batch.

    Args:
        model: The weights.
        prompts: At least one token each; those of one policy are adjacent.
        prefix_cache: States of earlier sequences.

    Returns:
        The states of all prompts, aligned at their last token, and the logits of the next token, [R, V].
    """
    distinct = list(dict.fromkeys(prompts))
    known = prefix_cache.lookup(distinct)
    groups = [list(range(len(distinct)))]
    if keeps_all_positions(model.config):  # otherwise the states of groups could not be joined
        sizes = [len(prompt[1]) - (start[0] if start else 0) for prompt, start in zip(distinct, known, strict=True)]
        sides = [[i for i, start in enumerate(known) if bool(start) == continued] for continued in (True, False)]
        groups = [
            [side[index] for index in group] for side in sides for group in similar_lengths([sizes[i] for i in side])
        ]
    groups = [sorted(group) for group in groups]
    starts = [start[1:] for start in known if start]
    unshared = len(starts) == len(set(starts))  # no two prompts continue the same row
    parts = [_compute(model, [distinct[i] for i in group], [known[i] for i in group], unshared) for group in groups]
    if not all(logits.isfinite().all() for _, logits in parts):
        raise TrainingError("the model's logits are not finite: its weights have diverged; lower its learning rate.")
    rows, logits = parts[0]
    if len(groups) > 1:
        targets = [torch.tensor(group, device=model.device) for group in groups]
        rows = join_rows(
            [(part, torch.arange(len(part.mask)), into) for (part, _), into in zip(parts, targets, strict=True)]
        )
        logits = torch.cat([part for _, part in parts])[torch.cat(targets).argsort()]
    if len(distinct) == len(prompts):
        return rows, logits

    # the generations of a group share the computation of their prompt
    indices = {prompt: index for index, prompt in enumerate(distinct)}
    copies = torch.tensor([indices[prompt] for prompt in prompts], device=model.device)
    if model.shares_prefixes and (len(prompts) - len(distinct)) * rows.mask.shape[1] >= _MIN_SHARED_POSITIONS:
        return Rows(SharedPrefixCache(rows.cache, copies), rows.mask[copies]), logits[copies]
    rows.cache.batch_select_indices(copies)
    return Rows(rows.cache, rows.mask[copies]), logits[copies]


def _compute(
    model: CachedModel, prompts: Sequence[Prompt], starts: Sequence[tuple[int, Rows, int] | None], unshared: bool
) -> tuple[Rows, Tensor]:
    """The states of prompts and the logits of their next tokens; all of them have a known beginning, or none has."""
    before = _copied([start[1:] for start in starts if start], unshared) if starts[0] else None
    new = [tokens[start[0] if start else 0 :] for (_, tokens), start in zip(prompts, starts, strict=True)]
    ids, mask = pad_left(new, model.device)
    meter.count(sum(map(len, new)), ids.numel())
    cache = before.cache if before else make_cache(model.config)
    mask = torch.cat([before.mask, mask], dim=1) if before else mask
    positions = (mask.cumsum(1)[:, -ids.shape[1] :] - 1).clamp(min=0)
    return Rows(cache, mask), model.forward(ids, mask, positions, cache, [owner for owner, _ in prompts])


def _copied(sources: Sequence[tuple[Rows, int]], unshared: bool) -> Rows:
    """Copies of rows from several states; or the states themselves, where all of their rows are taken once.

    Args:
        sources: States and a row of them.
        unshared: No row is taken twice.
    """
    first, device = sources[0][0], sources[0][0].mask.device
    as_they_are = unshared and [index for rows, index in sources if rows is first] == list(range(len(first.mask)))
    if as_they_are and len(sources) == len(first.mask) and bool(first.mask.all()):
        return expand_rows(first, torch.arange(len(sources), device=device))[0]
    parts: dict[Rows, tuple[list[int], list[int]]] = {}
    for target, (rows, index) in enumerate(sources):
        chosen, targets = parts.setdefault(rows, ([], []))
        chosen.append(index)
        targets.append(target)
    return join_rows(
        [
            (*expand_rows(rows, torch.tensor(chosen, device=device)), torch.tensor(targets, device=device))
            for rows, (chosen, targets) in parts.items()
        ]
    )
