"""The value loss in units of normalized values; comments show the arithmetic."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from collm.algorithms.collm_cc import CoLLMCC
from collm.critics.language_model import LanguageModelCritic
from collm.critics.replay_buffer import Record
from collm.models.policy_spec import PolicySpec
from collm.models.specs import ModelSpec
from collm.trajectory import Action, RolloutBatch, Task, Trajectory, Turn, collate
from untrained import without_trainer

TARGETS = torch.tensor([[5.0, 1.0], [3.0, -1.0], [11.0, 99.0]])  # the last turn is not played


def build(
    folder: str, tokens_per_micro_batch: int = 16384, num_minibatches: int = 1, lora_rank: int = 0, **options: Any
) -> CoLLMCC:
    """A critic that says 4 * 0.5 + 1 = 3 everywhere, as the weights of its head are 0."""
    torch.manual_seed(0)  # of adapters
    model = ModelSpec(folder, learning_rate=0.1, lora_rank=lora_rank)
    module = CoLLMCC(
        agent_ids=["a"],
        policy=PolicySpec(folder, max_new_tokens=4, lora_rank=lora_rank),
        critic=LanguageModelCritic(model, loss_weight=0.6, **options),
        parameters="lora" if lora_rank else "separate",
        optimizer=torch.optim.SGD,
        gradient_clip_norm=0.0,
        tokens_per_micro_batch=tokens_per_micro_batch,
        num_minibatches=num_minibatches,
    )
    without_trainer(module)
    network = module.critic.network
    network.scale.fill_(4.0)
    network.shift.fill_(1.0)
    network.head.bias.data.fill_(0.5)
    network.initialized.fill_(True)
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
    histories = module.critic.encode(played.trajectories)
    record = Record(histories, torch.full((3, 2), 1.0), TARGETS, played.turn_mask.float())
    return float(sum(module.critic.losses(record, rows)))


@pytest.mark.parametrize("tokens", [16384, 1])  # in one micro-batch, and in one for each row
def test_the_loss_is_in_units_of_the_scale(tiny_folder: str, tokens: int) -> None:
    module = build(tiny_folder, normalize=True, tokens_per_micro_batch=tokens)
    # of 3 from 5, 1, 3, -1, 11: (4 + 4 + 0 + 16 + 64) / 4^2 over 5 turns
    assert loss(module, {0, 1, 2}) == pytest.approx(0.6 * 88 / 16 / 5)
    assert loss(module, {1, 2}) == pytest.approx(0.6 * 80 / 16 / 3)


def test_the_clip_is_in_units_of_the_scale(tiny_folder: str) -> None:
    module = build(tiny_folder, normalize=True, value_clip=0.25)
    # from the old value 1 it may go 0.25 * 4 = 1, to 2: the larger of (3 - y)^2 and (2 - y)^2 is 9, 4, 1, 16, 81
    assert loss(module, {0, 1, 2}) == pytest.approx(0.6 * 111 / 16 / 5)


def test_an_update_moves_the_head_by_the_gradient_in_those_units(tiny_folder: str) -> None:
    module = build(tiny_folder)  # without `normalize`, so that the scale stays
    critic, played = module.critic, batch()
    critic.update(played, torch.full((3, 2), 3.0), TARGETS)
    # the slope of a term is 2 (V - y) 4 / 4^2 for the bias; the errors -2, 2, 0, 4, -8 sum to -4
    assert_close(critic.network.head.bias.data, torch.tensor([0.5 + 0.1 * 0.6 * 2 * 4 * 4 / 16 / 5]))


def test_the_scale_follows_the_targets_of_played_turns(tiny_folder: str) -> None:
    module, played = build(tiny_folder, normalize=True), batch()
    module.critic.record(played, torch.full((3, 2), 3.0), TARGETS)
    network = module.critic.network
    # of 5, 1, 3, -1, 11: mean 19 / 5, mean square 157 / 5; the value stays 3
    scale = (157 / 5 - (19 / 5) ** 2) ** 0.5
    assert_close((network.shift, network.scale), (torch.tensor(19 / 5), torch.tensor(scale)))
    assert_close(network.scale * network.head.bias.data + network.shift, torch.tensor([3.0]))
    module.critic.normalize = False
    module.critic.record(played, torch.full((3, 2), 3.0), 2 * TARGETS)
    assert_close(network.shift, torch.tensor(19 / 5))


def updated(module: CoLLMCC, kept: bool) -> tuple[list[torch.Tensor], int]:
    """The critic's weights after an update from values with or without their graph, and its number of passes."""
    critic, played, passes = module.critic, batch(), []
    torch.manual_seed(1)
    torch.nn.init.normal_(critic.network.head.weight, std=0.2)  # at 0 nothing would reach the language model
    critic.network.register_forward_hook(lambda *_: passes.append(1))
    values = critic.differentiable_values(played) if kept else critic.values(played)
    assert values.requires_grad == kept
    policy = module.policies["a"]
    policy.backbone.activate(policy.adapter)
    critic.update(played, values, TARGETS)
    return [weight.detach().clone() for weight in module.learners["critic"]], len(passes)


@pytest.mark.parametrize("options", [{}, {"epochs": 2}, {"value_clip": 0.5}, {"replay": 2}, {"lora_rank": 2}], ids=str)
def test_one_pass_gives_the_values_and_the_first_step(tiny_folder: str, options: dict[str, Any]) -> None:
    before = [weight.detach().clone() for weight in build(tiny_folder, **options).learners["critic"]]
    one, fewer = updated(build(tiny_folder, **options), kept=True)
    two, passes = updated(build(tiny_folder, **options), kept=False)
    assert_close(one, two, rtol=1e-4, atol=1e-6)
    assert sum(not torch.equal(*pair) for pair in zip(before, one, strict=True)) > 2
    assert fewer == passes - 1


@pytest.mark.parametrize(
    "options", [{"tokens_per_micro_batch": 8}, {"normalize": True}, {"num_minibatches": 2}], ids=str
)
def test_no_pass_is_kept_that_cannot_serve_the_first_step(tiny_folder: str, options: dict[str, Any]) -> None:
    assert not build(tiny_folder, **options).critic.differentiable_values(batch()).requires_grad
