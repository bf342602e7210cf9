"""Rows of different lengths in groups, so that little of what is computed is padding."""

from __future__ import annotations

import math
from collections.abc import Sequence

_FREE_PADDING = 64  # tokens


def similar_lengths(lengths: Sequence[int], max_tokens: float = math.inf) -> list[list[int]]:
    """Indices of rows in groups to be padded to one length each, from the shortest rows to the longest.

    Padding is at most a tenth of the tokens of a group, or so little that another pass would take longer. A group has
    at most `max_tokens` tokens, padding included, or one row.
    """
    groups: list[list[int]] = []
    useful = 0  # tokens of the last group, without padding
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        useful += lengths[index]
        computed = (len(groups[-1]) + 1) * lengths[index] if groups else 0
        if groups and computed <= max_tokens and computed - useful <= max(computed / 10, _FREE_PADDING):
            groups[-1].append(index)
        else:
            groups.append([index])
            useful = lengths[index]
    return groups
