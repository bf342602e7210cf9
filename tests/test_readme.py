"""What the README shows works as it stands there."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from collm import cli

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text()
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", README, re.DOTALL)

IMPORTS = """
from collm.algorithms.base import MultiAgentModule
from collm.environments.base import Environment, Step
from collm.returns import discounted_returns
from collm.samplers.base import Sampler
from collm.trajectory import Task
"""


def section(heading: str) -> str:
    """The one fenced block under `heading`."""
    body = README.split(f"## {heading}\n")[1].split("\n## ")[0]
    (block,) = re.findall(r"```bash\n(.*?)```", body, re.DOTALL)
    return block.strip()


def test_ci_runs_the_command_under_test_it():
    assert section("Test it").endswith("-m pytest -n auto --dist loadfile")
    assert "/^## Test it/" in (REPOSITORY / ".ci" / "run").read_text()


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


def test_linked_files_exist():
    links = re.findall(r"\]\(((?:src|docs|configs|results)/[^)]*)\)", README)
    assert links
    assert [link for link in links if not (REPOSITORY / link).exists()] == []


def test_the_three_additions_train(tmp_path, monkeypatch, tiny_folder):
    """The environment, the algorithm and the sampler under "Add your own", together in one run."""
    classes = [code for language, code in BLOCKS if language == "python" and code.lstrip().startswith("class ")]
    assert len(classes) == 3
    (tmp_path / "mypackage").mkdir()
    (tmp_path / "mypackage" / "__init__.py").touch()
    (tmp_path / "mypackage" / "echo.py").write_text(IMPORTS + "\n\n".join(classes))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    names = [re.match(r"\s*class (\w+)", code).group(1) for code in classes]
    environment, algorithm, sampler = (f"mypackage.echo.{name}" for name in names)
    status = cli.main(
        REPOSITORY / "configs" / "base.yaml",
        [
            "fit",
            f"--model={algorithm}",
            f"--model.policy.path={tiny_folder}",
            "--model.policy.max_new_tokens=4",
            f"--data.environment={environment}",
            "--data.environment.words=[hello, red, blue]",
            f"--data.sampler={sampler}",
            "--data.rollouts_per_epoch=1",
            "--data.tasks_per_rollout=2",
            "--trainer.max_epochs=1",
            "--trainer.accelerator=cpu",
        ],
    )
    assert status == 0
    assert (tmp_path / "logs" / "collm" / "version_0" / "agents" / "a" / "config.json").is_file()
    sys.modules.pop("mypackage.echo", None)
