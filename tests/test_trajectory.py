from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable

import pytest
import torch
from torch.testing import assert_close

from collm.packing import (
    SequenceBatch,
    TokenSequence,
    action_sequences,
    micro_batches,
    pad_sequences,
    pool_shared_actions,
)
from collm.trajectory import Action, Task, Trajectory, Turn, collate, distinct_actions
from tabular import copies


def make_action(prompt_ids: list[int], token_ids: list[int], log_probs: list[float]) -> Action:
    return Action("text", tuple(prompt_ids), tuple(token_ids), tuple(log_probs))


def make_trajectory(*turns: Turn, group: int = 0) -> Trajectory:
    return Trajectory(Task("task", {}), group, horizon=4, max_reward=1.0, turns=list(turns))


def make_turn(reward: float = 0.0, **actions: Action) -> Turn:
    return Turn({agent_id: "look" for agent_id in actions}, actions, reward)


# The first prompt is 1 2, the action 3 4; the second prompt continues both with 5, the action is 6.
CHAIN = make_trajectory(
    make_turn(alice=make_action([1, 2], [3, 4], [-0.3, -0.4]), bob=make_action([9], [8], [-0.8])),
    make_turn(alice=make_action([1, 2, 3, 4, 5], [6], [-0.6]), bob=make_action([7], [8], [-0.9])),
)
# The history was cut: the second prompt no longer begins with 1 2.
CUT = make_trajectory(
    make_turn(alice=make_action([1, 2], [3, 4], [-0.3, -0.4])),
    make_turn(alice=make_action([2, 3, 4, 5], [6], [-0.6])),
)


def test_a_prefix_chain_is_one_row() -> None:
    assert action_sequences([CHAIN], "alice") == [
        TokenSequence(0, [1, 2, 3, 4, 5, 6], [-1, -1, 0, 0, -1, 1], [0.0, 0.0, -0.3, -0.4, 0.0, -0.6])
    ]


def test_a_cut_history_begins_a_new_row() -> None:
    assert action_sequences([CUT], "alice") == [
        TokenSequence(0, [1, 2, 3, 4], [-1, -1, 0, 0], [0.0, 0.0, -0.3, -0.4]),
        TokenSequence(0, [2, 3, 4, 5, 6], [-1, -1, -1, -1, 1], [0.0, 0.0, 0.0, 0.0, -0.6]),
    ]


def test_a_history_without_the_previous_action_begins_a_new_row() -> None:
    """The prompt is kept but the action after it is not: 1 2 5 does not continue 1 2 3 4."""
    trajectory = make_trajectory(
        make_turn(alice=make_action([1, 2], [3, 4], [-0.3, -0.4])),
        make_turn(alice=make_action([1, 2, 5], [6], [-0.6])),
    )
    assert [sequence.ids for sequence in action_sequences([trajectory], "alice")] == [[1, 2, 3, 4], [1, 2, 5, 6]]


def test_a_chain_goes_on_after_a_cut() -> None:
    trajectory = make_trajectory(*CUT.turns, make_turn(alice=make_action([2, 3, 4, 5, 6, 7], [8], [-0.8])))
    first, second = action_sequences([trajectory], "alice")
    assert first.turns == [-1, -1, 0, 0]
    assert second.ids == [2, 3, 4, 5, 6, 7, 8]
    assert second.turns == [-1, -1, -1, -1, 1, -1, 2]


def test_each_agent_reads_its_own_tokens() -> None:
    bob = action_sequences([CHAIN], "bob")
    assert [sequence.ids for sequence in bob] == [[9, 8], [7, 8]]
    assert [sequence.turns for sequence in bob] == [[-1, 0], [-1, 1]]


def test_rows_never_span_trajectories_and_name_their_own() -> None:
    """Equal trajectories, with one that never played between them."""
    (equal,) = copies(CHAIN, 1)
    sequences = action_sequences([CHAIN, make_trajectory(), equal], "alice")
    assert [sequence.row for sequence in sequences] == [0, 2]
    assert sequences[0].ids == sequences[1].ids


@pytest.mark.parametrize("made", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))], ids=["copy", "pickle"])
def test_a_copy_of_an_action_is_the_same_action_and_an_equal_one_is_another(made: Callable) -> None:
    """Objects tell nothing: what is scored once is what has one uid."""
    again = made(CHAIN)
    assert again.turns[0].actions["alice"] is not CHAIN.turns[0].actions["alice"]
    assert [sequence.row for sequence in action_sequences([CHAIN, again], "alice")] == [0]
    (equal,) = copies(CHAIN, 1)
    assert equal.turns[0].actions == CHAIN.turns[0].actions  # in all but the uid
    advantages = torch.tensor([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]])
    pooled = pool_shared_actions(advantages, collate([CHAIN, equal, again]), "alice")
    assert_close(pooled, torch.tensor([[101.0, 202.0], [10.0, 20.0], [0.0, 0.0]]))
    assert len(distinct_actions([CHAIN, equal, again])) == 8  # four of each of two


def test_action_sequences_leave_the_actions_alone() -> None:
    action_sequences([CHAIN], "alice")
    assert CHAIN.turns[0].actions["alice"].prompt_ids == (1, 2)
    assert CHAIN.turns[0].actions["alice"].token_ids == (3, 4)


def test_pad_sequences() -> None:
    batch = pad_sequences(
        [TokenSequence(3, [1, 2], [-1, 0], [0.0, -0.5]), TokenSequence(1, [4, 5, 6], [-1, 0, 1], [0.0, -0.1, -0.2])],
        pad_id=99,
        device="cpu",
    )
    assert_close(batch.rows, torch.tensor([3, 1]))
    assert_close(batch.ids, torch.tensor([[1, 2, 99], [4, 5, 6]]))
    assert_close(batch.attention_mask, torch.tensor([[True, True, False], [True, True, True]]))
    assert_close(batch.turns, torch.tensor([[-1, 0, -1], [-1, 0, 1]]))
    assert_close(batch.old_log_probs, torch.tensor([[0.0, -0.5, 0.0], [0.0, -0.1, -0.2]]))
    assert_close(batch.action_mask, torch.tensor([[False, True, False], [False, True, True]]))


def test_rows_of_a_critic_have_no_log_probs() -> None:
    batch = pad_sequences([TokenSequence(0, [1, 2], [-1, 0])], pad_id=0, device="cpu")
    assert_close(batch.old_log_probs, torch.zeros(1, 2))


@pytest.mark.parametrize("max_tokens", [1, 7, 12, 40, 10_000])
def test_micro_batches_cover_each_row_once_within_the_budget(max_tokens: int) -> None:
    lengths = [3, 9, 1, 4, 4, 12, 2, 7, 1, 5]
    sequences = [TokenSequence(row, [row + 1] * size, [0] * size) for row, size in enumerate(lengths)]
    batches = list(micro_batches(sequences, max_tokens, pad_id=0, device="cpu"))
    assert sorted(row for batch in batches for row in batch.rows.tolist()) == list(range(len(lengths)))
    for batch in batches:
        # Padding counts; a row that alone is too long travels alone.
        assert batch.ids.numel() <= max_tokens or len(batch.rows) == 1
        for row, mask, ids in zip(batch.rows.tolist(), batch.attention_mask, batch.ids, strict=True):
            assert ids[mask].tolist() == sequences[row].ids


def test_micro_batches_are_filled() -> None:
    """Lengths 1 1 2 3 within 6: 1 1 2 take 3*2 = 6, one more of 3 would take 4*3 = 12."""
    sequences = [TokenSequence(row, [7] * size, [0] * size) for row, size in enumerate([3, 1, 2, 1])]
    batches = list(micro_batches(sequences, 6, pad_id=0, device="cpu"))
    assert [batch.rows.tolist() for batch in batches] == [[1, 3, 2], [0]]
    assert list(micro_batches([], 6, pad_id=0, device="cpu")) == []


def two_rows_of_one_trajectory() -> SequenceBatch:
    """Trajectory 1 in two rows (turn 0; turn 1), trajectory 0 in one row with both turns."""
    return pad_sequences(
        [
            TokenSequence(1, [5, 6, 7], [-1, 0, 0]),
            TokenSequence(1, [5, 6], [-1, 1]),
            TokenSequence(0, [1, 2, 3, 4], [-1, 0, -1, 1]),
        ],
        pad_id=0,
        device="cpu",
    )


def test_per_turn() -> None:
    values = torch.tensor([[10.0, 11.0], [20.0, 21.0]])
    expected = torch.tensor([[0.0, 20.0, 20.0, 0.0], [0.0, 21.0, 0.0, 0.0], [0.0, 10.0, 0.0, 11.0]])
    assert_close(two_rows_of_one_trajectory().per_turn(values), expected)


def test_sum_by_turn() -> None:
    # 2 + 3 for turn 0 of trajectory 1; context and padding (100) do not count.
    tokens = torch.tensor([[100.0, 2.0, 3.0, 100.0], [100.0, 4.0, 100.0, 100.0], [100.0, 5.0, 100.0, 6.0]])
    expected = torch.tensor([[5.0, 6.0, 0.0], [5.0, 4.0, 0.0], [0.0, 0.0, 0.0]])
    assert_close(two_rows_of_one_trajectory().sum_by_turn(tokens, (3, 3)), expected)


def test_sum_by_turn_passes_gradients_to_scored_tokens_only() -> None:
    batch = two_rows_of_one_trajectory()
    tokens = torch.zeros(3, 4, requires_grad=True)
    weights = torch.tensor([[10.0, 11.0], [20.0, 21.0]])
    (batch.sum_by_turn(tokens, (2, 2)) * weights).sum().backward()
    # The gradient of a weighted sum by turn takes the weights back to the tokens.
    assert_close(tokens.grad, batch.per_turn(weights))


def test_log_probs_survive_the_way_to_tensors_and_back() -> None:
    """Summed by turn, the behaviour log-probabilities are those of the actions, in one micro-batch or in many."""
    trajectories = [CHAIN, CUT]
    for max_tokens in (1, 100):
        total = torch.zeros(2, 2)
        for batch in micro_batches(action_sequences(trajectories, "alice"), max_tokens, 0, "cpu"):
            total += batch.sum_by_turn(batch.old_log_probs, (2, 2))
        assert_close(total, torch.tensor([[-0.7, -0.6], [-0.7, -0.6]]))  # -0.3 - 0.4


def test_collate() -> None:
    batch = collate(
        [make_trajectory(make_turn(1.0), make_turn(2.0), group=4), make_trajectory(make_turn(3.0), group=7)]
    )
    assert_close(batch.rewards, torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
    assert_close(batch.turn_mask, torch.tensor([[True, True], [True, False]]))
    assert_close(batch.groups, torch.tensor([4, 7]))
    assert batch.joint_samples == 3


def test_collate_of_episodes_that_never_played() -> None:
    batch = collate([make_trajectory()])
    assert batch.rewards.shape == (1, 1)
    assert not batch.turn_mask.any()
    assert batch.joint_samples == 0


def test_rollout_batch_moves_its_tensors() -> None:
    batch = collate([CHAIN]).to(torch.device("meta"))
    assert {batch.rewards.device.type, batch.turn_mask.device.type, batch.groups.device.type} == {"meta"}
    assert batch.trajectories == [CHAIN]


def test_record_is_plain_data() -> None:
    cut_off = Action("never end", truncated=True)
    turn = Turn({"alice": "go"}, {"alice": cut_off}, 1.5, terms={"length": 1.5}, info={"rejected": ["fly"]})
    record = make_trajectory(turn, make_turn(0.25, alice=Action("done"))).record()
    assert json.loads(json.dumps(record)) == record
    assert record["return"] == 1.75
    assert record["turns"][0] == {
        "observations": {"alice": "go"},
        "actions": {"alice": "never end"},
        "truncated": ["alice"],
        "reward": 1.5,
        "terms": {"length": 1.5},
        "info": {"rejected": ["fly"]},
    }
    assert record["turns"][1]["truncated"] == []
