"""No verdict comes from a sandbox that is not set up as promised, and no program is spared by breaking it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from collm.errors import ConfigurationError
from collm.sandbox import connection, library
from collm.sandbox.case import Case
from collm.sandbox.limits import LAYERS, Protections
from collm.sandbox.pool import Sandbox, SandboxFailure

TEST = "assert add(1) == 2\nassert add(2) == 3\n"
HONEST = Case("def add(a):\n    return a + 1\n", "add", TEST)


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    sandbox = Sandbox(workers=1)
    if sandbox.protections.layers != LAYERS:
        sandbox.close()
        pytest.skip(f"not on this machine: {sandbox.protections}")
    yield sandbox
    sandbox.close()


@pytest.fixture
def sabotage(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Lets servers that start from now on run some code before anything else."""
    boot = connection._BOOT

    def sabotage(code: str) -> None:
        code = code.replace("{", "{{").replace("}", "}}")
        monkeypatch.setattr(connection, "_BOOT", boot.replace("main({channel})", f"{code}\nmain({{channel}})"))

    return sabotage


def restart(sandbox: Sandbox) -> None:
    """End the server, so that the next judgement starts another one."""
    (server,) = sandbox._pool.servers
    server.close()


# Fewer layers than promised

BREAKS = {
    "namespaces": "from collm.sandbox import kernel\ndef no(*a, **k): raise OSError('no')\nkernel.unshare = no",
    "landlock": "from collm.sandbox import landlock\nlandlock.version = lambda: 0",
    "seccomp": "from collm.sandbox import seccomp\nseccomp.supported = lambda machine: False",
}
FAILS = {
    "namespaces": "from collm.sandbox import confine\ndef no(*a): raise confine.SetupFailure('namespaces', 'no')\n"
    "confine.private_temporary = no",
    "landlock": "from collm.sandbox import landlock\ndef no(*a): raise OSError('no')\nlandlock.restrict = no",
    "seccomp": "from collm.sandbox import seccomp\ndef no(*a): raise OSError('no')\nseccomp.install = no",
}


@pytest.mark.parametrize("missing", LAYERS)
@pytest.mark.parametrize("way", [BREAKS, FAILS], ids=["not there", "cannot be switched on"])
def test_a_replacement_with_fewer_layers_gives_no_verdict(
    sandbox: Sandbox, sabotage: Callable[[str], None], missing: str, way: dict[str, str]
) -> None:
    sabotage(way[missing])
    restart(sandbox)
    with pytest.raises(SandboxFailure, match=f"could not be set up.*{missing}"):
        sandbox.judge(HONEST)
    sabotage("")
    assert sandbox.judge(HONEST).correct  # the failure was not remembered


@pytest.mark.parametrize("missing", LAYERS)
def test_the_first_start_may_drop_a_layer_if_the_others_suffice(sabotage: Callable[[str], None], missing: str) -> None:
    sabotage(FAILS[missing])
    sandbox = Sandbox(workers=1)
    if missing == "seccomp":
        with pytest.raises(ConfigurationError, match="leftovers"):
            sandbox.judge(HONEST)
        return
    assert sandbox.judge(HONEST).correct
    assert sandbox.protections.layers == tuple(name for name in LAYERS if name != missing)
    assert any(note.startswith(f"no {missing}") for note in sandbox.protections.notes)
    sandbox.close()


def test_protections_are_compared_field_by_field() -> None:
    full = Protections.of(dict.fromkeys(LAYERS, True), True, ())
    assert full.lacks(full) == []
    assert Protections.of(dict.fromkeys(LAYERS, True), False, ()).lacks(full) == ["user"]
    fewer = Protections.of({"namespaces": True, "landlock": True, "seccomp": False}, True, ())
    assert fewer.lacks(full) == ["leftovers", "seccomp"]
    assert fewer.missing == ["leftovers"]
    assert full.lacks(fewer) == []


def test_a_server_with_false_protections_is_detected_at_each_start(
    sandbox: Sandbox, sabotage: Callable[[str], None]
) -> None:
    nothing = "\n".join(
        (
            "from collm.sandbox import landlock, seccomp, confine",
            "landlock.restrict = seccomp.install = lambda *a: None",
            "confine._private_root = lambda *a: None",
            "confine.file_rules = lambda *a: confine.os.dup2(2, 250)",
            "confine.TEMPORARY, confine.can_drop = '/', lambda user: True",
            "confine.private_temporary = lambda size: None",
        )
    )
    sabotage(nothing)
    restart(sandbox)
    with pytest.raises(SandboxFailure, match="does not keep what it promises.*files"):
        sandbox.judge(HONEST)


@pytest.mark.parametrize(
    "code",
    [
        "from collm.sandbox import judge\njudge.give_up = lambda *a, **k: judge.os._exit(70)",
        "from collm.sandbox import candidate\ndef no(*a): raise OSError('no')\ncandidate.close_other_descriptors = no",
        "from collm.sandbox import confine\ndef no(*a): raise OSError('no')\nconfine.resource.setrlimit = no",
        "from collm.sandbox import library\ndef no(*a): raise OSError('no')\nlibrary.shared_libraries = no",
        "raise SystemExit",
        "import time\ntime.sleep(100)",
    ],
    ids=["judge", "descriptors", "limits", "libraries", "ends", "hangs"],
)
def test_a_process_that_does_not_start_gives_no_verdict(
    sandbox: Sandbox, sabotage: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    monkeypatch.setattr(connection, "_START_SECONDS", 1.0)
    monkeypatch.setattr(connection, "_END_SECONDS", 0.2)
    sabotage(code)
    restart(sandbox)
    with pytest.raises(SandboxFailure, match="could not be set up"):
        sandbox.judge(HONEST)


@pytest.mark.parametrize("forks", range(2, 6))
def test_running_out_of_processes_gives_no_verdict(
    sandbox: Sandbox, sabotage: Callable[[str], None], forks: int
) -> None:
    # The zygote makes a process to try the layers with, one for the probe and one for each program.
    sabotage(
        "import os\nfrom collm.sandbox import candidate\ncount, fork = [0], os.fork\n"
        "class Os:\n    def __getattr__(self, name): return getattr(os, name)\n    def fork(self):\n"
        f"        count[0] += 1\n        if count[0] > {forks}: raise BlockingIOError(11, 'no more processes')\n"
        "        return fork()\ncandidate.os = Os()"
    )
    restart(sandbox)
    cases = [Case(f"{HONEST.program}# {number}", "add", TEST) for number in range(4)]
    for case in cases[: forks - 2]:
        assert sandbox.judge(case).correct
    sabotage("raise SystemExit")
    with pytest.raises(SandboxFailure, match="could not be set up"):
        sandbox.judge(cases[-1])
    sabotage("")
    assert sandbox.judge(cases[-1]).correct


# Breakdowns that a program causes

WHEN_BAD = "from collm.sandbox import server\nold = server.judge\ndef judge(control, request, setup, trainer):\n"
BREAKDOWNS = {
    "ends": WHEN_BAD + "    if 'BAD' in request['program']: server.os._exit(1)\n",
    "wrong answer": WHEN_BAD + "    if 'BAD' in request['program']: return {'units': 3}\n",
    "no list": WHEN_BAD + "    if 'BAD' in request['program']: return [1]\n",
    "number": WHEN_BAD + "    if 'BAD' in request['program']: return 7\n",
}


@pytest.mark.parametrize("code", BREAKDOWNS.values(), ids=BREAKDOWNS)
def test_a_program_that_crashes_servers_fails(sandbox: Sandbox, sabotage: Callable[[str], None], code: str) -> None:
    bad = Case(HONEST.program + "# BAD\n", "add", TEST)
    sabotage(code + "    return old(control, request, setup, trainer)\nserver.judge = judge")
    restart(sandbox)
    verdict = sandbox.judge(bad)
    assert (verdict.passed, verdict.total, verdict.correct, verdict.broke) == (0, 2, False, True)
    assert "crashed the sandbox's server twice" in verdict.error
    assert sandbox.judge(HONEST).correct
    sabotage("")
    restart(sandbox)
    assert sandbox.judge(bad).correct  # nothing was remembered


def test_a_crash_gives_no_verdict_unless_the_sandbox_works_afterwards(
    sandbox: Sandbox, sabotage: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    sabotage(BREAKDOWNS["ends"] + "    return old(control, request, setup, trainer)\nserver.judge = judge")
    restart(sandbox)
    (server,) = sandbox._pool.servers
    starts, start = [], server.start

    def at_most_two() -> Protections:
        starts.append(1)
        if len(starts) > 2:
            sabotage("raise SystemExit")
        return start()

    monkeypatch.setattr(server, "start", at_most_two)
    with pytest.raises(SandboxFailure, match="could not be set up"):
        sandbox.judge(Case(HONEST.program + "# BAD\n", "add", TEST))
    assert len(starts) == 3


# Time that an answer costs

# Whole numbers of equal hash; the test puts them into a set, which takes minutes.
COLLIDING = "def add(a):\n    return [k * (2 ** 61 - 1) for k in range(1, 45001)] if a else a\n"


def test_an_answer_cannot_make_the_test_take_longer_than_a_call() -> None:
    sandbox = Sandbox(workers=1, call_seconds=1.0, judgement_seconds=30.0)
    test = "assert add(0) == 0\nassert len(set(add(1))) == 45000\nassert add(0) < 1\n"
    began = time.monotonic()
    verdict = sandbox.judge(Case(COLLIDING, "add", test))
    assert time.monotonic() - began < 15  # 1 s, and a minute without a limit
    assert [unit.passed for unit in verdict.units] == [True, False, False]
    assert verdict.error == "the test took more than 1 s over an answer"
    assert sandbox.judge(HONEST).correct
    sandbox.close()


def test_the_length_of_a_program_is_bounded(sandbox: Sandbox) -> None:
    long = HONEST.program + "#" * 300_000
    assert sandbox.judge(Case(long, "add", TEST)).correct
    for size in (400_000, 20_000_000):
        verdict = sandbox.judge(Case(HONEST.program + "#" * size, "add", TEST))
        assert (verdict.passed, verdict.total) == (0, 2)
        assert "longer than" in verdict.error


# What is mounted below the standard library

MOUNTED = """\
import os
from collm.sandbox import kernel, library
from collm.sandbox.case import Case
from collm.sandbox.pool import Sandbox
kernel.unshare(kernel.CLONE_NEWNS)
kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
folder = library.folders()[0] + "/wsgiref"
kernel.mount("below", folder, "tmpfs", 0, "mode=777")
program = f"def f(x):\\n    open({folder!r} + '/left', 'w').write('here')\\n    return x\\n"
sandbox = Sandbox(workers=1, layers=("namespaces", "seccomp"))
assert sandbox.protections.layers == ("namespaces", "seccomp"), sandbox.protections
verdict = sandbox.judge(Case(program, "f", "assert f(1) == 1"))
sandbox.close()
print(os.listdir(folder), verdict.units[0].passed, verdict.units[0].detail)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="mounting needs root")
def test_mounts_below_the_standard_library_are_read_only() -> None:
    done = subprocess.run([sys.executable, "-c", MOUNTED], capture_output=True, text=True, timeout=60)
    if "kernel.unshare" in done.stderr or "kernel.mount" in done.stderr:
        pytest.skip(f"not on this machine: {done.stderr[-200:]}")
    assert done.stdout.startswith("[] False OSError: [Errno 30] Read-only file system"), done


def test_entries_of_the_standard_library_and_others_are_separated() -> None:
    standard, other = library.entries(standard=True), library.entries(standard=False)
    assert os.path.dirname(os.__file__) in library.folders()
    assert os.__file__ in standard
    assert not [path for path in standard if "-packages" in path]
    assert not set(standard) & set(other)
