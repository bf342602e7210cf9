"""Studies of claims: cells, tuning, a rule that stands before the runs, and a miniature from tuning to the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_study import SCRIPT, calls, values
from torch.utils.tensorboard import SummaryWriter

from collm.errors import ConfigurationError
from collm.studies import study as module
from collm.studies.claims import Claim, Rule
from collm.studies.launch import Cell, Method
from collm.studies.outcomes import Outcome
from collm.studies.report import report
from collm.studies.study import Tuning, deep_merged, study
from toy import REPOSITORY

RATES = [{"model": {"rate": 1}}, {"model": {"rate": 2}}]
UNFAIR = {"A": Method(candidates=RATES), "B": Method(candidates=RATES[:1])}
RULE = Rule(claims=[Claim("A beats B", "long game", "A", "B")])


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """Two methods with two candidates each, in two cells."""
    (tmp_path / "fit.py").write_text(SCRIPT)
    (tmp_path / "base.yaml").write_text("name: base\n")
    return {
        "configs": [str(tmp_path / "base.yaml")],
        "cells": {"long game": Cell(overrides={"data": {"horizon": 9}}), "short game": Cell()},
        "methods": {
            "A": Method(candidates=RATES),
            "B": Method(overrides={"model": {"rate": 0, "clip": 3}}, candidates=RATES),
        },
        "seeds": (10, 11),
        "seeded": ["data.environment.mapping"],
        "rule": RULE,
        "tuning": Tuning(seeds=(0,), cells=["long game"]),
        "out": str(tmp_path / "study"),
        "script": str(tmp_path / "fit.py"),
    }


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outcomes by label: A is best with its second candidate, B with its first."""
    heights = {"A 0": 0.2, "A 1": 0.6, "B 0": 0.5, "B 1": 0.3}

    def read(folder: Path, cell: str, method: str, seed: int, metric: str) -> Outcome:
        return Outcome(cell, method, seed, [10.0, 20.0], [1.0, 2.0], [heights[method]] * 2)

    monkeypatch.setattr(module, "read_outcome", read)


def stack(folder: Path) -> dict[str, Any]:
    """All settings of the run in `folder`, as configurations that are stacked."""
    merged: dict[str, Any] = {}
    for path in values(calls(folder)[0], "--config"):
        merged = deep_merged(merged, yaml.safe_load(Path(path).read_text()))
    return merged


def test_from_tuning_to_evaluation(settings: dict[str, Any], tmp_path: Path, scored: None) -> None:
    out = tmp_path / "study"
    with pytest.raises(ConfigurationError, match="tune first"):
        study(**settings)
    study(**settings, stage="tune")
    tried = out / "tuning" / "long_game"
    assert {path.name for path in tried.iterdir()} == {"A_0", "A_1", "B_0", "B_1"}
    assert not (out / "tuning" / "short_game").exists()
    assert stack(tried / "B_1" / "seed_0") == {
        "name": "base",
        "data": {"horizon": 9, "environment": {"mapping": 0}},
        "model": {"rate": 2, "clip": 3},
    }
    assert {label: found["chosen"] for label, found in yaml.safe_load((out / "tuned.yaml").read_text()).items()} == {
        "A": 1,
        "B": 0,
    }
    study(**settings)
    assert stack(out / "long_game" / "A" / "seed_11") == {
        "name": "base",
        "data": {"horizon": 9, "environment": {"mapping": 11}},
        "model": {"rate": 2},
    }
    assert stack(out / "short_game" / "B" / "seed_10")["model"] == {"rate": 1, "clip": 3}
    frozen = json.loads((out / "study.json").read_text())
    assert frozen["rule"]["claims"][0]["text"] == "A beats B"
    assert frozen["methods"]["A"]["overrides"] == {"model": {"rate": 2}}


def test_the_rule_stands_once_the_evaluation_has_begun(settings: dict[str, Any], tmp_path: Path, scored: None) -> None:
    study(**settings, stage="tune")
    study(**settings)
    began = json.loads((tmp_path / "study" / "study.json").read_text())["began"]
    study(**settings | {"seeds": (10, 11, 12)})  # more seeds are welcome
    assert json.loads((tmp_path / "study" / "study.json").read_text())["began"] == began
    easier = Rule(threshold=0.5, claims=RULE.claims)
    with pytest.raises(ConfigurationError, match="the rule of the study changed after its evaluation began"):
        study(**settings | {"rule": easier})
    (tmp_path / "study" / "tuned.yaml").write_text(
        (tmp_path / "study" / "tuned.yaml").read_text().replace("chosen: 1", "chosen: 0")
    )
    with pytest.raises(ConfigurationError, match="A/seed_10 holds a run with other settings"):
        study(**settings)


def test_parts_are_done_by_different_commands(settings: dict[str, Any], tmp_path: Path) -> None:
    plain = {label: Method() for label in ("A", "B")}
    folders = [
        tmp_path / "study" / cell / label / f"seed_{seed}"
        for seed in (10, 11)
        for cell in ("long_game", "short_game")
        for label in ("A", "B")
    ]
    study(**settings | {"methods": plain}, part="1/3")
    assert [folder.is_dir() for folder in folders] == [False, True, False, False, True, False, False, True]
    with pytest.raises(ConfigurationError, match="part is '3/3'"):
        study(**settings | {"methods": plain}, part="3/3")


def test_a_cell_may_train_some_methods_only(settings: dict[str, Any], tmp_path: Path, scored: None) -> None:
    settings["cells"]["short game"] = Cell(methods=["B"])
    settings["tuning"] = Tuning(seeds=(0,), cells=["long game", "short game"])
    study(**settings, stage="tune")
    study(**settings)
    out = tmp_path / "study"
    assert (out / "short_game" / "B" / "seed_10").is_dir()
    assert (out / "long_game" / "A" / "seed_10").is_dir()
    assert not (out / "short_game" / "A").exists()
    with pytest.raises(ConfigurationError, match="speaks of 'A', but there are B"):
        study(**settings | {"rule": Rule(claims=[Claim("A beats B", "short game", "A", "B")])})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seeds": (0, 1)}, r"seeds \[0\] were for tuning"),
        (
            {"methods": {"A": Method(candidates=RATES), "B": Method(candidates=RATES[:1])}, "stage": "tune"},
            "equally many",
        ),
        ({"tuning": None, "stage": "tune"}, "nothing to tune"),
        ({"tuning": Tuning(cells=["other"]), "stage": "tune"}, "'other', but there are long game"),
        ({"rule": Rule(claims=[Claim("?", "other", "A", "B")])}, "speaks of 'other'"),
        ({"untrained": {"C": Method()}}, "without cells"),
        ({"cells": {"long game": Cell(methods=["A", "C"])}}, "'long game' names 'C', but there are A, B"),
        ({"cells": {"long game": Cell(methods=["A"])}, "stage": "tune", "rule": None}, "'B' is trained in none"),
    ],
)
def test_bad_input(settings: dict[str, Any], change: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        study(**settings | change)


@pytest.mark.parametrize(
    ("name", "num_runs", "num_episodes"),
    [
        ("relay", 11, {16}),
        ("relay_settings", 24, {8, 16}),
        ("relay_ablations", 7, {16}),
        ("str_build_horizons", 14, {32}),
        ("house_build_horizons", 14, {32}),
        ("str_build_ablations", 4, {32}),
    ],
)
def test_studies_that_ship(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, num_runs: int, num_episodes: set[int]
) -> None:
    """They parse, their files exist, and all methods of a cell play the same number of episodes in a rollout."""
    monkeypatch.chdir(REPOSITORY)
    trained: list[Any] = []
    monkeypatch.setattr(module, "train", lambda runs, jobs, script: trained.extend(runs))
    path = f"configs/studies/{name}.yaml"
    methods = yaml.safe_load(Path(path).read_text())["methods"]
    chosen = {
        label: {"chosen": 0, "candidates": method["candidates"]}
        for label, method in methods.items()
        if "candidates" in method
    }
    (tmp_path / "tuned.yaml").write_text(yaml.safe_dump(chosen))
    monkeypatch.setattr("sys.argv", ["study", "--config", path, "--out", str(tmp_path), "--seeds", "[7]"])
    assert module.main("tools/fit.py", "configs/base.yaml") == 0
    assert len(trained) == num_runs
    episodes: dict[str, set[int]] = {}
    for run in trained:
        merged: dict[str, Any] = {}
        for config in run.configs:
            merged = deep_merged(merged, yaml.safe_load(Path(config).read_text()))
        data = merged["data"]
        episodes.setdefault(run.folder.parts[-3], set()).add(
            data.get("tasks_per_rollout", 16) * data.get("num_generations", 1)
        )
        assert data["environment"]["init_args"].get("mapping", 7) == 7
    assert set.union(*episodes.values()) == num_episodes
    assert all(len(numbers) == 1 for numbers in episodes.values())


@pytest.mark.slow
def test_a_miniature_from_runs_to_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(REPOSITORY)
    game, rate = {"horizon": 2, "reward": "dense"}, {"model": {"init_args": {"policy": {"learning_rate": 1e-3}}}}
    settings = {
        "configs": ["configs/environments/relay.yaml", "configs/models/relay.yaml"],
        "out": str(tmp_path / "study"),
        "seeds": [5, 6],
        "seeded": ["data.environment.init_args.mapping"],
        "overrides": {
            "data": {"tasks_per_rollout": 2, "num_generations": 2, "rollouts_per_epoch": 3},
            "trainer": {
                **{"max_epochs": 1, "limit_val_batches": 0, "accelerator": "cpu"},
                **{"enable_progress_bar": False, "enable_checkpointing": False},
                "callbacks": [{"class_path": "collm.callbacks.resources.LogResources"}],
            },
        },
        "cells": {"T=2 dense": {"overrides": {"data": {"environment": {"init_args": game}}}}},
        "methods": {
            "MAGRPO": {"configs": ["configs/algorithms/magrpo.yaml"], "candidates": [rate]},
            "known values": {"configs": ["configs/algorithms/oracle.yaml"], "candidates": [rate]},
        },
        "tuning": {"seeds": [4]},
        "rule": {
            **{"metric": "rollout/success", "window": 2, "threshold": 2.0, "min_runs": 2},
            "claims": [
                {
                    **{"text": "alike", "cell": "T=2 dense", "method": "MAGRPO", "versus": "known values"},
                    **{"expect": "equal", "margin": 2.0},
                }
            ],
        },
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(settings))
    command = ["study", "--config", str(tmp_path / "study.yaml"), "--jobs", "2"]
    monkeypatch.setattr("sys.argv", [*command, "--stage", "tune"])
    assert module.main(REPOSITORY / "tools" / "fit.py", REPOSITORY / "configs" / "base.yaml") == 0
    assert set(yaml.safe_load((tmp_path / "study" / "tuned.yaml").read_text())) == {"MAGRPO", "known values"}
    monkeypatch.setattr("sys.argv", command)
    assert module.main(REPOSITORY / "tools" / "fit.py", REPOSITORY / "configs" / "base.yaml") == 0
    assert "0 of 4 runs are finished" in capsys.readouterr().out
    report(study=str(tmp_path / "study"), out=str(tmp_path / "page"))
    text = (tmp_path / "page" / "README.md").read_text()
    assert "| alike | T=2 dense, auc | **supported** |" in text  # no two success rates differ by 2
    assert "Up to 24 joint samples" in text
    assert text.count("0 of 2") == 2
    raw = json.loads((tmp_path / "page" / "outcomes.json").read_text())
    assert [(one["method"], one["seed"]) for one in raw["outcomes"]] == [
        *(("MAGRPO", 5), ("MAGRPO", 6), ("known values", 5), ("known values", 6))
    ]
    assert all(len(one["values"]) == 3 for one in raw["outcomes"])
    events = next((tmp_path / "study" / "T_2_dense" / "MAGRPO" / "seed_5").glob("events*"))
    events.unlink()
    writer = SummaryWriter(str(events.parent))
    writer.add_scalar("rollout/success", 0.5, 8)
    writer.close()
    with pytest.raises(ConfigurationError, match="does not say how long its updates took"):
        report(study=str(tmp_path / "study"), out=str(tmp_path / "page"))
