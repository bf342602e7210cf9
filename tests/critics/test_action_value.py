from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from collm.critics.action_value import ActionValueEncoder
from collm.critics.language_model import LanguageModelCritic
from collm.packing import micro_batches
from collm.trajectory import Action, Task, Trajectory, Turn, collate
from untrained import lone_critic

AGENTS = ("a1", "a2")


@pytest.fixture
def critic(tiny_folder: str) -> LanguageModelCritic:
    return lone_critic(tiny_folder, AGENTS, ActionValueEncoder)


def episode(*joint_actions: tuple[str, str]) -> Trajectory:
    turns = [
        Turn({name: f"look {index}" for name in AGENTS}, dict(zip(AGENTS, map(Action, texts), strict=True)), index / 2)
        for index, texts in enumerate(joint_actions)
    ]
    return Trajectory(Task("task", {}), 0, 4, 1.0, turns)


def pairs(critic: LanguageModelCritic, trajectories: list[Trajectory]) -> Tensor:
    """V(h_0), Q(h_0, a_0), V(h_1), ..., [B, 2T]."""
    shape = (len(trajectories), 2 * max(len(trajectory.turns) for trajectory in trajectories))
    values = torch.zeros(shape)
    with torch.no_grad():
        for batch in micro_batches(critic.encode(trajectories), 10_000, 0, "cpu"):
            values += batch.sum_by_turn(critic.network(batch), shape)
    return values


def test_one_row_holds_a_pair_for_every_turn(critic: LanguageModelCritic) -> None:
    (row,) = critic.encode([episode(("x", "y"), ("z", "u"))])
    assert [turn for turn in row.turns if turn >= 0] == [0, 1, 2, 3]
    text = critic.network.tokenizer.decode(row.ids[: row.turns.index(1) + 1])
    assert text.endswith("[a1] x\n[a2] y\n")
    assert critic.network.tokenizer.decode(row.ids[: row.turns.index(0) + 1]).endswith("[value]")


def test_what_each_value_depends_on(critic: LanguageModelCritic) -> None:
    base = pairs(critic, [episode(("x", "y"), ("z", "u"))])[0]
    other_last = pairs(critic, [episode(("x", "y"), ("z", "w"))])[0]
    assert_close(other_last[:3], base[:3])  # V(h_1) does not see a_1
    assert abs(other_last[3] - base[3]) > 1e-3
    other_first = pairs(critic, [episode(("x", "w"), ("z", "u"))])[0]
    assert_close(other_first[0], base[0])
    assert ((other_first[1:] - base[1:]).abs() > 1e-4).all()


def test_the_heads_are_two(critic: LanguageModelCritic) -> None:
    before = pairs(critic, [episode(("x", "y"))])[0]
    changed = copy.deepcopy(critic)
    changed.network.head.bias.data[1] += 1.0
    assert_close(pairs(changed, [episode(("x", "y"))])[0] - before, torch.tensor([0.0, 1.0]))


def test_both_values_of_a_turn_regress_on_its_target(critic: LanguageModelCritic) -> None:
    batch = collate([episode(("x", "y"), ("z", "u"))])
    record = critic.record(batch, torch.tensor([[[0.1, 0.2], [0.3, 0.4]]]), torch.tensor([[5.0, 7.0]]))
    assert_close(record.values, torch.tensor([[0.1, 0.2, 0.3, 0.4]]))
    assert_close(record.targets, torch.tensor([[5.0, 5.0, 7.0, 7.0]]))


def test_batching_changes_nothing(critic: LanguageModelCritic) -> None:
    short, long = episode(("x", "y")), episode(("z", "u"), ("x", "x x x"))
    together = pairs(critic, [short, long])
    assert_close(together[0], torch.cat([pairs(critic, [short])[0], torch.zeros(2)]), rtol=1e-4, atol=1e-5)
    assert_close(together[1], pairs(critic, [long])[0], rtol=1e-4, atol=1e-5)


def test_a_short_context_cuts_the_oldest(critic: LanguageModelCritic) -> None:
    whole = critic.encode([episode(("x", "y"), ("z", "u"))])
    critic.encoder.max_tokens = len(whole[0].ids) - 1
    rows = critic.encode([episode(("x", "y"), ("z", "u"))])
    assert [turn for row in rows for turn in row.turns if turn >= 0] == [0, 1, 2, 3]
    assert max(len(row.ids) for row in rows) <= critic.encoder.max_tokens


def test_it_starts_at_the_mean_return(tiny_folder: str) -> None:
    fresh = lone_critic(tiny_folder, AGENTS, ActionValueEncoder)
    torch.nn.init.zeros_(fresh.network.head.weight)
    fresh.initialize(torch.tensor(2.5))
    assert_close(pairs(fresh, [episode(("x", "y"))]), torch.tensor([[2.5, 2.5]]))
