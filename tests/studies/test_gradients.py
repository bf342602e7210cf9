"""Noise and bias of gradients, against a game whose episodes can be counted, and against an ordinary update."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor
from torch.testing import assert_close

from collm.errors import ConfigurationError
from collm.models.backbone import Backbone
from collm.objectives import generalized_advantages, policy_gradient_loss
from collm.returns import discounted_returns
from collm.studies.gradient_test import gradient_test, main
from collm.studies.gradients import Measured, load, statistics
from collm.studies.launch import Method
from collm.studies.report import report
from enumerated import FULL, Enumerated
from tabular import AGENTS
from toy import REPOSITORY, toy_config


def each_gradient(game: Enumerated, advantages: Tensor) -> Tensor:
    """Gradient of every episode that can be played, for both agents, [episodes, P]."""
    rows = []
    for row in range(len(advantages)):
        pieces = []
        for agent_id in AGENTS:
            logits = game.policies[agent_id].logits.clone().requires_grad_()
            log_probs = game.log_probs_under(agent_id, logits)[row : row + 1]
            mask = game.batch.turn_mask[row : row + 1]
            policy_gradient_loss(log_probs, log_probs.detach(), advantages[row : row + 1], mask).backward()
            pieces.append(-logits.grad.flatten())
        rows.append(torch.cat(pieces))
    return torch.stack(rows).double()


def exact(each: Tensor, chances: Tensor, truth: Tensor) -> dict[str, float]:
    """The statistics as sums over all episodes."""
    mean = chances @ each
    trace = float(chances @ each.square().sum(1) - mean.square().sum())
    length = float(truth.norm())
    return {
        "noise_to_signal": trace / float(mean.square().sum()),
        "cosine": float(mean @ truth) / (float(mean.norm()) * length),
        "kept": float(mean @ truth) / length**2,
        "norm_ratio": float(mean.norm()) / length,
        "update_cosine": float(mean @ truth) / (length * (float(mean.square().sum()) + trace / 16) ** 0.5),
    }


def draw(each: Tensor, chances: Tensor, truth: Tensor, count: int, seed: int) -> Measured:
    generator = torch.Generator().manual_seed(seed)
    drawn = each[torch.multinomial(chances, count, replacement=True, generator=generator)]
    return Measured(drawn @ drawn.T, 1.0, 16.0, drawn @ truth)


@pytest.mark.parametrize("method", ["returns", "known values", "a constant for values"])
def test_estimates_come_close_to_sums_over_all_episodes(method: str) -> None:
    """Within a tenth from 1,500 episodes, and inside their own 95 % intervals in most of 10 repetitions."""
    game = Enumerated(FULL)
    chances = game.probabilities.double() / game.probabilities.double().sum()
    mask, rewards = game.batch.turn_mask, game.batch.rewards
    if method == "returns":
        advantages = discounted_returns(rewards, mask, 1.0)
    else:
        values = game.values(1.0, list(AGENTS)) if method == "known values" else torch.full_like(rewards, 1.0)
        advantages = generalized_advantages(rewards, values, mask, 1.0, 0.0)
    each = each_gradient(game, advantages)
    truth = torch.cat([game.true_gradient(agent_id, 1.0).flatten() for agent_id in AGENTS]).double()
    expected = exact(each, chances, truth)
    unbiased = method != "a constant for values"
    assert (expected["kept"] == pytest.approx(1.0, abs=1e-5)) is unbiased
    reference = Measured(torch.outer(torch.ones(2), torch.ones(2)).double() * truth.square().sum(), 1.0, 1.0)
    found = statistics([draw(each, chances, truth, 1500, 0)], [reference])
    for name, value in expected.items():
        assert found[name][0] == pytest.approx(value, rel=0.1)
    covered = 0
    for seed in range(10):
        _, low, high = statistics([draw(each, chances, truth, 200, seed + 1)], [reference])["noise_to_signal"]
        covered += low <= expected["noise_to_signal"] <= high
    assert covered >= 7


def test_hand_worked_numbers() -> None:
    """Gradients (1, 0), (0, 1) and (1, 1): products of pairs 0, 1, 1, squares 1, 1, 2; the reference is (2, 0)."""
    gradients = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]).double()
    measured = Measured(gradients @ gradients.T, 4.0, 2.0, gradients @ torch.tensor([2.0, 0.0]).double())
    reference = Measured(torch.full((2, 2), 4.0).double(), 1.0, 1.0)
    found = statistics([measured], [reference])
    signal, trace, along = 2 / 3, 4 / 3 - 2 / 3, 4 / 3
    assert found["noise_to_signal"][0] == pytest.approx(4 * trace / signal)
    assert found["cosine"][0] == pytest.approx(along / (signal**0.5 * 2))
    assert found["kept"][0] == pytest.approx(along / 4)
    assert found["norm_ratio"][0] == pytest.approx(signal**0.5 / 2)
    assert found["update_cosine"][0] == pytest.approx(along / ((signal + trace / 2) ** 0.5 * 2))
    twice = statistics([measured, Measured(measured.gram, 16.0, 2.0, measured.dots)], [reference] * 2)
    assert twice["noise_to_signal"][0] == pytest.approx(8 * trace / signal)  # the geometric mean of 4 and 16
    assert set(statistics([measured])) == {"noise_to_signal"}


def test_noise_to_signal_is_infinite_without_a_signal() -> None:
    gradients = torch.tensor([[1.0, 0.0], [-1.0, 0.1]]).double()
    found = statistics([Measured(gradients @ gradients.T, 1.0, 1.0)])
    assert found["noise_to_signal"][0] == float("inf")


MEASURE = "--trainer.callbacks+=collm.studies.record_gradients.MeasureGradients"
PLAIN = (
    *("--trainer.max_epochs=1", "--trainer.limit_val_batches=0", "--data.num_generations=2"),
    *("--model.policy.learning_rate=1", "--model.gradient_clip_norm=0", "--data.tasks_per_rollout=8"),
)


def moved_by(folder: Path, tiny_folder: str) -> Tensor:
    """How far all weights of the agents are from where they began, [P]."""
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    began = dict(Backbone(tiny_folder, "float32").named_parameters())
    pieces = [state[f"backbones.<{agent}>.{name}"] - began[name] for agent in ("a1", "a2") for name in began]
    return torch.cat([piece.detach().flatten() for piece in pieces])


@pytest.mark.parametrize("algorithm", ["collm.algorithms.marloo.MARLOO", "collm.algorithms.collm_cc.CoLLMCC"])
def test_measured_gradients_equal_those_of_an_update(
    fit: Callable[..., int], run_folder: Path, tmp_path: Path, tiny_folder: str, algorithm: str
) -> None:
    """One step of plain gradient descent with rate 1 moves the weights by the mean of what was measured."""
    config = yaml.safe_load((tmp_path / "toy.yaml").read_text())
    config["model"]["class_path"] = algorithm
    config["model"]["init_args"]["optimizer"] = {"class_path": "torch.optim.SGD", "init_args": {"weight_decay": 0.0}}
    if "CC" not in algorithm:
        del config["model"]["init_args"]["critic"]
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(config))
    path = tmp_path / "gradients.pt"
    measure = (MEASURE, f"--trainer.callbacks.path={path}", "--trainer.callbacks.measured_rollouts=1")
    assert fit(*PLAIN, *measure) == 0
    assert fit(*PLAIN) == 0
    moved = moved_by(run_folder.with_name("version_1"), tiny_folder)
    record = torch.load(path, weights_only=True)
    assert record["mean"].shape == moved.shape
    assert moved.abs().max() > 1e-3
    assert_close(record["mean"], moved, rtol=1e-3, atol=1e-5)
    assert (record["episodes_per_task"], record["rollout_tasks"]) == (2.0, 8.0)
    assert record["gram"].shape == (8, 8)


def test_gradients_are_measured_beside_a_mate_that_does_not_learn(
    fit: Callable[..., int], tmp_path: Path, tiny_folder: str
) -> None:
    mate = {"path": tiny_folder, "max_new_tokens": 4, "frozen": True}
    (tmp_path / "mate.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"policies": {"a2": mate}}}}))
    path = tmp_path / "gradients.pt"
    measure = (MEASURE, f"--trainer.callbacks.path={path}", "--trainer.callbacks.measured_rollouts=1")
    assert fit(f"--config={tmp_path / 'mate.yaml'}", *PLAIN, *measure) == 0
    size = sum(weight.numel() for weight in Backbone(tiny_folder, "float32").parameters())
    assert torch.load(path, weights_only=True)["mean"].shape == (size,)  # of one agent


@pytest.mark.parametrize(
    ("args", "named"),
    [
        (["--trainer.callbacks.measured_rollouts=9"], "10 rollouts at least"),
        (["--trainer.callbacks.policies=nowhere.ckpt"], "'nowhere.ckpt' does not exist"),
        (["--model.critic_warmup=99"], "lower model.critic_warmup"),
    ],
)
def test_settings_that_cannot_be_measured_are_refused(
    fit: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture, args: list[str], named: str
) -> None:
    measure = (MEASURE, f"--trainer.callbacks.path={tmp_path / 'g.pt'}", "--trainer.callbacks.fit_rollouts=1")
    assert fit(*measure, "--trainer.callbacks.measured_rollouts=1", "--trainer.limit_val_batches=0", *args) == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    "settings",
    [
        {"methods": {"reference": Method()}, "reference": Method()},
        {"methods": {"policy": Method()}, "policies": {"trained": Method([], {"trainer": {"max_epochs": 1}})}},
    ],
)
def test_methods_keep_out_of_the_folders_of_references_and_policies(tmp_path: Path, settings: dict) -> None:
    with pytest.raises(ConfigurationError, match="must differ"):
        gradient_test(configs=[], out=str(tmp_path), figures=False, **settings)


def test_the_command_trains_a_policy_and_measures_methods_at_it(
    tmp_path: Path, tiny_folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY / "tests"))
    config = toy_config(tiny_folder)
    del config["model"]["init_args"]["critic"]
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(config))
    group = {"model": {"class_path": "collm.algorithms.marloo.MARLOO"}, "data": {"num_generations": 2}}
    (tmp_path / "group.yaml").write_text(yaml.safe_dump(group))
    settings = {
        "configs": [str(tmp_path / "toy.yaml"), str(tmp_path / "group.yaml")],
        "out": str(tmp_path / "out"),
        "policies": {"after one update": {"overrides": {"trainer": {"max_epochs": 1, "limit_val_batches": 0}}}},
        "methods": {"MARLOO": {}, "CC": {"configs": ["configs/algorithms/collm_cc.yaml", "configs/critics/tiny.yaml"]}},
        "reference": {"configs": []},  # the oldest jsonargparse reads {} as no reference
        "fit_rollouts": 1,
        "measured_rollouts": 2,
        "reference_rollouts": 3,
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.setattr("sys.argv", ["gradient", "--config", str(tmp_path / "test.yaml")])
    assert main(REPOSITORY / "tools" / "fit.py", REPOSITORY / "configs" / "base.yaml") == 0
    home = tmp_path / "out" / "all" / "after_one_update"
    measured = load(str(home / "MARLOO" / "seed_0" / "gradients.pt"))
    assert measured.gram.shape == measured.dots.shape * 2 == (4, 4)
    assert load(str(home / "reference" / "seed_0" / "gradients.pt")).gram.shape == (6, 6)
    assert load(str(home / "CC" / "seed_0" / "gradients.pt")).episodes_per_task == 2.0
    page = (tmp_path / "out" / "README.md").read_text()
    assert {"table_0.csv", "table_0.png", "noise_to_signal.png"} <= {path.name for path in (tmp_path / "out").iterdir()}
    assert all(f"| {label} | 1 |" in page for label in ("MARLOO", "CC"))
    report(raw=str(tmp_path / "out" / "table.json"), out=str(tmp_path / "again"))
    assert (tmp_path / "again" / "README.md").read_text() == page
    assert "noise_to_signal" in capsys.readouterr().out
    policy = torch.load(home / "policy" / "seed_0" / "checkpoints" / "last.ckpt", weights_only=True)
    assert policy["collm"]["joint_samples"] == 2 * 2 * 2
    began = (home / "CC" / "seed_0" / "finished.json").stat().st_mtime_ns
    assert main(REPOSITORY / "tools" / "fit.py", REPOSITORY / "configs" / "base.yaml") == 0
    assert (home / "CC" / "seed_0" / "finished.json").stat().st_mtime_ns == began
