"""The slow copies of critics that values of next turns may come from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from collm.algorithms.actor_critic import ActorCritic
from collm.algorithms.collm_cc import CoLLMCC
from collm.algorithms.collm_cc_q import CoLLMCCQ
from collm.algorithms.collm_dc import CoLLMDC
from collm.algorithms.collm_dc_shared import CoLLMDCShared
from collm.critics.language_model import CriticSpec
from collm.errors import ConfigurationError
from collm.models.policy import PolicySpec
from collm.samplers.parallel import Parallel
from collm.trajectory import RolloutBatch, collate
from toy import Toy
from untrained import without_trainer

Make = Callable[..., ActorCritic]
ALL = [CoLLMCC, CoLLMDC, CoLLMCCQ]


@pytest.fixture
def make(tiny_folder: str) -> Make:
    """Makes an algorithm without a trainer that takes plain steps."""

    def build(cls: type[ActorCritic] = CoLLMCC, lora_rank: int = 0, dtype: str = "float32", **kwargs) -> ActorCritic:
        torch.manual_seed(0)
        module = cls(
            agent_ids=Toy(2).agent_ids,
            policy=PolicySpec(tiny_folder, learning_rate=1e-3, max_new_tokens=4, lora_rank=lora_rank),
            critic=CriticSpec(tiny_folder, learning_rate=0.1, lora_rank=lora_rank, dtype=dtype),
            optimizer=torch.optim.SGD,
            **kwargs,
        )
        without_trainer(module)
        module.num_rollouts = 1
        return module

    return build


def play(module: ActorCritic) -> RolloutBatch:
    env = Toy(2, horizon=2, num_tasks=2)
    trajectories = Parallel().rollout(env, env.tasks("train"), module.policies, 0, "cpu")
    for trajectory, rewards in zip(trajectories, [[1.0, 2.0], [-0.5, 0.25]], strict=True):
        for turn, reward in zip(trajectory.turns, rewards, strict=True):
            turn.reward = reward
    return collate(trajectories)


def weights_of(module: ActorCritic, name: str = "critic") -> list[Tensor]:
    return [weight.detach().clone() for weight in module.critics[name].trainable_parameters()]


def same(ones: list[Tensor], others: list[Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(ones, others, strict=True))


def test_copies_start_as_the_centered_critic_and_move_by_the_rate(make: Make) -> None:
    module = make(target_critic_rate=0.25)
    batch = play(module)
    histories = module.critics["critic"].encode(batch.trajectories)
    values = module.values("critic", histories, batch)
    first = weights_of(module)
    assert first[1].item() == pytest.approx((3.0 + 2.0 - 0.25 + 0.25) / 4)  # the bias, at the mean return
    assert torch.equal(module.bootstrap_values("critic", values, histories, batch), values)
    assert same(module.target_critics["critic"], first)

    module.update_critic("critic", histories, values, torch.ones(2, 2), batch)
    second = weights_of(module)
    assert not same(first, second)
    once = [0.75 * old + 0.25 * new for old, new in zip(first, second, strict=True)]
    assert_close(module.target_critics["critic"], once)
    module.update_critic("critic", histories, values, torch.ones(2, 2), batch)
    third = weights_of(module)
    twice = [0.5625 * a + 0.1875 * b + 0.25 * c for a, b, c in zip(first, second, third, strict=True)]
    assert_close(module.target_critics["critic"], twice)


def test_the_values_are_those_of_the_copy_and_the_critic_stays(make: Make) -> None:
    module = make(target_critic_rate=0.1)
    batch = play(module)
    histories = module.critics["critic"].encode(batch.trajectories)
    values = module.values("critic", histories, batch)
    module.bootstrap_values("critic", values, histories, batch)
    before = weights_of(module)
    module.target_critics["critic"][1] += 3.0  # the bias of the copy
    later = module.bootstrap_values("critic", values, histories, batch)
    assert_close(later, values + 3.0)
    assert same(weights_of(module), before)
    assert torch.equal(module.values("critic", histories, batch), values)
    assert all(weight.requires_grad for weight in module.critics["critic"].trainable_parameters())


def test_the_critic_comes_back_after_an_error(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    module = make(target_critic_rate=0.1)
    batch = play(module)
    module.training_step(batch, 0)
    before = weights_of(module)

    def read(*_: Any) -> None:
        assert same(weights_of(module), module.target_critics["critic"])
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "read", read)
    with pytest.raises(KeyboardInterrupt):
        module.bootstrap_values("critic", torch.zeros(2, 2), [], batch)
    assert same(weights_of(module), before)


def test_next_values_of_the_copy_reach_advantages_and_targets(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    module = make(target_critic_rate=0.5, discount=0.9)
    batch = play(module)
    batch.turn_mask[1, 1] = False  # as if the second episode had ended after a turn
    given: dict[str, Tensor] = {}
    monkeypatch.setattr(module, "values", lambda *_: torch.tensor([[0.5, 0.25], [1.0, 0.0]]))
    monkeypatch.setattr(module, "bootstrap_values", lambda *_: torch.tensor([[7.0, -1.0], [7.0, 7.0]]))
    monkeypatch.setattr(module, "update_critic", lambda name, h, values, targets, b: given.update({name: targets}))
    monkeypatch.setattr(module, "update_policies", lambda b, advantages: given.update(advantages))
    module.training_step(batch, 0)
    # rewards 1, 2 and -0.5: 1 - 0.9 * 1 - 0.5, 2 - 0.25, -0.5 - 1
    assert_close(given["a1"], torch.tensor([[-0.4, 1.75], [-1.5, 0.0]]))
    assert_close(given["critic"][batch.turn_mask], torch.tensor([0.1, 2.0, -0.5]))


@pytest.mark.parametrize("cls", ALL)
def test_rate_1_is_no_copy_at_all_and_a_smaller_rate_is_one(make: Make, cls: type[ActorCritic]) -> None:
    """At rate 1 the copy is the critic whenever it is read."""
    ends = []
    for rate in (None, 1.0, 0.1):
        module = make(cls, target_critic_rate=rate)
        batch = play(module)
        for _ in range(2):
            module.training_step(batch, 0)
        assert sorted(module.target_critics) == ([] if rate is None else sorted(module.critics))
        ends.append([weight for name in module.critics for weight in weights_of(module, name)])
    assert same(ends[0], ends[1])
    assert not same(ends[0], ends[2])


def test_only_what_trains_is_copied_and_in_full_precision(make: Make) -> None:
    module = make(lora_rank=2, parameters="lora", target_critic_rate=0.1)
    batch = play(module)
    module.training_step(batch, 0)
    assert len(module.target_critics["critic"]) == len(module.learners["critic"])
    assert len(module.target_critics["critic"]) < len(list(module.backbones.parameters()))

    module = make(dtype="bfloat16", target_critic_rate=1e-3)  # too small a rate for bfloat16
    module.training_step(batch, 0)
    assert {copy.dtype for copy in module.target_critics["critic"]} == {torch.float32}
    module.training_step(batch, 0)
    assert module.critics["critic"].backbone.lm.dtype == torch.bfloat16


def test_without_a_rate_nothing_is_kept(make: Make) -> None:
    module = make()
    values = torch.zeros(2, 2)
    assert module.bootstrap_values("critic", values, [], play(module)) is values
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    assert "target_critics" not in checkpoint["collm"]


def test_a_resumed_run_has_the_copies_of_an_uninterrupted_one(fit: Callable[..., int], tmp_path: Path) -> None:
    options = ["--model.target_critic_rate=0.1", "--data.rollouts_per_epoch=2"]
    assert fit(*options, "--trainer.max_epochs=2") == 0
    assert fit(*options, "--trainer.max_epochs=1") == 0
    folder = tmp_path / "logs" / "collm"
    half = folder / "version_1" / "checkpoints" / "last.ckpt"
    assert fit(*options, "--trainer.max_epochs=2", f"--ckpt_path={half}") == 0
    start, whole, resumed = (
        torch.load(folder / version / "checkpoints" / "last.ckpt", weights_only=True)
        for version in ("version_1", "version_0", "version_2")
    )
    copies = whole["collm"]["target_critics"]["critic"]
    assert same(resumed["collm"]["target_critics"]["critic"], copies)
    assert not same(start["collm"]["target_critics"]["critic"], copies)
    assert all(torch.equal(weight, resumed["state_dict"][name]) for name, weight in whole["state_dict"].items())


@pytest.mark.parametrize(
    ("cls", "options", "message"),
    [
        (CoLLMCC, {"target_critic_rate": 0.0}, r"target_critic_rate is 0.0; it must be in \(0, 1\]"),
        (CoLLMDC, {"target_critic_rate": 1.5}, "target_critic_rate is 1.5"),
        (CoLLMCC, {"target_critic_rate": 0.1, "normalize_values": True}, "turn one of them off"),
        (CoLLMDCShared, {"target_critic_rate": 0.1}, "weights of their own"),
    ],
    ids=["zero", "above one", "normalized", "shared weights"],
)
def test_what_cannot_work_is_refused(
    tiny_folder: str, no_weights: None, cls: type[ActorCritic], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        cls(agent_ids=["a1"], policy=PolicySpec(tiny_folder), critic=CriticSpec(tiny_folder), **options)
