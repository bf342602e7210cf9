"""Runs with critics that read the state, and groups whose returns do not differ."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from torch.utils._pytree import tree_flatten

from collm.data import RolloutDataModule
from collm.errors import ConfigurationError
from collm.metrics import group_numbers
from collm.rollout_tree import Branch
from collm.samplers.tree import Tree
from collm.trajectory import Action, Task, Trajectory, Turn, collate
from curves import scalars
from toy import Toy

Fit = Callable[..., int]
RIDGE = "collm.critics.features.FeaturesCritic"
GAME = "--data.environment=described.DescribedToy"


@pytest.mark.parametrize(
    "critic",
    [
        RIDGE,
        "collm.critics.feature_network.FeatureNetworkCritic",
        '{"class_path": "collm.critics.sum.SumCritic", "init_args": {"rest": {"class_path": '
        '"collm.critics.language_model.LanguageModelCritic", "init_args": {"model": {"path": "tiny"}}}}}',
        '{"class_path": "collm.critics.language_model.LanguageModelCritic", "init_args": {"reads": "state", "model": '
        '{"path": "tiny"}}}',
    ],
    ids=["ridge", "network", "sum", "state text"],
)
def test_a_resumed_run_ends_as_one_that_was_not_stopped(fit: Fit, tmp_path: Path, critic: str) -> None:
    args = (GAME, f"--model.critic={critic}", "--data.num_generations=2", "--trainer.limit_val_batches=1")
    assert fit(*args, "--trainer.max_epochs=2") == 0
    assert fit(*args, "--trainer.max_epochs=1") == 0
    runs = tmp_path / "logs" / "collm"
    half = runs / "version_1" / "checkpoints" / "last.ckpt"
    assert fit(*args, "--trainer.max_epochs=2", f"--ckpt_path={half}") == 0
    straight, resumed = (
        torch.load(runs / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("version_0", "version_2")
    )
    for kept in ("state_dict", "collm"):
        found, expected = (tree_flatten(one[kept])[0] for one in (resumed, straight))
        assert len(found) == len(expected) > 4
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other

    logged = scalars(runs / "version_0")
    assert {"critic/explained_variance", "critic/explained_variance/turn_1", "rollout/equal_groups"} <= set(logged)
    (transcript,) = sorted((runs / "version_0" / "transcripts").glob("val*00000000.jsonl")) or [None]
    told = json.loads(transcript.read_text().splitlines()[0])["turns"][1]
    assert (told["features"], told["state_text"], told["progress"]) == ({"task": 0, "turn": 1}, "task 0 turn 1", 0.5)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((f"--model.critic={RIDGE}",), "Toy has no state features"),
        (("--model.critic.reads=state",), "critic.reads is 'state', but Toy does not describe its states as text"),
        ((GAME, f"--model.critic={RIDGE}", "--model=CoLLMDC"), "which is the same for all agents, but CoLLMDC"),
        (("--data.replace_equal_groups=1",), "Parallel with data.num_generations 1 does not play groups"),
        (
            ("--data.replace_equal_groups=1", "--data.num_generations=2", "--data.sampler=Tree"),
            "Tree with data.num_generations 2 does not play groups of independent episodes",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_before_weights_load(
    fit: Fit, no_weights: None, capsys: pytest.CaptureFixture, args: tuple[str, ...], message: str
) -> None:
    assert fit(*args) == 2
    assert message in capsys.readouterr().err


# Groups whose returns do not differ


def episode(group: int, *rewards: float, task: str = "") -> Trajectory:
    turns = [Turn({}, {"a1": Action("")}, reward) for reward in rewards]
    return Trajectory(Task(task or f"old {group}", {}), group, 2, 1.0, turns)


def test_group_numbers_by_hand() -> None:
    batch = collate([episode(0, 0, 1), episode(0, 0, 1), episode(1, 0, 1), episode(1, 1, 0), episode(2, 1, 1)])
    batch.replaced = [episode(3, 0, 0)] * 3
    assert_close(group_numbers(batch), torch.tensor([1.0, 2.0, 6.0]))
    assert batch.joint_samples == 16
    assert batch.to(torch.device("cpu")).joint_samples == 16


def test_groups_of_a_tree_are_siblings() -> None:
    """Two joint actions worth 2 each, the mean of 1 and 3 and of 2 and 2: they do not differ, nor do 2 and 2."""
    paths = [episode(0, 0, reward) for reward in (1, 3, 2, 2)]
    for number, path in enumerate(paths):
        path.weight = 0.25
        path.turns[0].branch, path.turns[1].branch = Branch(number // 2, -1), Branch(2 + number, number // 2)
    assert_close(group_numbers(collate(paths)), torch.tensor([2.0, 3.0, 0.0]))


def played(rewards: dict[str, list[float]], **settings: Any) -> tuple[RolloutDataModule, list[tuple]]:
    """Data whose tasks earn, episode by episode, these rewards; and what was asked to be played."""
    asked: list[tuple] = []
    data = RolloutDataModule(Toy(num_tasks=len(rewards)), num_generations=2, **settings)
    data.trainer = SimpleNamespace(lightning_module=SimpleNamespace(device="cpu"))

    def play(sampler: Any, tasks: list[Task], seed: int, num_generations: int) -> Any:
        asked.append(([task.task_id for task in tasks], seed))
        return collate(
            [
                episode(group, reward, task=task.task_id)
                for group, task in enumerate(tasks)
                for reward in rewards[task.task_id]
            ],
            seconds=1.0,
        )

    data.play = play
    return data, asked


REWARDS = {"train_0": [0.0, 0.0], "train_1": [0.0, 1.0], "train_2": [1.0, 1.0], "train_3": [1.0, 0.0]}


def test_equal_groups_are_replaced_and_counted() -> None:
    data, asked = played(REWARDS, replace_equal_groups=3)
    tasks = {task.task_id: task for task in data.train_tasks}
    batch = data.play_until_different([tasks["train_0"], tasks["train_1"]], [tasks["train_3"]], seed=5)
    assert [names for names, _ in asked] == [["train_0", "train_1"], ["train_3"]]
    assert asked[0][1] != asked[1][1]
    assert [path.task.task_id for path in batch.trajectories] == ["train_3", "train_3", "train_1", "train_1"]
    assert batch.groups.tolist() == [0, 0, 1, 1]
    assert batch.rewards.flatten().tolist() == [1.0, 0.0, 0.0, 1.0]
    assert (len(batch.replaced), batch.joint_samples, batch.seconds) == (2, 6, 2.0)


def test_what_is_still_equal_in_the_end_is_kept() -> None:
    data, asked = played(REWARDS, replace_equal_groups=2)
    tasks = {task.task_id: task for task in data.train_tasks}
    batch = data.play_until_different([tasks["train_0"], tasks["train_2"]], [tasks["train_2"]], seed=5)
    assert [names for names, _ in asked] == [["train_0", "train_2"], ["train_2"] * 2, ["train_2"] * 2]
    assert len({seed for _, seed in asked}) == 3
    assert batch.groups.tolist() == [0, 0, 1, 1]
    assert (len(batch.replaced), batch.joint_samples) == (8, 12)


def test_failed_episodes_of_every_try_are_kept_with_their_groups() -> None:
    data, _ = played(REWARDS, replace_equal_groups=1)
    complete = data.play

    def play(*args: Any) -> Any:
        batch = complete(*args)
        batch.left_out = [episode(0)]  # of the first task that was asked for
        return batch

    data.play = play
    tasks = {task.task_id: task for task in data.train_tasks}
    batch = data.play_until_different([tasks["train_1"], tasks["train_0"]], [tasks["train_3"]], seed=5)
    assert [path.group for path in batch.left_out] == [0, 1]
    assert [(path.group, path.task.task_id) for path in batch.trajectories[1:3]] == [(0, "train_1"), (1, "train_3")]


def test_what_engines_count_adds_up_over_all_tries() -> None:
    data, asked = played(REWARDS, replace_equal_groups=2)
    complete = data.play
    counted = [{"latency/a1": [1.0], "absent/a1": [0.0]}, {"latency/a1": [2.0], "retries/a1": [1.0]}, {}]

    def play(*args: Any) -> Any:
        batch = complete(*args)
        batch.numbers = counted[len(asked) - 1]
        return batch

    data.play = play
    batch = data.play_until_different(data.train_tasks[:1], data.train_tasks[2:3], seed=5)
    assert len(asked) == 3
    assert batch.numbers == {"latency/a1": [1.0, 2.0], "absent/a1": [0.0], "retries/a1": [1.0]}


def test_nothing_is_replaced_unasked() -> None:
    data, asked = played(REWARDS)
    batch = data.play_until_different(data.train_tasks[:1], data.train_tasks[1:], seed=5)
    assert len(asked) == 1
    assert batch.joint_samples == 2


def test_trees_are_not_replaced() -> None:
    with pytest.raises(ConfigurationError, match="Tree with data.num_generations 2 does not play groups"):
        RolloutDataModule(Toy(), sampler=Tree(), num_generations=2, replace_equal_groups=1)
