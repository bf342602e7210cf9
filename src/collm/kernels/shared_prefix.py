"""Rows that begin alike go through a model together: what they share is computed once, with gradients.

The responses of a group share their prompt, and paths of a rollout tree all that was said before they part. Rows become
a tree of segments, which is computed level by level: the segments of a level are one batch that goes on from the
key/value states of the level above.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from collm.inference.cache import is_plain, make_cache
from collm.kernels.layers import needed_at
from collm.models.forward import base_of, cache_argument, last_hidden_states

_WORTH_A_LEVEL = 128  # tokens; computing them again takes longer than another pass
_WORTH_IT = 0.85  # of the tokens of all rows; splitting has costs of its own


@dataclass(frozen=True)
class Segment:
    """Tokens that some rows share, and that all of them have read the same tokens before.

    Args:
        rows: Which rows.
        start: Position of its first token in each of them.
        stop: Position after its last one.
        parent: Number of the segment before it among those of the level above.
    """

    rows: Sequence[int]
    start: int
    stop: int
    parent: int = 0


def split(rows: Sequence[Sequence[int]]) -> list[list[Segment]]:
    """The segments of all rows, by level: every token of a row is in exactly one segment of that row."""
    levels: list[list[Segment]] = []

    def add(group: Sequence[int], start: int, depth: int, parent: int) -> None:
        stop = len(rows[group[0]]) if len(group) == 1 else start + _alike([rows[row][start:] for row in group])
        shared = len(group) > 1 and (len(group) - 1) * (stop - start) >= _WORTH_A_LEVEL
        if len(group) == 1 or shared or all(len(rows[row]) == stop for row in group):
            while len(levels) <= depth:
                levels.append([])
            levels[depth].append(Segment(group, start, stop, parent))
            start, depth, parent = stop, depth + 1, len(levels[depth]) - 1
        parts: dict[int | None, list[int]] = {}  # by the first token at which they differ
        for row in group:
            if len(rows[row]) > start:
                parts.setdefault(rows[row][stop] if len(rows[row]) > stop else None, []).append(row)
        for part in parts.values():
            add(part, start, depth, parent)

    add(range(len(rows)), 0, 0, 0)
    return levels


def hidden_states(lm: PreTrainedModel, ids: Tensor, mask: Tensor, needed: Tensor) -> Tensor:
    """Last hidden states, [R, L, hidden size], right where they are `needed`, with what rows share computed once.

    Dropout, where it is switched on, is drawn once for what is shared.

    Args:
        lm: The model.
        ids: Rows padded on the right, [R, L].
        mask: True at tokens, False at padding, [R, L].
        needed: True at the positions whose states are read, [R, L].
    """
    levels = _worthwhile(lm, ids, mask)
    if levels is None:
        with needed_at(lm, needed):
            return last_hidden_states(lm, ids)
    return by_level(lm, levels, ids, needed)


def by_level(lm: PreTrainedModel, levels: Sequence[Sequence[Segment]], ids: Tensor, needed: Tensor) -> Tensor:
    """Last hidden states of rows that are split into segments; see `hidden_states`."""
    base = base_of(lm)
    cache, before, computed, offset = DynamicCache(), needed.new_zeros(1, 0), [], 0
    places = torch.zeros(ids.shape, dtype=torch.long)  # of every position among all that is computed
    for segments in levels:
        sizes = torch.tensor([segment.stop - segment.start for segment in segments], device=ids.device)
        steps = torch.arange(int(sizes.max()), device=ids.device)
        first = torch.tensor([segment.rows[0] for segment in segments], device=ids.device)
        starts = torch.tensor([segment.start for segment in segments], device=ids.device)
        positions = (starts[:, None] + steps).clamp(max=ids.shape[1] - 1)
        parents = torch.tensor([segment.parent for segment in segments], device=ids.device)
        before = torch.cat([before[parents], steps < sizes[:, None]], dim=1)
        for layer in cache.layers:
            layer.keys, layer.values = _taken(layer.keys, parents), _taken(layer.values, parents)
        read = torch.stack([needed[segment.rows].any(0) for segment in segments]).gather(1, positions)
        with needed_at(lm, read & (steps < sizes[:, None])):
            output = base(
                input_ids=ids[first[:, None], positions],
                attention_mask=before,
                position_ids=positions,
                use_cache=True,
                **{cache_argument(type(base)): cache},
            )
        computed.append(output.last_hidden_state.flatten(0, 1))
        for number, segment in enumerate(segments):
            where = torch.arange(segment.stop - segment.start) + offset + number * len(steps)
            places[torch.tensor(segment.rows)[:, None], torch.arange(segment.start, segment.stop)] = where
        offset += len(computed[-1])
    everywhere = torch.cat(computed).index_select(0, places.flatten().to(ids.device))
    return everywhere.view(*ids.shape, -1)


def _worthwhile(lm: PreTrainedModel, ids: Tensor, mask: Tensor) -> list[list[Segment]] | None:
    """The segments of the rows, or None if it is better or only possible to compute each row on its own."""
    if len(ids) == 1 or not is_plain(make_cache(lm.config)):
        return None
    rows = [row[:size] for row, size in zip(ids.tolist(), mask.sum(1).tolist(), strict=True)]
    levels = split(rows)
    computed = sum(len(level) * max(segment.stop - segment.start for segment in level) for level in levels)
    return levels if len(levels) > 1 and computed <= _WORTH_IT * ids.numel() else None


def _taken(states: Tensor, rows: Tensor) -> Tensor:
    """Some rows; the gradient of `index_select` alone is fast, and only where what comes back lies in one piece."""
    taken = states.index_select(0, rows)
    if taken.requires_grad:
        taken.register_hook(Tensor.contiguous)
    return taken


def _alike(rows: Sequence[Sequence[int]]) -> int:
    """How many tokens all rows have in common at their beginning."""
    shortest, longest = min(rows), max(rows)  # in order of their tokens; what these two share, all do
    return next(
        (place for place, token in enumerate(shortest) if place >= len(longest) or token != longest[place]),
        len(shortest),
    )
