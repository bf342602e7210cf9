from __future__ import annotations

import torch
from torch.testing import assert_close

from collm.critics.replay_buffer import Record, ReplayBuffer
from collm.packing import TokenSequence


def record(first: int, num_rows: int, width: int) -> Record:
    """Row r holds the token, the value and the target `first + r` (times 1, 10 and 100)."""
    numbers = torch.arange(first, first + num_rows).float()[:, None].expand(num_rows, width)
    histories = [TokenSequence(row, [first + row] * 3, [-1, -1, 0]) for row in range(num_rows)]
    return Record(histories, 10 * numbers, 100 * numbers, torch.ones(num_rows, width))


def test_what_is_drawn_belongs_together_and_short_rows_are_padded() -> None:
    replay = ReplayBuffer(3)
    replay.add(record(1, 4, 2))
    replay.add(record(5, 3, 4))
    torch.manual_seed(0)
    seen = set()
    for _ in range(30):
        drawn = replay.draw(3)
        assert len(drawn.histories) == len(drawn.targets) == 3
        for sequence in drawn.histories:
            number = sequence.ids[0]
            seen.add(number)
            width = 2 if number < 5 else 4
            assert drawn.weights[sequence.row].tolist() == [1.0] * width + [0.0] * (4 - width)
            assert_close(drawn.values[sequence.row, :width], torch.full((width,), 10.0 * number))
            assert_close(drawn.targets[sequence.row, :width], torch.full((width,), 100.0 * number))
            assert not drawn.targets[sequence.row, width:].any()
    assert seen == {1, 2, 3, 4, 5, 6, 7}


def test_the_oldest_is_forgotten_and_no_more_is_drawn_than_there_is() -> None:
    replay = ReplayBuffer(2)
    for first in (1, 3, 5):
        replay.add(record(first, 2, 1))
    drawn = replay.draw(10)
    assert sorted(sequence.ids[0] for sequence in drawn.histories) == [3, 4, 5, 6]


def test_a_restored_replay_draws_the_same() -> None:
    replay, other = ReplayBuffer(2), ReplayBuffer(2)
    replay.add(record(1, 4, 2))
    other.add(record(50, 1, 1))
    other.load_state_dicts([replay.state_dict()], rank=0, num_ranks=1)
    torch.manual_seed(3)
    expected = replay.draw(2)
    torch.manual_seed(3)
    result = other.draw(2)
    assert result.histories == expected.histories
    assert_close(result.targets, expected.targets)


def read_by(replays: list[ReplayBuffer], num_ranks: int) -> list[list[list[int]]]:
    """The numbers of the rows of each record that each of `num_ranks` processes goes on with."""
    result = []
    for rank in range(num_ranks):
        buffer = ReplayBuffer(2)
        buffer.load_state_dicts([replay.state_dict() for replay in replays], rank, num_ranks)
        for one in buffer.records:  # rows of tokens still belong to their targets
            assert [one.targets[sequence.row, 0] for sequence in one.histories] == [
                100.0 * sequence.ids[0] for sequence in one.histories
            ]
        result.append([[sequence.ids[0] for sequence in one.histories] for one in buffer.records])
    return result


def test_another_number_of_processes_redistributes_the_records() -> None:
    first, second = ReplayBuffer(2), ReplayBuffer(2)
    for one, starts in ((first, ((1, 2), (3, 2))), (second, ((11, 3), (14, 1)))):
        for start, num_rows in starts:
            one.add(record(start, num_rows, 1))
    assert read_by([first, second], 2) == [[[1, 2], [3, 4]], [[11, 12, 13], [14]]]
    assert read_by([first, second], 1) == [[[1, 2, 11, 12, 13], [3, 4, 14]]]
    assert read_by([first, second], 3) == [[[1, 12], [3]], [[2, 13], [4]], [[11], [14]]]
