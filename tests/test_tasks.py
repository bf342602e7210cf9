"""The five tasks of the paper, each from its own configuration: two updates of CoLLM-CC, an evaluation, transcripts."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from collm import cli
from collm.models.tiny import build_tiny
from collm.scoring.score import Scorer, configured_environment, score_lines
from toy import REPOSITORY

CONFIGS = REPOSITORY / "configs"
# What makes each of them short: few held-out tasks, and for the games the prompt for small models.
TASKS = {
    "tldr": {"num_eval": 2},
    "arxiv": {"num_eval": 2},
    "coop_humaneval": {"num_eval": 2},
    "str_build": {"prompt": "compact", "words": ["I", "L"], "eval_words": ["T", "U"]},
    "house_build": {"prompt": "compact", "size": [4, 4, 4]},
}
TURNS = {"tldr": 1, "arxiv": 1, "coop_humaneval": 2, "str_build": 4, "house_build": 4}


@pytest.fixture(scope="module")
def tiny_policy(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random weights that read posts and abstracts byte by byte."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    build_tiny(folder, hidden_size=32, num_layers=1, num_heads=2, context=8192)
    return str(folder)


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_trained_on_evaluated_and_scored_again(
    name: str, tiny_policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    environment = yaml.safe_load((CONFIGS / "environments" / f"{name}.yaml").read_text())["data"]["environment"]
    environment["init_args"] = environment.get("init_args", {}) | TASKS[name]
    small = {
        "model": {
            "init_args": {
                "policy": {"path": tiny_policy, "max_new_tokens": 6},
                "critic": {"init_args": {"model": {"path": tiny_policy}}},
            }
        },
        "data": {
            "environment": environment,
            "tasks_per_rollout": 2,
            "rollouts_per_epoch": 2,
            "eval_episodes_per_task": 1,
        },
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_model_summary": False},
    }
    Path("small.yaml").write_text(yaml.safe_dump(small))
    given = ["--config", str(CONFIGS / "algorithms" / "collm_cc.yaml"), "--config", "small.yaml"]
    assert cli.main(CONFIGS / "base.yaml", ["fit", *given]) == 0
    fitted, validated, predicted = (Path("logs") / "collm" / f"version_{index}" for index in range(3))
    curves = scalars(fitted)
    turns = TURNS[name]
    assert curves["rollout/joint_samples"] == [2 * turns, 4 * turns]
    for loss in ("loss/critic", *(f"loss/policy/{path.name}" for path in (fitted / "agents").iterdir())):
        assert len(curves[loss]) == 2
        assert all(map(math.isfinite, curves[loss]))

    checkpoint = f"--ckpt_path={fitted / 'checkpoints' / 'last.ckpt'}"
    assert cli.main(CONFIGS / "base.yaml", ["validate", *given, checkpoint]) == 0
    assert scalars(validated)["eval/return"] == [curves["eval/return"][-1]]

    assert cli.main(CONFIGS / "base.yaml", ["predict", *given, checkpoint]) == 0
    lines = (predicted / "predictions.jsonl").read_text().splitlines()
    scorer = Scorer(environment=configured_environment(predicted / "config.yaml"))
    again = list(score_lines(lines, scorer))
    scorer.sandbox.close()
    assert len(again) == 2
    for line, result in zip(lines, again, strict=True):
        played = json.loads(line)["turns"]
        assert len(played) == turns
        assert result["reward"] == pytest.approx(sum(turn["reward"] for turn in played))


def test_the_embedded_builder_of_houses_writes_commands_that_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = str(CONFIGS / "experiments" / "house_build_tiny.yaml")
    args = ["--data.eval_episodes_per_task=2", "--trainer.accelerator=cpu"]
    assert cli.main(CONFIGS / "base.yaml", ["validate", "--config", recipe, *args]) == 0
    curves = scalars(Path("logs") / "collm" / "version_0")
    assert curves["eval/rejected_rate"][0] < 0.2
    assert curves["eval/coverage"][0] > 0.2
    assert curves["eval/redundancy"][0] < 0.1


def scalars(folder: Path) -> dict[str, list[float]]:
    events = EventAccumulator(str(folder)).Reload()
    return {name: [event.value for event in events.Scalars(name)] for name in events.Tags()["scalars"]}
