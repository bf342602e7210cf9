"""The grid games under every command and with methods with and without critics, on a tiny random model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from collm import cli
from collm.models.tiny import GAME_WORDS, build_tiny
from collm.scoring.score import Scorer, configured_environment, score_lines
from collm.studies.comparison import Entry, compare
from toy import REPOSITORY

CONFIGS = REPOSITORY / "configs"
GAMES = ("resource_gathering", "bridge_build")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "games"
    build_tiny(folder, hidden_size=16, num_layers=1, num_heads=2, words=GAME_WORDS, numbers=16)
    return str(folder)


def small(game: str, model: str, algorithm: str) -> list[str]:
    """Arguments of a command, after writing a small configuration to the working folder."""
    environment = yaml.safe_load((CONFIGS / "environments" / f"{game}.yaml").read_text())["data"]["environment"]
    environment["init_args"] = {"num_maps": 4, "num_eval": 2, "prompt": "compact"}
    init: dict[str, Any] = {"policy": {"path": model, "max_new_tokens": 6}}
    if algorithm != "magrpo":
        init["critic"] = {"init_args": {"model": {"path": model}}}
    data = {"environment": environment, "tasks_per_rollout": 2, "rollouts_per_epoch": 2, "eval_episodes_per_task": 1}
    trainer = {"max_epochs": 1, "accelerator": "cpu", "enable_model_summary": False}
    Path("small.yaml").write_text(yaml.safe_dump({"model": {"init_args": init}, "data": data, "trainer": trainer}))
    return ["--config", str(CONFIGS / "algorithms" / f"{algorithm}.yaml"), "--config", "small.yaml"]


def scalars(folder: Path) -> dict[str, list[float]]:
    events = EventAccumulator(str(folder)).Reload()
    return {name: [event.value for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


@pytest.mark.parametrize("algorithm", ["collm_dc", "magrpo"])
@pytest.mark.parametrize("game", GAMES)
def test_a_game_is_trained_on(
    game: str, algorithm: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(CONFIGS / "base.yaml", ["fit", *small(game, model, algorithm)]) == 0
    curves = scalars(Path("logs") / "collm" / "version_0")
    losses = [name for name in curves if name.startswith("loss/")]
    assert len(losses) >= 2
    assert all(math.isfinite(value) for name in losses for value in curves[name])


@pytest.mark.parametrize("game", GAMES)
def test_a_game_is_validated_predicted_scored_and_compared(
    game: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = small(game, model, "collm_cc")
    assert cli.main(CONFIGS / "base.yaml", ["fit", *given]) == 0
    fitted, validated, predicted = (Path("logs") / "collm" / f"version_{index}" for index in range(3))
    checkpoint = f"--ckpt_path={fitted / 'checkpoints' / 'last.ckpt'}"
    assert cli.main(CONFIGS / "base.yaml", ["validate", *given, checkpoint]) == 0
    assert scalars(validated)["eval/return"] == [scalars(fitted)["eval/return"][-1]]
    assert scalars(validated)["eval/success"] == [0.0]

    assert cli.main(CONFIGS / "base.yaml", ["predict", *given, checkpoint]) == 0
    lines = (predicted / "predictions.jsonl").read_text().splitlines()
    scorer = Scorer(environment=configured_environment(predicted / "config.yaml"))
    again = list(score_lines(lines, scorer))
    scorer.sandbox.close()
    assert len(again) == 2
    for line, result in zip(lines, again, strict=True):
        played = json.loads(line)["turns"]
        assert len(played) == 4
        assert result["reward"] == pytest.approx(sum(turn["reward"] for turn in played))

    entries = [
        Entry("before", str(fitted / "config.yaml")),
        Entry("after", str(fitted / "config.yaml"), "last"),
    ]
    compare(entries, "compared", 1, timed_episodes=0, figures=False, default_config=str(CONFIGS / "base.yaml"))
    rows = json.loads(Path("compared/table.json").read_text())["table"]
    assert [row["label"] for row in rows] == ["before", "after"]
    assert {"return", "success", "useful_messages"} <= set(rows[0]["cells"])
