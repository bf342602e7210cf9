"""Token sequences by hand: whose tokens are scored for which turn, padding, micro-batches, groups of similar length."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from collm.packing import (
    TokenSequence,
    action_sequences,
    micro_batches,
    pad_sequences,
    pool_shared_actions,
    signed_shares,
    similar_lengths,
)
from collm.rollout_tree import Branch
from collm.sampling_mask import SamplingMask
from collm.trajectory import Action, Message, Task, Trajectory, Turn, collate


def played(*turns: Turn | Action, weight: float = 1.0) -> Trajectory:
    """An episode of one agent, `a`, of two turns at most."""
    whole = [turn if isinstance(turn, Turn) else Turn({"a": "?"}, {"a": turn}, 0.0) for turn in turns]
    return Trajectory(Task("task", {}), 0, 2, 1.0, whole, weight=weight)


def kept(*sets: set[int]) -> SamplingMask:
    """Sets of tokens out of a vocabulary of 8."""
    return SamplingMask.of(torch.tensor([[token in one for token in range(8)] for one in sets]))


def test_a_dialogue_is_one_sequence() -> None:
    """The second prompt begins with the first prompt and the answer: 5 6 | 7 8 | 9, the answer to it is 1 2."""
    first = Action("", [5, 6], [7, 8], [-0.1, -0.2])
    second = Action("", [5, 6, 7, 8, 9], [1, 2], [-0.3, -0.4])
    assert action_sequences([played(first, second)], "a") == [
        TokenSequence(0, [5, 6, 7, 8, 9, 1, 2], [-1, -1, 0, 0, -1, 1, 1], [0.0, 0.0, -0.1, -0.2, 0.0, -0.3, -0.4])
    ]


def test_a_history_that_was_cut_begins_a_new_sequence() -> None:
    first = Action("", [5, 6], [7], [-0.1])
    second = Action("", [6, 7, 9], [1], [-0.3])  # without the 5
    assert action_sequences([played(), played(first, second)], "a") == [
        TokenSequence(1, [5, 6, 7], [-1, -1, 0], [0.0, 0.0, -0.1]),
        TokenSequence(1, [6, 7, 9, 1], [-1, -1, -1, 1], [0.0, 0.0, 0.0, -0.3]),
    ]


def test_messages_before_an_action_are_part_of_it() -> None:
    asked, action = Action("", [5], [6], [-0.1]), Action("", [5, 6, 7], [8], [-0.2])
    messages = [Message("a", "?", asked), Message("b", "?", Action("", [3], [4], [-9.0])), Message("a", "?", action)]
    turn = Turn({"a": "?", "b": "?"}, {"a": action, "b": messages[1].action}, 0.0, messages=messages)
    assert action_sequences([played(turn)], "a") == [
        TokenSequence(0, [5, 6, 7, 8], [-1, 0, -1, 0], [0.0, -0.1, 0.0, -0.2])
    ]


def test_a_shared_action_is_scored_in_the_first_trajectory_only() -> None:
    """Both episodes begin with the same action; a third consists of it alone and needs no sequence."""
    shared, left, right = (
        Action("", p, t, lp) for p, t, lp in (([5], [6], [-0.1]), ([5, 6], [7], [-0.2]), ([5, 6], [8], [-0.3]))
    )
    assert action_sequences([played(shared, left), played(shared, right), played(shared)], "a") == [
        TokenSequence(0, [5, 6, 7], [-1, 0, 1], [0.0, -0.1, -0.2]),
        TokenSequence(1, [5, 6, 8], [-1, -1, 1], [0.0, 0.0, -0.3]),
    ]


def test_the_sets_that_tokens_were_drawn_from_stay_with_their_tokens() -> None:
    """Nothing was cut from the first answer; the second was drawn from {1, 3}, then {2, 3, 4}."""
    first = Action("", [5, 6], [7], [-0.1])
    second = Action("", [5, 6, 7, 9], [1, 2], [-0.3, -0.4], sampling_mask=kept({1, 3}, {2, 3, 4}))
    other = Action("", [5], [4], [-0.5], sampling_mask=kept({4}))
    long, short = action_sequences([played(first, second), played(other)], "a")
    batch = pad_sequences([short, long], pad_id=0, device="cpu")
    assert batch.sampling_mask is not None
    sets = batch.sampling_mask.dense(8)  # of the scored tokens: 4 | 7, 1, 2
    assert_close(
        sets, torch.cat([kept({4}).dense(8), torch.ones(1, 8, dtype=torch.bool), kept({1, 3}, {2, 3, 4}).dense(8)])
    )


def test_padding_by_hand() -> None:
    sequences = [TokenSequence(3, [5, 6, 7], [-1, 0, 1], [0.0, -0.1, -0.2]), TokenSequence(1, [8], [0], [-0.3])]
    batch = pad_sequences(sequences, pad_id=9, device="cpu")
    assert batch.rows.tolist() == [3, 1]
    assert batch.ids.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch.attention_mask.tolist() == [[True, True, True], [True, False, False]]
    assert batch.turns.tolist() == [[-1, 0, 1], [0, -1, -1]]
    assert batch.action_mask.tolist() == [[False, True, True], [True, False, False]]
    assert_close(batch.old_log_probs, torch.tensor([[0.0, -0.1, -0.2], [-0.3, 0.0, 0.0]]))
    assert batch.sampling_mask is None
    assert batch.trainer_log_probs is None


def test_what_trains_is_known_of_all_sequences_or_of_none() -> None:
    known = TokenSequence(0, [5, 6], [-1, 0], [0.0, -0.1], trainer_log_probs=[0.0, -0.5])
    unknown = TokenSequence(1, [5, 6], [-1, 0], [0.0, -0.1])
    assert pad_sequences([known, unknown], 0, "cpu").trainer_log_probs is None
    batch = pad_sequences([known], 0, "cpu")
    assert_close(batch.trainer_log_probs, torch.tensor([[0.0, -0.5]]))


def test_values_of_turns_and_of_their_tokens() -> None:
    """Two sequences of trajectories 2 and 0 of three; the tokens of trajectory 2 are 1 2 | 4, those of 0 are 8."""
    sequences = [TokenSequence(2, [5, 5, 5], [0, 0, 1]), TokenSequence(0, [5, 5], [-1, 1])]
    batch = pad_sequences(sequences, pad_id=0, device="cpu")
    tokens = torch.tensor([[1.0, 2.0, 4.0], [16.0, 8.0, 32.0]])  # 16 and 32 are not scored
    assert_close(batch.sum_by_turn(tokens, (3, 2)), torch.tensor([[0.0, 8.0], [0.0, 0.0], [3.0, 4.0]]))
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    assert_close(batch.per_turn(values), torch.tensor([[5.0, 5.0, 6.0], [0.0, 2.0, 0.0]]))


def test_micro_batches_by_hand() -> None:
    """At most six tokens with padding: 2 + 2, then 3 alone, as 3 more would be 9, and 7 alone, which is too long."""
    sequences = [TokenSequence(row, [5] * length, [0] * length) for row, length in enumerate((7, 2, 3, 2))]
    batches = list(micro_batches(sequences, max_tokens=6, pad_id=0, device="cpu"))
    assert [batch.rows.tolist() for batch in batches] == [[1, 3], [2], [0]]
    assert [tuple(batch.ids.shape) for batch in batches] == [(2, 2), (1, 3), (1, 7)]


def test_advantages_of_shared_actions_in_trajectories_of_different_lengths() -> None:
    """Three paths over the same first action; the second of them failed after it.

    With T = 2 the flat index of the second path is 2, and not the number of its turns, which is 1.
    """
    shared = Action("shared")
    steps = [[(shared, 0), (Action("left"), 1)], [(shared, 0)], [(shared, 0), (Action("right"), 2)]]
    paths = [
        played(*(Turn({"a": "?"}, {"a": action}, 0.0, branch=Branch(node, -1)) for action, node in path), weight=weight)
        for path, weight in zip(steps, (0.25, 0.25, 0.5), strict=True)
    ]
    batch = collate(paths)
    advantages = torch.tensor([[1.0, 2.0], [-3.0, 0.0], [-5.0, 7.0]])
    # weights of 0.75, 0.75 and 1.5: 0.75 - 2.25 - 7.5, 1.5; nothing; nothing, 10.5
    pooled = torch.tensor([[-9.0, 1.5], [0.0, 0.0], [0.0, 10.5]])
    assert_close(pool_shared_actions(advantages, batch, "a"), pooled)
    positive = torch.tensor([[0.75, 1.5], [0.0, 0.0], [0.0, 10.5]])
    negative = torch.tensor([[-9.75, 0.0], [0.0, 0.0], [0.0, 0.0]])
    assert_close(signed_shares(advantages, batch, "a"), torch.stack([positive, negative]))


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
