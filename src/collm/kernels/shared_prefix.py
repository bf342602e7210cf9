"""Forward passes in which rows with a common beginning share its computation, with gradients.

The responses of a group share their prompt, and the paths of a rollout tree all turns before they part. Rows become a
tree of segments that is computed level by level: the segments of a level are one batch that continues the key/value
states of the level above.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from collm.architectures.forward import base_of, cache_argument, keeps_all_positions, last_hidden_states
from collm.kernels.layers import needed_at

_MIN_SHARED_TOKENS = 128  # below it computing them for every row is faster than another forward pass
_MAX_SHARE_COMPUTED = 0.85  # of the tokens of all rows; above it splitting costs more than it saves


@dataclass(frozen=True)
class Segment:
    """Tokens that some rows have in common, after the same earlier tokens.

    Args:
        rows: Indices of the rows.
        start: Position of its first token in each of them.
        stop: Position after its last token.
        parent: Index of the preceding segment within the level above.
    """

    rows: Sequence[int]
    start: int
    stop: int
    parent: int = 0


def split(rows: Sequence[Sequence[int]]) -> list[list[Segment]]:
    """The segments of all rows, by level: every token of a row is in exactly one segment of that row."""
    levels: list[list[Segment]] = []

    def add(group: Sequence[int], start: int, depth: int, parent: int) -> None:
        stop = len(rows[group[0]]) if len(group) == 1 else start + _common_length([rows[row][start:] for row in group])
        shared = len(group) > 1 and (len(group) - 1) * (stop - start) >= _MIN_SHARED_TOKENS
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
    """Last hidden states, [R, L, hidden size], correct where they are `needed`; shared beginnings are computed once.

    Dropout, where it is switched on, is drawn once for a shared beginning.

    Args:
        lm: The model.
        ids: Rows padded on the right, [R, L].
        mask: True at tokens, False at padding, [R, L].
        needed: True at the positions whose states are read, [R, L].
    """
    levels = _levels(lm, ids, mask)
    if levels is None:
        with needed_at(lm, needed):
            return last_hidden_states(lm, ids)
    return by_level(lm, levels, ids, needed)


def by_level(lm: PreTrainedModel, levels: Sequence[Sequence[Segment]], ids: Tensor, needed: Tensor) -> Tensor:
    """Last hidden states of rows that are split into segments; see `hidden_states`."""
    base = base_of(lm)
    cache, before, computed, offset = DynamicCache(), needed.new_zeros(1, 0), [], 0
    sources = torch.zeros(ids.shape, dtype=torch.long)  # index of every position among the computed states
    for segments in levels:
        sizes = torch.tensor([segment.stop - segment.start for segment in segments], device=ids.device)
        steps = torch.arange(int(sizes.max()), device=ids.device)
        first = torch.tensor([segment.rows[0] for segment in segments], device=ids.device)
        starts = torch.tensor([segment.start for segment in segments], device=ids.device)
        positions = (starts[:, None] + steps).clamp(max=ids.shape[1] - 1)
        parents = torch.tensor([segment.parent for segment in segments], device=ids.device)
        before = torch.cat([before[parents], steps < sizes[:, None]], dim=1)
        for layer in cache.layers:
            layer.keys, layer.values = _select_rows(layer.keys, parents), _select_rows(layer.values, parents)
        is_read = torch.stack([needed[segment.rows].any(0) for segment in segments]).gather(1, positions)
        with needed_at(lm, is_read & (steps < sizes[:, None])):
            output = base(
                input_ids=ids[first[:, None], positions],
                attention_mask=before,
                position_ids=positions,
                use_cache=True,
                **{cache_argument(type(base)): cache},
            )
        computed.append(output.last_hidden_state.flatten(0, 1))
        for index, segment in enumerate(segments):
            indices = torch.arange(segment.stop - segment.start) + offset + index * len(steps)
            sources[torch.tensor(segment.rows)[:, None], torch.arange(segment.start, segment.stop)] = indices
        offset += len(computed[-1])
    states = torch.cat(computed).index_select(0, sources.flatten().to(ids.device))
    return states.view(*ids.shape, -1)


def _levels(lm: PreTrainedModel, ids: Tensor, mask: Tensor) -> list[list[Segment]] | None:
    """The segments of the rows, or None where every row has to be, or is faster, computed on its own."""
    if len(ids) == 1 or not keeps_all_positions(lm.config):
        return None
    rows = [row[:size] for row, size in zip(ids.tolist(), mask.sum(1).tolist(), strict=True)]
    levels = split(rows)
    computed = sum(len(level) * max(segment.stop - segment.start for segment in level) for level in levels)
    return levels if len(levels) > 1 and computed <= _MAX_SHARE_COMPUTED * ids.numel() else None


def _select_rows(states: Tensor, rows: Tensor) -> Tensor:
    """Some rows of key/value states; the backward pass of `index_select` is fast for contiguous gradients only."""
    selected = states.index_select(0, rows)
    if selected.requires_grad:
        selected.register_hook(Tensor.contiguous)
    return selected


def _common_length(rows: Sequence[Sequence[int]]) -> int:
    """Length of the longest common beginning of the rows."""
    shortest, longest = min(rows), max(rows)  # in order of their tokens; what these two share, all do
    return next(
        (index for index, token in enumerate(shortest) if index >= len(longest) or token != longest[index]),
        len(shortest),
    )
