"""What the README shows works as it stands there."""

from __future__ import annotations

import importlib
import json
import os
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from collm import cli
from collm.environments.reward_function import RewardFunctionTask

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text()
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", README, re.DOTALL)

IMPORTS = """
from collm.algorithms.base import MultiAgentModule
from collm.environments.base import Environment, Step
from collm.returns import discounted_returns
from collm.trajectory import Task
"""


def section(heading: str) -> str:
    """The one fenced block under `heading`."""
    body = README.split(f"## {heading}\n")[1].split("\n## ")[0]
    (block,) = re.findall(r"```bash\n(.*?)```", body, re.DOTALL)
    return block.strip()


def test_the_command_under_test_it_runs_all_tests():
    assert section("Test it").endswith("-m pytest -n auto --dist loadfile")


STEPS = [
    "venv .venv",
    "pip",
    "ruff check",
    "ruff format",
    "mypy",
    "venv .venv-oldest",
    "constraints",
    "pytest",
    "README",
]
TOOL = """#!/usr/bin/env bash
echo "$(basename "$0") $*" >> "$LOG"
case "$(basename "$0") $*" in *"$FAILS"*) exit 1 ;; esac
if [ "$2" = venv ]; then
    mkdir -p "$3/bin"
    for name in python pip ruff mypy; do cp "$0" "$3/bin/$name"; done
fi
"""


def ci(folder: Path, monkeypatch: pytest.MonkeyPatch, fails: str, readme: str) -> tuple[int, list[str]]:
    """Status of .ci/run where each program only notes its arguments, and those notes; what contains `fails` fails."""
    (folder / ".ci").mkdir()
    (folder / ".ci" / "run").write_text((REPOSITORY / ".ci" / "run").read_text())
    (folder / "README.md").write_text(f"## Test it\n\n```bash\n{readme}\n```\n\n```bash\nfalse\n```\n")
    (folder / "python3").write_text(TOOL)
    (folder / "python3").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.setenv("LOG", str(folder / "log"))
    monkeypatch.setenv("FAILS", fails)
    done = subprocess.run(["bash", str(folder / ".ci" / "run")], cwd="/", capture_output=True, text=True, timeout=60)
    return done.returncode, (folder / "log").read_text().splitlines()


def test_ci_ends_with_the_command_under_test_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    status, calls = ci(tmp_path, monkeypatch, "nothing fails", 'echo "README $PWD" >> "$LOG"')
    assert status == 0
    assert calls == [
        "python3 -m venv .venv",
        "pip install -q -e .[dev,docs]",
        "ruff check src tests tools",
        "ruff format --check src tests tools",
        "mypy ",
        "python3 -m venv .venv-oldest",
        "pip install -q -e .[dev] -c constraints/oldest.txt",
        "python -m pytest tests/models tests/algorithms tests/studies/test_claims.py tests/studies/test_comparison.py "
        "tests/studies/test_statistics.py tests/studies/test_study_claims.py -n auto --dist loadfile",
        f"README {tmp_path}",
    ]


@pytest.mark.parametrize("step", STEPS)
def test_ci_fails_with_each_of_its_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str):
    status, calls = ci(tmp_path, monkeypatch, step, 'false | cat; echo "README" >> "$LOG"')
    assert status == 1
    assert step == "README" or step in calls[-1]  # nothing came after it
    assert len(calls) == len(STEPS) - 1 or step != "README"


def test_the_changelog_names_classes_that_are_there_and_none_that_were_moved():
    rows = re.findall(r"^ +\| (`collm[^|]*) \| (`collm[^|]*) \|$", (REPOSITORY / "CHANGELOG.md").read_text(), re.M)
    assert len(rows) > 10
    for before, now in rows:
        assert not exists(before.strip("`"))
        for path in re.findall(r"collm[\w.]+", now):
            assert exists(path), path


def exists(class_path: str) -> bool:
    module, _, name = class_path.rpartition(".")
    try:
        return hasattr(importlib.import_module(module), name)
    except ModuleNotFoundError:
        return False


def test_files_and_classes_named_for_contributors_exist():
    text = (REPOSITORY / "CONTRIBUTING.md").read_text()
    paths = re.findall(r"(?:src/collm|configs|tests|tools|\.ci)/[\w./]*\w", text)
    assert len(paths) > 15
    assert [path for path in paths if not (REPOSITORY / path).exists()] == []
    bases = re.findall(r"`(\w+)` \(`(\w+)/(\w+)\.py`\)", text)
    assert len(bases) == 4
    assert all(exists(f"collm.{room}.{file}.{name}") for name, room, file in bases)


def test_the_two_commands_stand_on_one_line_each():
    assert len(section("Run it").splitlines()) == len(section("Test it").splitlines()) == 1
    assert "tools/fit.py fit --config configs/experiments/str_build_tiny.yaml" in section("Run it")


def commands() -> list[list[str]]:
    """Every call of tools/fit.py in the README that trains."""
    lines = "\n".join(code for language, code in BLOCKS if language == "bash").replace("\\\n", " ").splitlines()
    calls = [shlex.split(line, comments=True) for line in lines if "tools/fit.py fit" in line]
    return [call[call.index("tools/fit.py") + 1 :] for call in calls if "--help" not in call]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_configurations_named_in_commands_exist(command: list[str]):
    files = [value for flag, value in zip(command, command[1:], strict=False) if flag == "--config"]
    assert files
    missing = [name for name in files if not name.startswith("logs/") and not (REPOSITORY / name).is_file()]
    assert not missing


def test_the_readme_is_one_short_page_without_commits_daggers_and_intervals():
    assert len(README.encode()) <= 9_000
    assert len(README.splitlines()) <= 150
    assert re.findall(r"[†‡]|\b(?=\w*\d)[0-9a-f]{7,40}\b|\[[-−]?\d[\d.]*, [-−]?\d", README) == []


def test_linked_files_exist():
    links = re.findall(r"\]\(((?:src|docs|configs|results)/[^)]*)\)", README)
    assert links
    assert [link for link in links if not (REPOSITORY / link).exists()] == []


def test_the_command_of_the_environment_trains_as_it_stands(tmp_path, monkeypatch):
    """With the example in mypackage/echo.py of the current folder; fewer and shorter rollouts are all that is added."""
    (code,) = [code for language, code in BLOCKS if language == "python" and "(Environment)" in code]
    (line,) = [line for _, code in BLOCKS for line in code.splitlines() if "mypackage.echo.Echo" in line]
    (tmp_path / "mypackage").mkdir()
    (tmp_path / "mypackage" / "echo.py").write_text(IMPORTS + code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    words = [str(REPOSITORY / word) if word.startswith("configs/") else word for word in shlex.split(line)]
    short = ["--trainer.max_epochs=1", "--data.rollouts_per_epoch=1", "--model.policy.max_new_tokens=4"]
    assert cli.main(REPOSITORY / "configs" / "base.yaml", [*words[words.index("fit") :], *short]) == 0
    assert (tmp_path / "logs" / "collm" / "version_0" / "replay.html").is_file()
    for name in ("mypackage.echo", "mypackage"):
        sys.modules.pop(name, None)


def test_the_reward_function_pays_as_it_says(tmp_path, monkeypatch):
    """Three words, one of them the answer: 1 - 3 / 50."""
    (code,) = [code for language, code in BLOCKS if language == "python" and code.startswith("def ")]
    (settings,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    (tmp_path / "my_rewards.py").write_text(code)
    rows = [{"question": f"What do {who} make?", "answer": what} for who, what in (("bees", "Honey"), ("hens", "Eggs"))]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    own = yaml.safe_load(settings)["data"]["environment"]
    assert own["class_path"] == f"{RewardFunctionTask.__module__}.{RewardFunctionTask.__name__}"
    environment = RewardFunctionTask(**own["init_args"])
    (task,) = environment.tasks("train")
    state, observations = environment.reset(task, random.Random(0))
    assert observations["sceptic"] == "What would others overlook? What do bees make?"
    assert environment.step(state, {"scholar": "Honey", "sceptic": "and wax"}).reward == pytest.approx(1 - 3 / 50)
    sys.modules.pop("my_rewards", None)


def test_the_two_additions_train(tmp_path, monkeypatch, tiny_folder):
    """The environment and the algorithm under "Add your own", together in one run."""
    classes = [code for language, code in BLOCKS if language == "python" and code.lstrip().startswith("class ")]
    assert len(classes) == 2
    (tmp_path / "mypackage").mkdir()
    (tmp_path / "mypackage" / "__init__.py").touch()
    (tmp_path / "mypackage" / "echo.py").write_text(IMPORTS + "\n\n".join(classes))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    names = [re.match(r"\s*class (\w+)", code).group(1) for code in classes]
    environment, algorithm = (f"mypackage.echo.{name}" for name in names)
    status = cli.main(
        REPOSITORY / "configs" / "base.yaml",
        [
            "fit",
            f"--model={algorithm}",
            f"--model.policy.path={tiny_folder}",
            "--model.policy.max_new_tokens=4",
            f"--data.environment={environment}",
            "--data.environment.words=[hello, red, blue]",
            "--data.rollouts_per_epoch=1",
            "--data.tasks_per_rollout=2",
            "--trainer.max_epochs=1",
            "--trainer.accelerator=cpu",
        ],
    )
    assert status == 0
    assert (tmp_path / "logs" / "collm" / "version_0" / "agents" / "a" / "config.json").is_file()
    for name in ("mypackage.echo", "mypackage"):
        sys.modules.pop(name, None)
