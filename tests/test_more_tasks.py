"""Tasks beyond the paper's, each through the command line: two updates of three methods, and every other command."""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from collm import cli
from collm.models.tiny import build_tiny
from collm.studies.comparison import Entry, compare
from toy import REPOSITORY

CONFIGS = REPOSITORY / "configs"
BASE = CONFIGS / "base.yaml"
SHORT: dict[str, dict[str, Any]] = {
    "reward_function": {"num_eval": 2},
    "function_calling": {"num_eval": 2, "num_agents": 3},
    "class_eval": {"horizon": 2},
    "reasoning_gym": {"num_train": 4, "num_eval": 2},
    "pettingzoo": {"num_eval": 2},
}
TURNS = {"class_eval": 2, "reasoning_gym": 2, "pettingzoo": 2}
NEEDED = {"reasoning_gym": "reasoning_gym"}
METHODS = {"collm_cc": (), "collm_dc": (), "magrpo": ("--data.num_generations=2",)}
# Played under every command elsewhere, or the same class for a single agent; another file in the folder is played here.
ELSEWHERE = {
    *("tldr", "arxiv", "coop_humaneval", "str_build", "house_build"),  # tests/test_tasks.py
    *("tldr_single", "arxiv_single", "humaneval", "str_build_single", "house_build_single"),
    *("resource_gathering", "bridge_build"),  # tests/environments/games/test_games_run.py
    *("matrix_game", "relay", "workload"),
}
NAMES = sorted({path.stem for path in (CONFIGS / "environments").glob("*.yaml")} - ELSEWHERE)


def available() -> list[Any]:
    skip = pytest.mark.skipif
    return [
        pytest.param(name, marks=[skip(not find_spec(NEEDED[name]), reason="missing")] if name in NEEDED else [])
        for name in NAMES
    ]


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random weights that read long prompts byte by byte."""
    folder = tmp_path_factory.mktemp("models") / "reader"
    build_tiny(folder, hidden_size=32, num_layers=1, num_heads=2, context=8192)
    return str(folder)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def settings(name: str, reader: str, method: str) -> list[str]:
    """The arguments of a short run."""
    found = yaml.safe_load((CONFIGS / "environments" / f"{name}.yaml").read_text())["data"]["environment"]
    found["init_args"] = found.get("init_args", {}) | SHORT.get(name, {})
    model: dict[str, Any] = {"policy": {"path": reader, "max_new_tokens": 6}}
    if method != "magrpo":
        model["critic"] = {"init_args": {"model": {"path": reader}}}
    small = {
        "model": {"init_args": model},
        "data": {"environment": found, "tasks_per_rollout": 2, "rollouts_per_epoch": 2, "eval_episodes_per_task": 1},
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_model_summary": False},
    }
    Path("small.yaml").write_text(yaml.safe_dump(small))
    algorithm = str(CONFIGS / "algorithms" / f"{method}.yaml")
    return ["--config", algorithm, "--config", "small.yaml", *METHODS[method]]


def scalars(folder: Path) -> dict[str, list[float]]:
    events = EventAccumulator(str(folder)).Reload()
    return {name: [event.value for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", available())
def test_a_task_is_trained_on_and_evaluated_again(name: str, method: str, reader: str) -> None:
    given = settings(name, reader, method)
    assert cli.main(BASE, ["fit", *given]) == 0
    fitted, validated, predicted = (Path("logs") / "collm" / f"version_{index}" for index in range(3))
    curves = scalars(fitted)
    episodes, turns = 2 * (2 if method == "magrpo" else 1), TURNS.get(name, 1)
    assert curves["rollout/joint_samples"] == [episodes * turns, 2 * episodes * turns]
    losses = [values for loss, values in curves.items() if loss.startswith("loss/")]
    assert len(losses) >= 2
    assert all(math.isfinite(value) for values in losses for value in values)
    if method != "collm_cc":
        return  # the other commands do not depend on the method
    checkpoint = f"--ckpt_path={fitted / 'checkpoints' / 'last.ckpt'}"
    assert cli.main(BASE, ["validate", *given, checkpoint]) == 0
    assert scalars(validated)["eval/return"] == [curves["eval/return"][-1]]
    assert cli.main(BASE, ["predict", *given, checkpoint]) == 0
    lines = (predicted / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == 2
    assert all(len(json.loads(line)["turns"]) == turns for line in lines)


@pytest.mark.parametrize("name", available())
def test_untrained_protocols_are_compared(name: str, reader: str) -> None:
    settings(name, reader, "collm_cc")
    config = [str(CONFIGS / "algorithms" / "collm_cc.yaml"), "small.yaml"]
    pipeline = str(CONFIGS / "samplers" / "pipeline.yaml")
    entries = [Entry("Parallel", config), Entry("Pipeline", [*config, pipeline])]
    compare(entries, "out", episodes_per_task=1, timed_episodes=0, figures=False, default_config=str(BASE))
    rows = json.loads(Path("out/table.json").read_text())["table"]
    assert [row["label"] for row in rows] == ["Parallel", "Pipeline"]
    assert all(math.isfinite(row["cells"]["return"][0]) for row in rows)
