"""The commands of docs/deployment.md, one after the other: a run is served by processes, played with, and evaluated."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from collm import cli
from collm.serving.play import main as play
from collm.serving.processes import free_ports
from toy import REPOSITORY

BASE = REPOSITORY / "configs" / "base.yaml"
PAGE = (REPOSITORY / "docs" / "deployment.md").read_text().replace("\\\n", " ")


def documented(program: str, said: str) -> list[str]:
    """Arguments of the one command of the page that calls `program` and has `said` in it."""
    (line,) = [one for one in PAGE.splitlines() if one.startswith(f"python tools/{program}") and said in one]
    return shlex.split(line, comments=True)[2:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a short quickstart was run."""
    folder = tmp_path_factory.mktemp("quickstart")
    config = REPOSITORY / "configs" / "experiments" / "str_build_tiny.yaml"
    size = ["--data.rollouts_per_epoch=1", "--data.tasks_per_rollout=1", "--data.eval_episodes_per_task=1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        short = ["--trainer.max_epochs=1", "--model.policy.max_new_tokens=8"]
        assert cli.main(BASE, ["fit", "--config", str(config), *size, *short]) == 0
    return folder


@contextmanager
def served(arguments: Sequence[str], folder: Path) -> Iterator[None]:
    """Processes of `serve.py` with these arguments, once they are healthy."""
    command = [sys.executable, str(REPOSITORY / "tools" / "serve.py"), *arguments, "--patience", "200"]
    log = folder / "serve.log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, cwd=folder)
    try:
        deadline = time.monotonic() + 240
        while "stop with ^C" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.slow
def test_a_run_is_served_played_and_evaluated(folder: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(folder)
    (serve,) = [one for one in PAGE.splitlines() if "ends with ^C" in one]
    with served(shlex.split(serve, comments=True)[2:], folder):
        assert play(documented("play.py", "--episodes_per_task 8")) == 0
        assert re.search(r"\n48 episodes in .* s, return \d\.\d{3} \[", capsys.readouterr().out)
        assert cli.main(BASE, documented("fit.py", "predict")) == 0
    assert len((folder / "logs" / "play" / "transcripts.jsonl").read_text().splitlines()) == 48


@pytest.mark.slow
def test_one_agent_elsewhere_behind_a_key(folder: Path, monkeypatch, capsys) -> None:
    """As on two machines, with an address of this one in place of the other's."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TEAM_KEY", "0123456789abcdef0123456789abcdef")
    serve = documented("serve.py", "second.example.org")
    (port,) = free_ports("127.0.0.1", 1)
    for said, here in (("0.0.0.0", "127.0.0.1"), ("second.example.org", "127.0.0.1"), ("8002", str(port))):
        serve[serve.index(said)] = here
    with served([*serve, "--endpoints", "endpoints.yaml"], folder):
        assert play(documented("play.py", "--endpoints endpoints.yaml")) == 0
        assert "absent/builder_2: 0\n" in capsys.readouterr().out
        monkeypatch.setenv("TEAM_KEY", "another key that is long enough")
        assert play(documented("play.py", "--endpoints endpoints.yaml")) == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.slow
def test_the_same_agents_on_two_machines(folder: Path, monkeypatch, capsys) -> None:
    """The documented command and the one that it prints, with two addresses of this machine."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TEAM_KEY", "0123456789abcdef0123456789abcdef")
    serve = documented("serve.py", "--others")
    (port,) = free_ports("127.0.0.1", 1)
    for said, here in (("0.0.0.0", "127.0.0.1"), ("gpu1", "127.0.0.1"), ("[gpu2]", "[127.0.0.2]"), ("8000", str(port))):
        serve[serve.index(said)] = here
    with served([*serve, "--endpoints", "both.yaml"], folder):
        printed = (folder / "serve.log").read_text().splitlines()
        assert f"builder_1: http://127.0.0.1:{port}/v1, http://127.0.0.2:{port}/v1" in printed
        (line,) = [one for one in printed if one.startswith("    collm serve")]
        other = ["--host=127.0.0.2" if word == "--host=0.0.0.0" else word for word in shlex.split(line)[2:]]
        with served(other, folder):
            both = yaml.safe_load(Path("both.yaml").read_text())["model"]["init_args"]["policies"]
            assert [policy["endpoint"]["url"] for policy in both.values()] == [
                [f"http://127.0.0.{machine}:{number}/v1" for machine in (1, 2)] for number in (port, port + 1)
            ]
            for file in ("both.yaml", "endpoints.127.0.0.2.yaml"):
                assert play(documented("play.py", "--endpoints endpoints.yaml")[:-1] + [file]) == 0
                assert capsys.readouterr().out.count("absent/builder_2: 0\n") == 1
