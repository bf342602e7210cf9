from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from collm.errors import ConfigurationError, TrainingError
from collm.studies import study as module
from collm.studies.study import Method, study

# Stands in for the training command: notes its arguments, leaves a checkpoint, and fails the first time if told to.
SCRIPT = """
import json, sys
from pathlib import Path
args = sys.argv[1:]
logger = json.loads(args[args.index("--trainer.logger") + 1])["init_args"]
folder = Path(logger["save_dir"], logger["name"], logger["version"])
first = not (folder / "calls.jsonl").exists()
with (folder / "calls.jsonl").open("a") as file:
    file.write(json.dumps(args) + "\\n")
(folder / "checkpoints").mkdir(exist_ok=True)
(folder / "checkpoints" / "last.ckpt").touch()
print("epoch 1\\repoch 2")
told = Path(args[args.index("--config") + 1]).read_text()
if first and "once" in told:
    sys.exit("fail" in told)
(folder / "finished.json").touch()
"""


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was handed to the comparison."""
    calls: list[Any] = []
    monkeypatch.setattr(module, "compare", lambda entries, out, **kwargs: calls.append((entries, out, kwargs)))
    return calls


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """Arguments of a study of two methods by two seeds."""
    (tmp_path / "fit.py").write_text(SCRIPT)
    for name in ("base", "dc"):
        (tmp_path / f"{name}.yaml").write_text(f"name: {name}\n")
    return {
        "configs": [str(tmp_path / "base.yaml")],
        "methods": {
            "CC": Method(),
            "DC (own critics)": Method([str(tmp_path / "dc.yaml")], {"data": {"num_generations": 4}}),
        },
        "untrained": {"Pipeline": Method([], {"data": {"eval_sampler": "Pipeline"}})},
        "out": str(tmp_path / "study"),
        "seeds": (3, 5),
        "jobs": 2,
        "script": str(tmp_path / "fit.py"),
    }


def calls(folder: Path) -> list[list[str]]:
    return [json.loads(line) for line in (folder / "calls.jsonl").read_text().splitlines()]


def values(args: list[str], name: str) -> list[str]:
    return [value for key, value in zip(args, args[1:], strict=False) if key == name]


def test_every_method_with_every_seed(settings: dict[str, Any], tmp_path: Path, compared: list[Any]) -> None:
    study(**settings, overrides={"trainer": {"max_epochs": 1}}, comparison={"episodes_per_task": 2})
    out = tmp_path / "study"
    ((args,),) = [calls(out / "DC_own_critics" / "seed_5")]
    assert args[0] == "fit"
    assert values(args, "--seed_everything") == ["5"]
    assert values(args, "--trainer.callbacks+") == ["collm.callbacks.finished.MarkFinished"]
    base, shared, own, overrides = values(args, "--config")
    assert [Path(path).name for path in (base, own)] == ["base.yaml", "dc.yaml"]
    assert yaml.safe_load(Path(shared).read_text()) == {"trainer": {"max_epochs": 1}}
    assert yaml.safe_load(Path(overrides).read_text()) == {"data": {"num_generations": 4}}
    assert "--ckpt_path" not in args
    ((entries, where, arguments),) = compared
    assert [entry.label for entry in entries] == ["CC"] * 2 + ["DC (own critics)"] * 2 + ["Pipeline"]
    assert entries[3].config == str(out / "DC_own_critics" / "seed_5" / "config.yaml")
    assert [entry.checkpoint for entry in entries] == ["last"] * 4 + [None]
    assert entries[4].config == [base, shared]
    assert entries[4].overrides == {"data": {"eval_sampler": "Pipeline"}}
    assert where == str(out / "comparison")
    assert arguments == {"episodes_per_task": 2, "default_config": None}


def test_finished_runs_are_skipped(settings: dict[str, Any], tmp_path: Path, compared: list[Any]) -> None:
    study(**settings)
    study(**settings | {"seeds": (3, 5, 7)})
    assert [len(calls(tmp_path / "study" / "CC" / f"seed_{seed}")) for seed in (3, 5, 7)] == [1, 1, 1]
    assert len(compared) == 2


def test_a_label_is_trained_or_untrained(settings: dict[str, Any], tmp_path: Path, compared: list[Any]) -> None:
    for label, named in (("CC", "'CC' is among methods and untrained"), ("DC own critics", "must differ in their")):
        with pytest.raises(ConfigurationError, match=named):
            study(**settings | {"untrained": {label: Method()}})
    assert not compared
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize("end", ["fail", "stop without an error"])
def test_unfinished_runs_resume_from_their_checkpoint(
    settings: dict[str, Any], tmp_path: Path, compared: list[Any], end: str
) -> None:
    (tmp_path / "base.yaml").write_text(f"{end}: once\n")
    with pytest.raises(TrainingError, match=r"4 of 4 runs did not finish.*DC_own_critics/seed_5/log.txt"):
        study(**settings)
    assert not compared
    study(**settings)
    folder = tmp_path / "study" / "CC" / "seed_3"
    first, second = calls(folder)
    assert values(first, "--ckpt_path") == []
    assert values(second, "--ckpt_path") == [str(folder / "checkpoints" / "last.ckpt")]
    assert len(compared) == 1


def test_runs_with_other_settings_are_refused(settings: dict[str, Any], tmp_path: Path, compared: list[Any]) -> None:
    study(**settings)
    (tmp_path / "dc.yaml").write_text("name: other\n")
    with pytest.raises(ConfigurationError, match="DC_own_critics/seed_3 contains a run with other settings"):
        study(**settings)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"jobs": 0}, "jobs is 0"),
        ({"seeds": ()}, "at least one method and one seed"),
        ({"configs": ["nowhere.yaml"]}, "'nowhere.yaml'"),
        ({"comparison": {"episodes": 3}}, "'episodes'.*episodes_per_task"),
        ({"methods": {"A B": Method(), "A-B": Method()}}, "A B, A-B must differ"),
    ],
)
def test_bad_input(settings: dict[str, Any], compared: list[Any], change: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        study(**settings | change)
    assert not compared


def test_last_line_of_a_run(settings: dict[str, Any], tmp_path: Path, compared: list[Any]) -> None:
    study(**settings)
    run = module.Run("CC", 3, tmp_path / "study" / "CC" / "seed_3", [])
    assert run.last_line() == "epoch 2"
    assert module.Run("CC", 9, tmp_path / "nowhere", []).last_line() == ""


def test_the_shipped_gradient_test(compared: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It parses, its files exist, and it trains 5 methods by 3 seeds on equal numbers of episodes."""
    monkeypatch.chdir(Path(__file__).parents[2])
    trained: list[Any] = []
    monkeypatch.setattr(module, "train", lambda runs, jobs, script: trained.extend(runs))
    args = ["study", "--config", "configs/studies/str_build_tiny.yaml", "--out", str(tmp_path / "study")]
    monkeypatch.setattr("sys.argv", args)
    assert module.main("tools/fit.py", "configs/base.yaml") == 0
    assert len(trained) == 18
    for run in trained:
        data: dict[str, Any] = {}
        for config in run.configs:
            data.update(yaml.safe_load(Path(config).read_text()).get("data", {}))
        assert data["tasks_per_rollout"] * data["num_generations"] == 64
    ((entries, _, _),) = compared
    assert len({entry.label for entry in entries}) == 10


def test_only_a_run_that_reached_its_end_is_finished(fit: Callable[..., int], run_folder: Path) -> None:
    mark = "--trainer.callbacks+=collm.callbacks.finished.MarkFinished"
    assert fit(mark, "--data.environment.bad_reward", "nan") == 1
    assert not (run_folder / "finished.json").exists()
    assert fit(mark) == 0
    record = json.loads((run_folder.with_name("version_1") / "finished.json").read_text())
    assert record == {"epochs": 2, "joint_samples": 8}
