"""The order of data: on-policy, reproducible, and the same after a crash."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from collm.algorithms.base import MultiAgentModule
from collm.data import RolloutDataModule
from collm.errors import ConfigurationError
from toy import REPOSITORY, Toy

Fit = Callable[..., int]


def test_every_rollout_is_drawn_with_the_weights_the_last_update_left(
    fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[tuple[str, float]] = []
    play, batch_end = RolloutDataModule.play, MultiAgentModule.on_train_batch_end

    def checksum(module: MultiAgentModule) -> float:
        return sum(weight.double().abs().sum().item() for weights in module.learners.values() for weight in weights)

    def spy_on_play(data: RolloutDataModule, sampler, tasks, seed, *args):
        module = data.trainer.lightning_module
        events.append(("rollout" if sampler is data.sampler else "evaluation", checksum(module)))
        return play(data, sampler, tasks, seed, *args)

    def spy_on_update(module: MultiAgentModule, *args) -> None:
        batch_end(module, *args)
        events.append(("update", checksum(module)))

    monkeypatch.setattr(RolloutDataModule, "play", spy_on_play)
    monkeypatch.setattr(MultiAgentModule, "on_train_batch_end", spy_on_update)
    assert fit("--data.rollouts_per_epoch=3") == 0

    names = [name for name, _ in events]
    epoch = ["rollout", "update"] * 3 + ["evaluation"]
    assert names == ["evaluation", *epoch, *epoch]
    for (_, before), (name, after) in zip(events, events[1:], strict=False):
        assert (before != after) == (name == "update")


def test_evaluations_play_the_same_tasks_with_the_same_seeds(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    played: list[tuple[list[str], int]] = []
    play = RolloutDataModule.play

    def spy(data: RolloutDataModule, sampler, tasks, seed, *args):
        if sampler is data.eval_sampler:
            played.append(([task.task_id for task in tasks], seed))
        return play(data, sampler, tasks, seed, *args)

    monkeypatch.setattr(RolloutDataModule, "play", spy)
    assert fit("--data.environment.num_eval=3", "--data.eval_batch_size=4", "--data.eval_episodes_per_task=2") == 0
    assert len(played) == 6  # three evaluations of two batches
    assert [tasks for tasks, _ in played[:2]] == [["eval_0", "eval_1"], ["eval_2"]]
    assert played[0][1] != played[1][1]
    assert played[:2] == played[2:4] == played[4:]


def test_training_rollouts_never_share_a_seed(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    play = RolloutDataModule.play

    def spy(data: RolloutDataModule, sampler, tasks, seed, *args):
        seeds.append(seed)
        return play(data, sampler, tasks, seed, *args)

    monkeypatch.setattr(RolloutDataModule, "play", spy)
    assert fit("--data.rollouts_per_epoch=2") == 0
    evaluation = seeds[0]
    training = [seed for seed in seeds if seed != evaluation]
    assert len(training) == len(set(training)) == 4


def task_ids(data: RolloutDataModule, num_rollouts: int) -> list[str]:
    return [task.task_id for rollout in range(num_rollouts) for task in data.tasks_of(rollout)]


def test_tasks_come_in_passes_of_random_order() -> None:
    every = sorted(task.task_id for task in Toy(num_tasks=7).tasks("train"))
    data = RolloutDataModule(Toy(num_tasks=7), tasks_per_rollout=4)
    ids = task_ids(data, 7)  # 28 tasks: 4 passes
    passes = [ids[start : start + 7] for start in range(0, 28, 7)]
    assert all(sorted(one) == every for one in passes)
    assert len({tuple(one) for one in passes}) == 4  # each in an order of its own
    assert task_ids(RolloutDataModule(Toy(num_tasks=7), tasks_per_rollout=4), 7) == ids
    assert task_ids(RolloutDataModule(Toy(num_tasks=7), tasks_per_rollout=4, seed=1), 7) != ids


def test_a_rollout_may_hold_more_than_all_tasks() -> None:
    data = RolloutDataModule(Toy(num_tasks=2), tasks_per_rollout=5)
    ids = [task.task_id for task in data.tasks_of(0)]
    assert sorted(ids[:2]) == sorted(ids[2:4]) == ["train_0", "train_1"]
    assert len(ids) == 5


@pytest.mark.parametrize("setting", ["tasks_per_rollout", "num_generations", "rollouts_per_epoch", "eval_batch_size"])
def test_counts_have_to_be_positive(setting: str) -> None:
    with pytest.raises(ConfigurationError, match=f"data.{setting} is 0"):
        RolloutDataModule(Toy(), **{setting: 0})


@pytest.mark.parametrize(
    ("stage", "split", "expected"),
    [
        ("fit", "eval", ["train_0", "train_1", "eval_0"]),
        ("validate", "train", ["eval_0"]),
        ("predict", "eval", ["eval_0"]),
        ("predict", "train", ["train_0", "train_1"]),
    ],
)
def test_the_first_prompts_of_all_tasks_that_are_played_are_checked(stage: str, split: str, expected: list) -> None:
    data = RolloutDataModule(Toy(num_agents=1, num_tasks=2, num_eval=1), predict_split=split)
    checked: list[str] = []
    dialogue = SimpleNamespace(check_fits=lambda agent_id, task_id, observation: checked.append(task_id))
    data.trainer = SimpleNamespace(lightning_module=SimpleNamespace(specs={}, dialogues=lambda: {"a1": dialogue}))
    data.setup(stage)
    assert checked == expected


# A crash in the middle of a run

CRASHING = """
import os, signal, sys
import torch
from collm import cli
from collm.algorithms.base import MultiAgentModule

torch.set_num_threads(1)
begin = MultiAgentModule.on_train_batch_start

def crash(module, batch, batch_idx):
    if module.trainer.current_epoch == 2 and batch_idx == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    begin(module, batch, batch_idx)

MultiAgentModule.on_train_batch_start = crash
cli.main(sys.argv[1], sys.argv[2:])
"""


@pytest.mark.slow
def test_a_killed_run_continues_to_the_numbers_of_an_uninterrupted_one(fit: Fit, tmp_path: Path) -> None:
    options = [
        *("--trainer.max_epochs=4", "--data.rollouts_per_epoch=2", "--data.num_generations=2"),
        *("--model.num_epochs=2", "--model.num_minibatches=2", "--model.critic_warmup=1", "--model.kl_weight=0.1"),
        *("--model.lr_schedule=torch.optim.lr_scheduler.StepLR", "--model.lr_schedule.step_size=3"),
        *("--data.environment.num_tasks=5", "--data.environment.stop_at=0.9"),
    ]
    assert fit(*options) == 0  # version_0

    command = [
        sys.executable,
        "-c",
        CRASHING,
        REPOSITORY / "configs" / "base.yaml",
        "fit",
        "--config=toy.yaml",
        *options,
    ]
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY / 'src'}:{REPOSITORY / 'tests'}", "OMP_NUM_THREADS": "1"}
    killed = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    logs = tmp_path / "logs" / "collm"
    checkpoint = logs / "version_1" / "checkpoints" / "last.ckpt"
    assert torch.load(checkpoint, weights_only=True)["epoch"] == 1  # 0 and 1 are complete

    assert fit(*options, f"--ckpt_path={checkpoint}") == 0  # version_2
    whole, resumed = numbers(logs / "version_0"), numbers(logs / "version_2")
    assert set(whole) == set(resumed)
    for name, points in resumed.items():
        assert points, name
        assert {step: whole[name][step] for step in points} == pytest.approx(points, rel=1e-6, nan_ok=True), name
    # rollouts 5 to 8 and the evaluations after each two of them, and nothing of what was before
    assert len(whole["rollout/return"]) == 8
    assert list(resumed["rollout/return"]) == list(whole["rollout/return"])[4:]
    assert list(resumed["eval/return"]) == list(whole["eval/return"])[3:]

    ends = [
        torch.load(logs / version / "checkpoints" / "last.ckpt", weights_only=True)
        for version in ("version_0", "version_2")
    ]
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        torch.testing.assert_close(ends[1][part], ends[0][part], rtol=1e-6, atol=1e-7)
    assert ends[0]["collm"] == ends[1]["collm"]
    assert ends[0]["epoch"] == ends[1]["epoch"] == 3


def numbers(folder: Path) -> dict[str, dict[int, float]]:
    """Logged values by name and joint samples, but for how long things took."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {
        name: {event.step: event.value for event in events.Scalars(name)}
        for name in events.Tags()["scalars"]
        if not name.startswith(("time/", "memory/", "throughput/"))
    }
