"""Processes of served agents: started together, watched, and stopped together."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from collm.errors import TrainingError

_POLL_SECONDS = 0.2
_GRACE_SECONDS = 10.0
_DIRECT = build_opener(ProxyHandler({}))  # never through a proxy


@dataclass(frozen=True)
class Server:
    """One process that serves.

    Args:
        name: What messages and its log call it.
        command: Its command line.
        health: URL that answers with status 200 once it serves.
        environment: Variables beside those of this process.
    """

    name: str
    command: Sequence[str]
    health: str
    environment: Mapping[str, str]


def free_ports(host: str, number: int) -> list[int]:
    """Ports that nothing listens at now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket(_family(host))) for _ in range(number)]
        for one in sockets:
            one.bind((host, 0))
        return [one.getsockname()[1] for one in sockets]


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


@contextmanager
def serving(servers: Sequence[Server], logs: Path, patience: float) -> Iterator[dict[str, subprocess.Popen]]:
    """Run servers while the context lasts; it begins when all are healthy, and none is left when it ends.

    A server ends by itself too when this process is killed: its standard input is closed then.

    Args:
        servers: What to run.
        logs: Folder for what each prints, `<name>.log`.
        patience: Longest time until all are healthy, in seconds.

    Raises:
        TrainingError: One ended or did not become healthy in time.
    """
    logs.mkdir(parents=True, exist_ok=True)
    running: dict[str, subprocess.Popen] = {}
    try:
        for server in servers:
            with (logs / f"{server.name}.log").open("wb") as log:
                running[server.name] = subprocess.Popen(
                    server.command,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **server.environment},
                    start_new_session=True,  # ^C reaches this process only, which then stops them in order
                )
        deadline = time.monotonic() + patience
        for server in servers:
            while not _is_healthy(server.health):
                _check_alive(running, logs)
                if time.monotonic() > deadline:
                    raise TrainingError(f"{server.name} did not answer at {server.health} within {patience:g} seconds.")
                time.sleep(_POLL_SECONDS)
        yield running
    finally:
        stop(list(running.values()))


def wait_for_end(running: Mapping[str, subprocess.Popen], logs: Path, seconds: float | None = None) -> None:
    """Wait until a server ends, which is an error: they serve until they are stopped.

    Args:
        running: The servers.
        logs: Folder of what they print.
        seconds: Wait no longer than this.

    Raises:
        TrainingError: One ended.
    """
    deadline = math.inf if seconds is None else time.monotonic() + seconds
    while True:
        _check_alive(running, logs)
        if time.monotonic() >= deadline:
            return
        time.sleep(_POLL_SECONDS)


def stop(processes: Sequence[subprocess.Popen]) -> None:
    """End processes and all that they started: first politely, then by force."""
    for process in processes:
        _signal(process, signal.SIGTERM)
    deadline = time.monotonic() + _GRACE_SECONDS
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
    for process in processes:
        _signal(process, signal.SIGKILL)
        process.wait()
        if process.stdin:
            process.stdin.close()


def _signal(process: subprocess.Popen, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)  # of its own session


def _check_alive(running: Mapping[str, subprocess.Popen], logs: Path) -> None:
    for name, process in running.items():
        if process.poll() is not None:
            path = logs / f"{name}.log"
            last = path.read_text(errors="replace").strip().splitlines()[-3:]
            raise TrainingError(
                f"the server of {name} ended with status {process.returncode} ({path}): {' | '.join(last)}"
            )


def _is_healthy(url: str) -> bool:
    try:
        with _DIRECT.open(url, timeout=5) as answer:
            return answer.status == 200
    except (URLError, OSError):
        return False


def watched(command: Sequence[str]) -> list[str]:
    """The command that runs another one which does not watch its standard input, and ends it when that is closed."""
    return [sys.executable, "-m", "collm.serving.watch", *command]
