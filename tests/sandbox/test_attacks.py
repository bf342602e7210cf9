"""Every attack gets the verdict it deserves, the trainer lives, and nothing is left behind."""

from __future__ import annotations

import os
import signal
import site
import socket
import sysconfig
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from attacks import ATTACKS, TEST, TOTAL, Attack

from collm.sandbox import frames
from collm.sandbox.case import Case, Verdict
from collm.sandbox.limits import LAYERS, Protections
from collm.sandbox.pool import Sandbox

HONEST = "def f(x):\n    return x + 1\n"


@dataclass
class Battlefield:
    """What came of all attacks, and what was seen of them from outside."""

    protections: Protections
    verdicts: dict[str, Verdict]
    after: Verdict
    heard: list[bytes]
    signals: list[int]
    victim: Path
    outside: Path
    processes: list[str]
    temporary: list[str]


def stray_processes() -> list[str]:
    """Command lines of processes that belong to a sandbox."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended in the meantime
            if b"collm.sandbox.server" in line:
                found.append(f"{entry.name} of {(entry / 'stat').read_text().split()[3]}")
    return found


def listen(server: socket.socket, heard: list[bytes]) -> None:
    """Note whoever gets through to `server` until it closes."""
    while True:
        try:
            data = server.recv(100) if server.type == socket.SOCK_DGRAM else server.accept()[1:]
        except OSError:
            return
        heard.append(repr(data).encode())


FORGED = [attack for attack in ATTACKS if attack.kind == "forge"]
OTHERS = [attack for attack in ATTACKS if attack.kind != "forge"]


# Each of these sets of layers is enough for the essential protections.
@pytest.fixture(scope="module", params=[LAYERS, ("landlock", "seccomp"), ("namespaces", "seccomp")], ids="+".join)
def battlefield(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Battlefield:
    folder = tmp_path_factory.mktemp("home")
    temporary = tmp_path_factory.mktemp("temporary")
    victim, outside = folder / "victim.txt", tmp_path_factory.mktemp("outside") / "escaped"
    victim.write_text("precious")
    before = stray_processes()
    heard: list[bytes] = []
    signals: list[int] = []
    streams, datagrams, unix, abstract = (
        socket.socket(),
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM),
        socket.socket(socket.AF_UNIX),
        socket.socket(socket.AF_UNIX),
    )
    streams.bind(("127.0.0.1", 0))
    port = streams.getsockname()[1]
    datagrams.bind(("127.0.0.1", port))
    path = str(folder / "socket")
    unix.bind(path)
    abstract.bind("\0" + path)
    servers = [streams, datagrams, unix, abstract]
    for server in servers:
        if server is not datagrams:
            server.listen()
        threading.Thread(target=listen, args=(server, heard), daemon=True).start()
    old = {
        number: signal.signal(number, lambda number, frame: signals.append(number))
        for number in (signal.SIGTERM, signal.SIGIO)
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SECRET_OF_THE_TRAINER", "secret")
        patch.setenv("HOME", str(folder))
        patch.setattr("tempfile.tempdir", str(temporary))
        sandbox = Sandbox(
            workers=4,
            call_seconds=1.0,
            judgement_seconds=6.0,
            max_timeouts=1,
            memory_mb=256,
            layers=request.param,
            allow_unsafe=True,
        )
        protections = sandbox.protections
        if set(request.param) - set(protections.layers):
            sandbox.close()
            pytest.skip(f"not on this machine: {protections}")
        facts = {
            "VICTIM": str(victim),
            "OUTSIDE": str(outside),
            "TRAINER": os.getpid(),
            "PORT": port,
            "SOCKET": path,
            "PACKAGES": sorted({*site.getsitepackages(), *map(sysconfig.get_path, ("purelib", "platlib"))}),
            "COLLM": frames.__file__,
        }
        cases = [Case(attack.program(facts), "f", TEST) for attack in OTHERS]
        verdicts = dict(zip((attack.name for attack in OTHERS), sandbox.judge_all(cases), strict=True))
        after = sandbox.judge(Case(HONEST, "f", TEST))
        sandbox.close()
        left = [entry.name for entry in temporary.iterdir()]
    for number, handler in old.items():
        signal.signal(number, handler)
    for server in servers:
        server.close()
    deadline = time.monotonic() + 20  # what was killed may need a moment to end on a busy machine
    while (processes := sorted(set(stray_processes()) - set(before))) and time.monotonic() < deadline:
        time.sleep(0.1)
    return Battlefield(protections, verdicts, after, heard, signals, victim, outside, processes, left)


@pytest.fixture(scope="module")
def forged() -> dict[str, Verdict]:
    """What came of forged answers, which does not depend on the layers."""
    sandbox = Sandbox(workers=4, call_seconds=1.0, judgement_seconds=6.0, max_timeouts=1, memory_mb=256)
    verdicts = sandbox.judge_all([Case(attack.program({}), "f", TEST) for attack in FORGED])
    sandbox.close()
    return dict(zip((attack.name for attack in FORGED), verdicts, strict=True))


@pytest.mark.parametrize("attack", FORGED, ids=lambda attack: attack.name)
def test_a_forged_answer_passes_no_assert(forged: dict[str, Verdict], attack: Attack) -> None:
    verdict = forged[attack.name]
    assert (verdict.passed, verdict.broke) == (0, False), verdict
    for unit in verdict.units:
        unit.detail.encode("utf-8")


@pytest.mark.parametrize("attack", OTHERS, ids=lambda attack: attack.name)
def test_the_verdict_is_right(battlefield: Battlefield, attack: Attack) -> None:
    verdict = battlefield.verdicts[attack.name]
    assert verdict.passed == attack.passed, verdict
    assert verdict.correct == (attack.passed == TOTAL)
    for unit in verdict.units:
        unit.detail.encode("utf-8")


def test_essential_protections_were_on(battlefield: Battlefield) -> None:
    assert battlefield.protections.missing == []


def test_an_honest_program_passes_afterwards(battlefield: Battlefield) -> None:
    assert battlefield.after.correct


def test_no_attack_escaped(battlefield: Battlefield) -> None:
    assert battlefield.heard == []
    assert battlefield.signals == []
    assert battlefield.victim.read_text() == "precious"
    assert not battlefield.outside.exists()
    for folder in ("/dev/shm", "/tmp", "/var/tmp", "/run", "/mnt", "/var"):
        assert not Path(folder, "collm-escape").exists()


def test_no_processes_or_files_are_left_behind(battlefield: Battlefield) -> None:
    assert battlefield.processes == []
    assert battlefield.temporary == []


def test_names_are_distinct() -> None:
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS) >= 250
