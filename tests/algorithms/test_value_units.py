"""The value loss in the units that normalized values are measured in; the arithmetic stands next to the numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from collm.algorithms.collm_cc import CoLLMCC
from collm.critics.language_model import CriticSpec
from collm.critics.replay_buffer import Lesson
from collm.models.policy import PolicySpec
from collm.trajectory import Action, RolloutBatch, Task, Trajectory, Turn, collate
from untrained import without_trainer

TARGETS = torch.tensor([[5.0, 1.0], [3.0, -1.0], [11.0, 99.0]])  # the last turn is not played


def build(folder: str, **kwargs: Any) -> CoLLMCC:
    """A critic that says 4 * 0.5 + 1 = 3 everywhere, as the weights of its head are 0."""
    module = CoLLMCC(
        agent_ids=["a"],
        policy=PolicySpec(folder, max_new_tokens=4),
        critic=CriticSpec(folder, learning_rate=0.1),
        optimizer=torch.optim.SGD,
        gradient_clip_norm=0.0,
        value_loss_weight=0.6,
        **kwargs,
    )
    without_trainer(module)
    critic = module.critics["critic"]
    critic.scale.fill_(4.0)
    critic.shift.fill_(1.0)
    critic.head.bias.data.fill_(0.5)
    critic.centered.fill_(True)
    return module


def batch() -> RolloutBatch:
    turns = [2, 2, 1]
    return collate(
        [
            Trajectory(Task("t", {}), 0, 2, 1.0, [Turn({"a": f"{row}"}, {"a": Action("1")}, 0.0) for _ in range(count)])
            for row, count in enumerate(turns)
        ]
    )


def loss(module: CoLLMCC, rows: set[int]) -> float:
    played = batch()
    histories = module.critics["critic"].encode(played.trajectories)
    lesson = Lesson(histories, torch.full((3, 2), 1.0), TARGETS, played.turn_mask)
    return float(sum(module.value_losses("critic", lesson, rows)))


@pytest.mark.parametrize("tokens", [16384, 1])  # in one micro-batch, and in one for each row
def test_the_loss_is_in_units_of_the_scale(tiny_folder: str, tokens: int) -> None:
    module = build(tiny_folder, normalize_values=True, tokens_per_micro_batch=tokens)
    # of 3 from 5, 1, 3, -1, 11: (4 + 4 + 0 + 16 + 64) / 4^2 over 5 turns
    assert loss(module, {0, 1, 2}) == pytest.approx(0.6 * 88 / 16 / 5)
    assert loss(module, {1, 2}) == pytest.approx(0.6 * 80 / 16 / 3)


def test_the_clip_is_in_units_of_the_scale(tiny_folder: str) -> None:
    module = build(tiny_folder, normalize_values=True, value_clip=0.25)
    # from the old value 1 it may go 0.25 * 4 = 1, to 2: the larger of (3 - y)^2 and (2 - y)^2 is 9, 4, 1, 16, 81
    assert loss(module, {0, 1, 2}) == pytest.approx(0.6 * 111 / 16 / 5)


def test_an_update_moves_the_head_by_the_gradient_in_those_units(tiny_folder: str) -> None:
    module = build(tiny_folder, normalize_values=True)
    module.rescale = lambda name, targets, batch: None
    critic, played = module.critics["critic"], batch()
    histories = critic.encode(played.trajectories)
    module.update_critic("critic", histories, torch.full((3, 2), 3.0), TARGETS, played)
    # the slope of a term is 2 (V - y) 4 / 4^2 for the bias; the errors -2, 2, 0, 4, -8 sum to -4
    assert_close(critic.head.bias.data, torch.tensor([0.5 + 0.1 * 0.6 * 2 * 4 * 4 / 16 / 5]))


def test_the_scale_follows_the_targets_of_played_turns(tiny_folder: str) -> None:
    module, played = build(tiny_folder, normalize_values=True), batch()
    module.rescale("critic", TARGETS, played)
    critic = module.critics["critic"]
    # of 5, 1, 3, -1, 11: mean 19 / 5, mean square 157 / 5; the value stays 3
    scale = (157 / 5 - (19 / 5) ** 2) ** 0.5
    assert_close((critic.shift, critic.scale), (torch.tensor(19 / 5), torch.tensor(scale)))
    assert_close(critic.scale * critic.head.bias.data + critic.shift, torch.tensor([3.0]))
    module.normalize_values = False
    module.rescale("critic", 2 * TARGETS, played)
    assert_close(critic.shift, torch.tensor(19 / 5))
