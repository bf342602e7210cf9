"""Groups of similar length: little padding, and no group larger than allowed."""

from __future__ import annotations

import pytest

from collm.packing import similar_lengths


def test_groups_by_hand() -> None:
    """95 + 100 pads 5 of 200; with 1000 more, 2 * 900 + 5 of 3000 would be padding, and 1000 + 890 pads 110 of 2000."""
    assert similar_lengths([1000, 100, 95, 890]) == [[2, 1], [3, 0]]
    assert similar_lengths([1000, 100, 95, 790]) == [[2, 1], [3], [0]]  # 210 of 2000 are more than a tenth
    assert similar_lengths([5, 1, 40, 2]) == [[1, 3, 0], [2]]  # up to 64 tokens are free, and 7 + 3 * 40 - 8 are not
    assert similar_lengths([6, 6, 6], max_tokens=12) == [[0, 1], [2]]
    assert similar_lengths([6, 9], max_tokens=1) == [[0], [1]]
    assert similar_lengths([]) == []


@pytest.mark.parametrize("max_tokens", [64, 300, 1e9])
def test_padding_is_at_most_a_tenth_of_large_groups(max_tokens: float) -> None:
    lengths = [17 * index * index % 463 + 1 for index in range(200)]
    groups = similar_lengths(lengths, max_tokens)
    assert sorted(index for group in groups for index in group) == list(range(200))
    for group in groups:
        longest = max(lengths[index] for index in group)
        computed, useful = longest * len(group), sum(lengths[index] for index in group)
        assert computed <= max_tokens or len(group) == 1
        assert computed - useful <= max(64, computed / 10)
