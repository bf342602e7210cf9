"""Every task from its own configuration, through the command line: two updates of several methods, an evaluation,
transcripts and their scores, comparisons."""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from collm import cli
from collm.models.tiny import build_tiny
from collm.scoring.score import Scorer, configured_environment, score_lines
from collm.studies.comparison import Entry, compare
from curves import scalars
from toy import REPOSITORY

CONFIGS = REPOSITORY / "configs"
BASE = CONFIGS / "base.yaml"
# The number of turns, and what makes each task short: few held-out tasks, and for games the prompt for small models.
OF_THE_PAPER: dict[str, tuple[int, dict[str, Any]]] = {
    "tldr": (1, {"num_eval": 2}),
    "arxiv": (1, {"num_eval": 2}),
    "coop_humaneval": (2, {"num_eval": 2}),
    "str_build": (4, {"prompt": "compact", "words": ["I", "L"], "eval_words": ["T", "U"]}),
    "house_build": (4, {"prompt": "compact", "size": [4, 4, 4]}),
}
ON_A_GRID: dict[str, tuple[int, dict[str, Any]]] = {
    "resource_gathering": (4, {"num_maps": 4, "num_eval": 2, "prompt": "compact"}),
    "bridge_build": (4, {"num_maps": 4, "num_eval": 2, "prompt": "compact"}),
}
OTHERS: dict[str, tuple[int, dict[str, Any]]] = {
    "reward_function": (1, {"num_eval": 2}),
    "function_calling": (1, {"num_eval": 2, "num_agents": 3}),
    "class_eval": (2, {"horizon": 2}),
    "reasoning_gym": (2, {"num_train": 4, "num_eval": 2}),
    "pettingzoo": (2, {"num_eval": 2}),
}
# The same classes for one agent, and games with tests of their own; any other file in the folder is played here.
ELSEWHERE = {
    *("tldr_single", "arxiv_single", "humaneval", "str_build_single", "house_build_single"),
    *("matrix_game", "relay", "workload"),
}
FILES = {path.stem for path in (CONFIGS / "environments").glob("*.yaml")} - ELSEWHERE
OTHERS |= {name: (1, {}) for name in sorted(FILES - {*OF_THE_PAPER, *ON_A_GRID, *OTHERS})}
TASKS = OF_THE_PAPER | ON_A_GRID | OTHERS
NEEDED = {"reasoning_gym": "reasoning_gym"}
METHODS = {"collm_cc": (), "collm_dc": (), "magrpo": ("--data.num_generations=2",)}


def available(names: dict[str, Any]) -> list[Any]:
    skip = pytest.mark.skipif
    return [
        pytest.param(name, marks=[skip(not find_spec(NEEDED[name]), reason="missing")] if name in NEEDED else [])
        for name in names
    ]


@pytest.fixture(scope="module")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random weights that read long prompts byte by byte."""
    folder = tmp_path_factory.mktemp("models") / "small"
    build_tiny(folder, hidden_size=32, num_layers=1, num_heads=2, context=8192)
    return str(folder)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def settings(name: str, small_model: str, method: str) -> list[str]:
    """The arguments of a short run, whose configuration is written to `small.yaml`."""
    environment = yaml.safe_load((CONFIGS / "environments" / f"{name}.yaml").read_text())["data"]["environment"]
    environment["init_args"] = environment.get("init_args", {}) | TASKS[name][1]
    model: dict[str, Any] = {"policy": {"path": small_model, "max_new_tokens": 6}}
    if method != "magrpo":
        model["critic"] = {"init_args": {"model": {"path": small_model}}}
    data = {"environment": environment, "tasks_per_rollout": 2, "rollouts_per_epoch": 2, "eval_episodes_per_task": 1}
    trainer = {"max_epochs": 1, "accelerator": "cpu", "enable_model_summary": False}
    Path("small.yaml").write_text(yaml.safe_dump({"model": {"init_args": model}, "data": data, "trainer": trainer}))
    algorithm = str(CONFIGS / "algorithms" / f"{method}.yaml")
    return ["--config", algorithm, "--config", "small.yaml", *METHODS[method]]


def fitted(name: str, small_model: str, method: str) -> tuple[list[str], dict[str, list[float]]]:
    """The arguments of a run of two updates, and its curves."""
    given = settings(name, small_model, method)
    assert cli.main(BASE, ["fit", *given]) == 0
    folder = Path("logs") / "collm" / "version_0"
    curves = scalars(folder)
    played = 2 * (2 if method == "magrpo" else 1) * TASKS[name][0]
    assert curves["rollout/joint_samples"] == [played, 2 * played]
    losses = [f"loss/policy/{path.name}" for path in (folder / "agents").iterdir()]
    assert len(losses) >= 2
    losses += [loss for loss in curves if loss.startswith("loss/critic")]
    assert all(len(curves[loss]) == 2 and all(map(math.isfinite, curves[loss])) for loss in losses)
    return given, curves


@pytest.mark.parametrize("name", available(TASKS))
def test_a_task_is_trained_on_evaluated_and_scored_again(name: str, small_model: str) -> None:
    given, curves = fitted(name, small_model, "collm_cc")
    assert "loss/critic" in curves
    run, validated, predicted = (Path("logs") / "collm" / f"version_{index}" for index in range(3))
    checkpoint = f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}"
    assert cli.main(BASE, ["validate", *given, checkpoint]) == 0
    assert scalars(validated)["eval/return"] == [curves["eval/return"][-1]]

    assert cli.main(BASE, ["predict", *given, checkpoint]) == 0
    lines = (predicted / "predictions.jsonl").read_text().splitlines()
    scorer = Scorer(environment=configured_environment(predicted / "config.yaml"))
    again = list(score_lines(lines, scorer))
    scorer.sandbox.close()
    assert len(again) == 2
    for line, result in zip(lines, again, strict=True):
        played = json.loads(line)["turns"]
        assert len(played) == TASKS[name][0]
        assert result["reward"] == pytest.approx(sum(turn["reward"] for turn in played))
    if name in ON_A_GRID:
        entries = [Entry("before", str(run / "config.yaml")), Entry("after", str(run / "config.yaml"), "last")]
        assert {"return", "success", "useful_messages"} <= set(compared(entries)[0])


@pytest.mark.parametrize("method", ["collm_dc", "magrpo"])
@pytest.mark.parametrize("name", available(TASKS))
def test_a_task_is_trained_on_with_other_methods(name: str, method: str, small_model: str) -> None:
    fitted(name, small_model, method)


@pytest.mark.parametrize("name", available(OF_THE_PAPER | OTHERS))
def test_untrained_protocols_are_compared(name: str, small_model: str) -> None:
    settings(name, small_model, "collm_cc")
    config = [str(CONFIGS / "algorithms" / "collm_cc.yaml"), "small.yaml"]
    pipeline = str(CONFIGS / "samplers" / "pipeline.yaml")
    compared([Entry("Parallel", config), Entry("Pipeline", [*config, pipeline])])


def compared(entries: list[Entry]) -> list[dict[str, list[float]]]:
    """The cells of every row of a comparison."""
    compare(entries, "out", episodes_per_task=1, timed_episodes=0, figures=False, default_config=str(BASE))
    rows = json.loads(Path("out/table.json").read_text())["table"]
    assert [row["label"] for row in rows] == [entry.label for entry in entries]
    assert all(math.isfinite(row["cells"]["return"][0]) for row in rows)
    return [row["cells"] for row in rows]


def test_the_embedded_builder_of_houses_writes_commands_that_count() -> None:
    recipe = str(CONFIGS / "experiments" / "house_build_tiny.yaml")
    args = ["--data.eval_episodes_per_task=2", "--trainer.accelerator=cpu"]
    assert cli.main(BASE, ["validate", "--config", recipe, *args]) == 0
    curves = scalars(Path("logs") / "collm" / "version_0")
    assert curves["eval/rejected_rate"][0] < 0.2
    assert curves["eval/coverage"][0] > 0.2
    assert curves["eval/redundancy"][0] < 0.1
