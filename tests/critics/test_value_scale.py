"""Value normalization: units change, values do not."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from collm.critics.value_network import ValueNetwork
from collm.models.backbone import Backbone
from collm.packing import TokenSequence, pad_sequences

BATCH = pad_sequences([TokenSequence(0, [5, 6, 7], [-1, 0, 1]), TokenSequence(1, [8, 9], [-1, 0])], 0, "cpu")


@pytest.fixture(params=[1, 2])
def critic(request: pytest.FixtureRequest, tiny_folder: str) -> ValueNetwork:
    torch.manual_seed(0)
    made = ValueNetwork(Backbone(tiny_folder, "float32"), None, request.param, tiny_folder).eval()
    torch.nn.init.normal_(made.head.weight)
    return made


def feed(critic: ValueNetwork, *targets: list[float]) -> None:
    for rollout in targets:
        tensor = torch.tensor(rollout)
        critic.rescale(tensor.mean(), tensor.square().mean())


@torch.no_grad()
def values(critic: ValueNetwork) -> Tensor:
    return critic(BATCH)


def test_rescaling_changes_no_value(critic: ValueNetwork) -> None:
    before = values(critic)
    feed(critic, [100.0, 300.0], [-50.0, 0.0])
    assert_close(values(critic), before, rtol=1e-3, atol=1e-3)
    assert critic.scale > 50
    assert not values(critic)[~BATCH.action_mask].any()


def test_the_first_rollouts_have_equal_weights(critic: ValueNetwork) -> None:
    feed(critic, [0.0, 2.0], [6.0, 8.0])
    # of 0, 2, 6, 8: mean 4, variance (16 + 4 + 4 + 16) / 4
    assert_close(critic.shift, torch.tensor(4.0))
    assert_close(critic.scale, torch.tensor(10.0**0.5))


def test_the_weight_of_old_rollouts_decays(critic: ValueNetwork) -> None:
    feed(critic, *[[0.0, 2.0]] * 20, *[[9.0, 11.0]] * 200)
    assert_close(critic.shift, torch.tensor(10.0), rtol=1e-2, atol=0.0)
    assert_close(critic.scale, torch.tensor(1.0), rtol=5e-2, atol=0.0)


def test_equal_targets_leave_a_positive_scale(critic: ValueNetwork) -> None:
    feed(critic, [3.0, 3.0])
    assert critic.scale > 0
    assert values(critic).isfinite().all()


def test_the_scale_is_part_of_a_checkpoint(critic: ValueNetwork, tmp_path: Path, tiny_folder: str) -> None:
    feed(critic, [1.0, 5.0])
    torch.save(critic.state_dict(), tmp_path / "critic.pt")
    other = ValueNetwork(Backbone(tiny_folder, "float32"), None, critic.num_kinds, tiny_folder).eval()
    other.load_state_dict(torch.load(tmp_path / "critic.pt"))
    assert_close(values(other), values(critic))


def test_without_rescaling_the_unit_is_one(critic: ValueNetwork) -> None:
    assert (critic.scale, critic.shift) == (1.0, 0.0)


def test_mixed_precision_does_not_round_values(critic: ValueNetwork) -> None:
    """Near 12 the numbers of bfloat16 are 1 / 16 apart."""
    states = torch.zeros(*BATCH.ids.shape, critic.backbone.hidden_size)
    critic.hidden_states = lambda batch: states  # type: ignore[method-assign]
    critic.head.bias.data.fill_(12.32)
    with torch.autocast("cpu", torch.bfloat16):
        found = values(critic)
    assert_close(found[BATCH.action_mask], torch.full((int(BATCH.action_mask.sum()),), 12.32))
