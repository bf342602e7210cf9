"""What a critic reads, and that one pass over a history gives the values of all its turns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from collm.critics.histories import HistoryEncoder
from collm.critics.language_model import LanguageModelCritic
from collm.models.backbone import Backbone
from collm.models.loading import load_tokenizer
from collm.packing import pad_sequences
from collm.trajectory import Action, Message, Task, Trajectory, Turn
from untrained import lone_critic

AGENTS = ("a1", "a2")


def make(folder: str, reads: tuple[str, ...] = AGENTS, **options) -> LanguageModelCritic:
    return lone_critic(folder, reads, **options)


def played(num_turns: int = 3) -> Trajectory:
    trajectory = Trajectory(Task("task", {}), 0, horizon=4, max_reward=2.0)
    for turn in range(num_turns):
        observations = {agent_id: f"seen by {agent_id} at {turn}" for agent_id in AGENTS}
        actions = {agent_id: Action(f"said by {agent_id} at {turn}") for agent_id in AGENTS}
        trajectory.turns.append(Turn(observations, actions, reward=0.25 * (turn + 1)))
    return trajectory


def changed(trajectory: Trajectory, turn: int, agent_id: str, what: str) -> Trajectory:
    """The trajectory with something else written or shown in one turn."""
    turns = list(trajectory.turns)
    if what == "action":
        turns[turn] = replace(turns[turn], actions={**turns[turn].actions, agent_id: Action("something else 7 7 7")})
    else:
        turns[turn] = replace(turns[turn], observations={**turns[turn].observations, agent_id: "something else 7 7 7"})
    return replace(trajectory, turns=turns)


@torch.no_grad()
def values_of(critic: LanguageModelCritic, trajectories: list[Trajectory], num_turns: int = 3) -> torch.Tensor:
    batch = pad_sequences(critic.encode(trajectories), critic.network.tokenizer.pad_token_id, "cpu")
    return batch.sum_by_turn(critic.network(batch), (len(trajectories), num_turns))


def text_of(critic: LanguageModelCritic, trajectory: Trajectory) -> str:
    (row,) = critic.encode([trajectory])
    return critic.network.tokenizer.decode(row.ids)


@pytest.mark.parametrize("agent_id", AGENTS)
@pytest.mark.parametrize("turn", [0, 1, 2])
def test_no_value_sees_an_action_of_its_own_turn_or_later(tiny_folder: str, turn: int, agent_id: str) -> None:
    critic = make(tiny_folder)
    before = values_of(critic, [played()])[0]
    after = values_of(critic, [changed(played(), turn, agent_id, "action")])[0]
    assert_close(after[: turn + 1], before[: turn + 1], atol=1e-5, rtol=1e-5)
    assert ((after[turn + 1 :] - before[turn + 1 :]).abs() > 1e-3).all()


@pytest.mark.parametrize("agent_id", AGENTS)
@pytest.mark.parametrize("turn", [0, 1, 2])
def test_values_see_the_observations_of_their_own_turn(tiny_folder: str, turn: int, agent_id: str) -> None:
    critic = make(tiny_folder)
    before = values_of(critic, [played()])[0]
    after = values_of(critic, [changed(played(), turn, agent_id, "observation")])[0]
    assert_close(after[:turn], before[:turn], atol=1e-5, rtol=1e-5)
    assert ((after[turn:] - before[turn:]).abs() > 1e-3).all()


def test_no_value_sees_the_reward_of_its_own_turn(tiny_folder: str) -> None:
    critic = make(tiny_folder)
    before, other = values_of(critic, [played()])[0], played()
    other.turns[1].reward = 1.75
    after = values_of(critic, [other])[0]
    assert_close(after[:2], before[:2], atol=1e-5, rtol=1e-5)
    assert (after[2] - before[2]).abs() > 1e-3


def test_one_pass_equals_a_pass_per_history(tiny_folder: str) -> None:
    critic = make(tiny_folder)
    together = values_of(critic, [played(), changed(played(), 0, "a1", "action")])
    for turn in range(3):
        start = replace(played(), turns=played().turns[: turn + 1])
        assert len(critic.encode([start])) == 1
        assert_close(values_of(critic, [start])[0, turn], together[0, turn], atol=1e-5, rtol=1e-5)


def test_values_are_read_from_the_last_hidden_state(tiny_folder: str) -> None:
    critic = make(tiny_folder)
    (row,) = critic.encode([played(1)])
    assert row.turns == [-1] * (len(row.ids) - 1) + [0]
    hidden = critic.network.backbone.lm.model(torch.tensor([row.ids])).last_hidden_state[0, -1]
    assert_close(values_of(critic, [played(1)], 1)[0, 0], critic.network.head(hidden)[0].detach(), atol=1e-5, rtol=1e-5)


def test_text_of_the_joint_history(tiny_folder: str) -> None:
    critic = make(tiny_folder)
    assert text_of(critic, played(2)) == (
        "[turn 1 of 4]\n[a1] seen by a1 at 0\n[a2] seen by a2 at 0\n[value]"
        "\n[a1] said by a1 at 0\n[a2] said by a2 at 0\n"
        "[turn 2 of 4]\n[last reward 0.25 of 2.00]\n[a1] seen by a1 at 1\n[a2] seen by a2 at 1\n[value]"
    )


def test_progress_can_be_left_out(tiny_folder: str) -> None:
    critic = make(tiny_folder, progress=False)
    assert text_of(critic, played(2)) == (
        "[a1] seen by a1 at 0\n[a2] seen by a2 at 0\n[value]"
        "\n[a1] said by a1 at 0\n[a2] said by a2 at 0\n"
        "[a1] seen by a1 at 1\n[a2] seen by a2 at 1\n[value]"
    )


def test_an_individual_critic_reads_its_own_agent_only(tiny_folder: str) -> None:
    critic = make(tiny_folder, reads=("a2",))
    assert "a1" not in text_of(critic, played())
    before = values_of(critic, [played()])
    for what in ("action", "observation"):
        other, own = (changed(played(), 0, agent_id, what) for agent_id in AGENTS)
        assert_close(values_of(critic, [other]), before, atol=0, rtol=0)
        assert (values_of(critic, [own])[0, 1:] - before[0, 1:]).abs().min() > 1e-3


@pytest.mark.parametrize("limit", [10, 40, 60, 100, 150, 400])
def test_every_turn_is_scored_once_however_short_the_context(tiny_folder: str, limit: int) -> None:
    critic = make(tiny_folder, context_length=limit)
    trajectories = [played(4), played(1), played(3)]
    rows = critic.encode(trajectories)
    assert all(len(row.ids) == len(row.turns) <= limit for row in rows)
    scored = [(row.row, turn) for row in rows for turn in row.turns if turn >= 0]
    assert scored == [
        (row, turn) for row, trajectory in enumerate(trajectories) for turn in range(len(trajectory.turns))
    ]
    assert (len(rows) == 3) == (limit == 400)
    end = critic.network.tokenizer("[value]").input_ids
    for row in rows:  # each is read where nobody has acted yet
        positions = [index for index, turn in enumerate(row.turns) if turn >= 0]
        assert all(row.ids[index + 1 - len(end) : index + 1] == end for index in positions)
    batch = pad_sequences(rows, 0, "cpu")
    assert critic.network(batch)[batch.action_mask].isfinite().all()


def test_a_cut_history_keeps_its_last_turns(tiny_folder: str) -> None:
    critic = make(tiny_folder)
    whole = len(critic.encode([played(3)])[0].ids)
    short = make(tiny_folder, context_length=whole - 1)
    texts = [short.network.tokenizer.decode(row.ids) for row in short.encode([played(3)])]
    assert len(texts) == 2
    assert "seen by a1 at 0" in texts[0]
    assert "seen by a1 at 1" in texts[1]
    assert "said by a2 at 1" in texts[1]
    assert "seen by a1 at 0" not in texts[1]


def test_an_episode_without_turns_has_no_rows(tiny_folder: str) -> None:
    assert make(tiny_folder).encode([played(0)]) == []


def test_the_bias_starts_at_the_mean_return_once(tiny_folder: str) -> None:
    critic = make(tiny_folder)
    torch.nn.init.zeros_(critic.network.head.weight)
    torch.nn.init.zeros_(critic.network.head.bias)
    critic.initialize(torch.tensor(1.75))
    critic.initialize(torch.tensor(9.0))
    assert critic.network.head.bias.item() == 1.75
    assert_close(values_of(critic, [played()]), torch.full((1, 3), 1.75))
    other = make(tiny_folder)
    other.load_state_dict(critic.state_dict())
    other.initialize(torch.tensor(9.0))
    assert other.network.head.bias.item() == 1.75


def test_what_trains(tiny_folder: str) -> None:
    whole = make(tiny_folder)
    assert len(whole.trainable_parameters()) == 2 + len(list(whole.network.backbone.lm.parameters()))
    backbone = Backbone(tiny_folder, "float32")
    backbone.add_adapter("critic", 2, 4.0, 0.0)
    critic = lone_critic(tiny_folder, AGENTS, backbone=backbone)
    assert len(critic.trainable_parameters()) == 2 + 2 * 2 * 7


def test_the_end_of_sequence_token_is_not_encoded(tiny_folder: str) -> None:
    encoder = HistoryEncoder(tiny_folder, ("a",), ("a",), 1000, progress=False)
    before, end = encoder.tokens("x"), load_tokenizer(tiny_folder).eos_token_id
    ended, cut = (Action("?", [1], [5, 6, last], truncated=last != end) for last in (end, 7))
    assert encoder.message("x", Message("a", "", ended)) == [*before, 5, 6]
    assert encoder.message("x", Message("a", "", cut)) == [*before, 5, 6, 7]
    other = Message("b", "", ended)  # who writes in other tokens is read as text
    assert encoder.message("x", other) == encoder.tokens("x?")
