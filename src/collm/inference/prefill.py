"""Prompts read into a key/value cache: what was read before is taken from there, and what is equal is read once.

A dialogue grows at its end, so the next prompt of an agent begins with its last one and what it wrote. `Memory` keeps
the states of both between the turns of a rollout, and only the new tokens are read.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from collm.errors import TrainingError
from collm.inference.cache import Rows, is_plain, join_rows, make_cache
from collm.inference.forward import Reader
from collm.inference.shared_cache import BranchedCache, unfolded
from collm.packing import similar_lengths
from collm.runtime.profiler import meter

_WORTH_BRANCHING = 1024  # positions that are copied otherwise; steps have a few more operations then

Prompt = tuple[int, tuple[int, ...]]
"""Whose it is, where several policies read at once, and its tokens."""


class Memory:
    """Key/value states of sequences that a model has read; worth nothing once its weights have changed."""

    def __init__(self):
        self._places: dict[Prompt, tuple[Rows, int]] = {}

    def replace(self, read: Sequence[tuple[Rows, Sequence[Prompt]]]) -> None:
        """Keep the states of sequences, one for each of the rows, in place of all that was kept before."""
        self._places = {
            sequence: (rows, index)
            for rows, sequences in read
            if is_plain(rows.cache)
            for index, sequence in enumerate(sequences)
        }

    def recall(self, prompts: Sequence[Prompt]) -> list[tuple[int, Rows, int] | None]:
        """The longest known beginning of each prompt, at least one token shorter: its length, and where it is."""
        lengths = sorted({len(tokens) for _, tokens in self._places}, reverse=True)
        found = []
        for owner, tokens in prompts:
            starts = ((owner, tokens[:length]) for length in lengths if length < len(tokens))
            known = (start for start in starts if start in self._places)
            found.append(next(((len(start[1]), *self._places[start]) for start in known), None))
        return found


def prefill(reader: Reader, prompts: Sequence[Prompt], memory: Memory) -> tuple[Rows, Tensor]:
    """Read prompts, those of similar length together.

    Args:
        reader: What reads them.
        prompts: At least one token each; those of one owner next to each other.
        memory: What it has read before.

    Returns:
        The states of all prompts, aligned at their last token, and the logits of the next token, [R, V].
    """
    distinct = list(dict.fromkeys(prompts))
    known = memory.recall(distinct)
    groups = [list(range(len(distinct)))]
    if is_plain(make_cache(reader.config)):  # otherwise groups could not be joined
        sizes = [len(prompt[1]) - (start[0] if start else 0) for prompt, start in zip(distinct, known, strict=True)]
        sides = [[i for i, start in enumerate(known) if bool(start) == continued] for continued in (True, False)]
        groups = [
            [side[place] for place in group] for side in sides for group in similar_lengths([sizes[i] for i in side])
        ]
    groups = [sorted(group) for group in groups]
    starts = [(id(start[1]), start[2]) for start in known if start]
    alone = len(starts) == len(set(starts))  # no two prompts go on from the same states
    read = []
    for group in groups:
        read.append(_read(reader, [distinct[i] for i in group], [known[i] for i in group], alone))
    if not all(logits.isfinite().all() for _, logits in read):
        raise TrainingError("the model's logits are not finite: its weights have diverged; lower its learning rate.")
    rows, logits = read[0]
    if len(groups) > 1:
        places = [torch.tensor(group, device=reader.device) for group in groups]
        rows = join_rows(
            [(part, torch.arange(len(part.mask)), where) for (part, _), where in zip(read, places, strict=True)]
        )
        logits = torch.cat([part for _, part in read])[torch.cat(places).argsort()]
    if len(distinct) == len(prompts):
        return rows, logits

    # a group of generations shares the reading of its prompt
    numbers = {prompt: index for index, prompt in enumerate(distinct)}
    copies = torch.tensor([numbers[prompt] for prompt in prompts], device=reader.device)
    if reader.branches and (len(prompts) - len(distinct)) * rows.mask.shape[1] >= _WORTH_BRANCHING:
        return Rows(BranchedCache(rows.cache, copies), rows.mask[copies]), logits[copies]
    rows.cache.batch_select_indices(copies)
    return Rows(rows.cache, rows.mask[copies]), logits[copies]


def pad_left(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask of prompts aligned at their last token, [R, L] each; masked positions hold token 0."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[False] * (width - len(prompt)) + [True] * len(prompt) for prompt in prompts], device=device)
    return ids, mask


def _read(
    reader: Reader, prompts: Sequence[Prompt], starts: Sequence[tuple[int, Rows, int] | None], alone: bool
) -> tuple[Rows, Tensor]:
    """The states of some prompts, all of them with a known beginning or none, and the logits of their next tokens."""
    before = _recalled([start[1:] for start in starts], alone) if starts[0] else None
    new = [tokens[start[0] if start else 0 :] for (_, tokens), start in zip(prompts, starts, strict=True)]
    ids, mask = pad_left(new, reader.device)
    meter.count(sum(map(len, new)), ids.numel())
    cache = before.cache if before else make_cache(reader.config)
    mask = torch.cat([before.mask, mask], dim=1) if before else mask
    positions = (mask.cumsum(1)[:, -ids.shape[1] :] - 1).clamp(min=0)
    return Rows(cache, mask), reader.forward(ids, mask, positions, cache, [owner for owner, _ in prompts])


def _recalled(places: Sequence[tuple[Rows, int]], alone: bool) -> Rows:
    """Copies of rows that lie here and there; or, where nobody else needs them, the very rows as they lie together."""
    first, device = places[0][0], places[0][0].mask.device
    together = alone and [index for rows, index in places if rows is first] == list(range(len(first.mask)))
    if together and len(places) == len(first.mask) and bool(first.mask.all()):
        return unfolded(first, torch.arange(len(places), device=device))[0]
    parts: dict[int, tuple[Rows, list[int], list[int]]] = {}
    for place, (rows, index) in enumerate(places):
        _, chosen, taken = parts.setdefault(id(rows), (rows, [], []))
        chosen.append(index)
        taken.append(place)
    return join_rows(
        [
            (*unfolded(rows, torch.tensor(chosen, device=device)), torch.tensor(taken, device=device))
            for rows, chosen, taken in parts.values()
        ]
    )
