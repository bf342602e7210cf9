"""Verdicts, their cache, and how the sandbox starts, breaks and ends."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from collm.errors import ConfigurationError
from collm.sandbox import asserts, probe
from collm.sandbox.case import Case
from collm.sandbox.limits import LAYERS, Protections
from collm.sandbox.pool import Sandbox, SandboxFailure

ADD = "def add(a, b=1):\n    return a + b\n"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    sandbox = Sandbox(workers=2, call_seconds=2.0, judgement_seconds=10.0, max_timeouts=2)
    yield sandbox
    sandbox.close()


def flags(sandbox: Sandbox, program: str, test: str, entry_point: str = "add", prelude: str = "") -> list[bool]:
    return [unit.passed for unit in sandbox.judge(Case(program, entry_point, test, prelude)).units]


# What counts as an assert


def test_each_assert_counts_once(sandbox: Sandbox) -> None:
    test = """
def check(candidate):
    assert True, "says nothing about the candidate"
    assert candidate(1) == 2
    assert candidate(1) == 2, "the same again"
    assert (
        candidate(2)
        == 4
    )
    for value in range(5):
        assert candidate(value) == value + 1
    for value in range(5):
        assert candidate(value) < 4
    total = candidate(3)
    assert total == 4
    total = candidate(4)
    assert total == 4
"""
    assert flags(sandbox, ADD, test) == [True, False, True, False, True, False]
    assert [unit.line for unit in asserts.units_of(test)] == [4, 6, 11, 13, 15, 17]


def test_a_test_may_be_bare_asserts(sandbox: Sandbox) -> None:
    assert flags(sandbox, ADD, "assert candidate(1) == 2\nassert add(1, b=2) == 3\nassert add(1) == 1") == [
        True,
        True,
        False,
    ]


def test_a_test_may_use_its_prelude_and_expect_exceptions(sandbox: Sandbox) -> None:
    test = """
def check(candidate):
    assert math.isclose(double(candidate(1)), 4)
    try:
        candidate("a")
        raised = False
    except TypeError:
        raised = True
    assert raised
"""
    assert flags(sandbox, ADD, test, prelude="import math\ndef double(x): return 2 * x") == [True, True]


def test_asserts_behind_an_exception_were_not_reached(sandbox: Sandbox) -> None:
    verdict = sandbox.judge(
        Case("def f(x):\n    return 1 / x", "f", "assert f(1) == 1\nhalf = f(0)\nassert half == 2\n")
    )
    assert [(unit.passed, unit.detail) for unit in verdict.units] == [(True, ""), (False, "not reached")]
    assert (verdict.completed, verdict.correct) == (False, False)
    assert verdict.error == "ZeroDivisionError: division by zero"


# Right for 0 and 1, an exception from 2 on.
TWICE = "def f(x):\n    return [0, 2][x]\n"


@pytest.mark.parametrize(
    ("test", "passed"),
    [
        # The second statement of the loop is cut off in its third round.
        ("for x in range(4):\n    y = candidate(x)\n    assert y == 2 * x\n", [False]),
        ("for x in range(2):\n    y = candidate(x)\n    assert y == 2 * x\n", [True]),
        ("x = 0\nwhile x < 4:\n    y = candidate(x)\n    assert y == 2 * x\n    x += 1\n", [False]),
        ("for x in range(4):\n    if x == 2: break\n    assert candidate(x) == 2 * x\n", [False]),
        ("x = 0\nwhile True:\n    assert candidate(x) == 2 * x\n    x += 1\n    if x == 2: break\n", [True]),
        # Caught or not, the loop did not run to its end.
        ("try:\n  for x in range(4):\n    y = candidate(x)\n    assert y == 2 * x\nexcept IndexError: pass\n", [False]),
        # The inner loop runs through once.
        ("for n in (2, 4):\n    for x in range(n):\n        y = candidate(x)\n        assert y == 2 * x\n", [False]),
        ("def check(f):\n    for x in range(4):\n        if x == 2: return\n        assert f(x) == 2 * x\n", [False]),
        # A function of the test, called again and again.
        ("def one(y, x):\n    assert y == 2 * x\nfor x in range(4): one(candidate(x), x)\n", [False]),
        ("def one(y, x):\n    assert y == 2 * x\nz = [one(candidate(x), x) for x in range(4)]\n", [False]),
        ("def one(y, x):\n    assert y == 2 * x\nz = [one(candidate(x), x) for x in range(2)]\n", [True]),
        ("def one(x):\n    y = candidate(x)\n    assert y == 2 * x\nz = list(map(one, range(4)))\n", [False]),
        ("def one(y, x):\n    assert y == 2 * x\none(candidate(0), 0)\none(candidate(2), 2)\n", [False]),
        ("def one(y, x):\n    assert y == 2 * x\none(candidate(0), 0)\none(candidate(1), 1)\n", [True]),
        # What ran once and held stays; what comes behind is not reached.
        ("def check(f):\n    assert f(0) == 0\n    y = f(2)\n    assert y == 4\n", [True, False]),
        ("assert candidate(0) == 0\nfor x in range(4):\n    y = candidate(x)\n    assert y == 2 * x\n", [True, False]),
    ],
)  # fmt: skip
def test_interrupted_asserts_fail(sandbox: Sandbox, test: str, passed: list[bool]) -> None:
    assert flags(sandbox, TWICE, test, "f") == passed


def test_asserts_interrupted_by_a_timeout_fail() -> None:
    program = "def f(x):\n    while x > 1: pass\n    return 2 * x\n"
    loop = "for x in range(4):\n    y = candidate(x)\n    assert y == 2 * x\n"
    with_more = "assert candidate(0) == 0\nfor x in range(4):\n    assert candidate(x) == 2 * x or True\n"
    sandbox = Sandbox(workers=1, call_seconds=1.0, judgement_seconds=1.0)
    try:
        assert flags(sandbox, program, loop, "f") == [False]
        assert flags(sandbox, program, with_more, "f") == [True, False]
    finally:
        sandbox.close()


@pytest.mark.parametrize(
    "error", ["StopIteration", "StopAsyncIteration", "GeneratorExit", "SystemExit", "KeyboardInterrupt", "Mine"]
)
def test_no_exception_ends_an_iteration_of_the_test(sandbox: Sandbox, error: str) -> None:
    program = f"class Mine(StopIteration): pass\ndef f(x):\n    raise {error}('done')\n"
    test = (
        "assert all(map(candidate, [1, 2]))\n"
        "assert all(a == b for a, b in zip(map(candidate, [1]), [2]))\n"
        "assert not list(iter(lambda: candidate(1), 2))\n"
        "assert next(map(candidate, [1]), 7) == 7\n"
        "assert 3 not in map(candidate, [1])\n"
    )
    assert flags(sandbox, program, test, "f") == [False] * 5


def test_one_hang_costs_one_assert(sandbox: Sandbox) -> None:
    program = "def f(x):\n    while x == 1: pass\n    return x"
    verdict = sandbox.judge(Case(program, "f", "assert f(0) == 0\nassert f(1) == 1\nassert f(2) == 2\n"))
    assert [unit.passed for unit in verdict.units] == [True, False, True]
    assert verdict.timeouts == 1
    assert "no answer within 2 s" in verdict.units[1].detail


def test_an_argument_is_a_copy(sandbox: Sandbox) -> None:
    # Emptying the argument would make the expected value empty as well.
    test = "def check(candidate):\n    numbers = [3, 1, 2]\n    assert candidate(numbers) == sorted(numbers)\n"
    assert flags(sandbox, "def f(x):\n    x.clear()\n    return x\n", test, "f") == [False]


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("def add(:", "SyntaxError"),
        ("raise ValueError('no')", "ValueError: no"),
        ("def other(): pass", "KeyError"),
        ("import nothing_of_the_kind", "ModuleNotFoundError"),
        ("\0", "null bytes"),
    ],
)
def test_programs_that_do_not_load_say_why(sandbox: Sandbox, program: str, error: str) -> None:
    verdict = sandbox.judge(Case(program, "add", "assert add(1) == 2"))
    assert (verdict.loaded, verdict.passed, verdict.total) == (False, 0, 1)
    assert error in verdict.error


def test_an_unreadable_test_is_a_separate_failure(sandbox: Sandbox) -> None:
    with pytest.raises(SandboxFailure, match="cannot be read"):
        sandbox.judge(Case(ADD, "add", "def check(:"))


def test_state_of_one_program_does_not_reach_the_next(sandbox: Sandbox) -> None:
    poison = "import math\nmath.floor = lambda x: 99\n" + ADD
    test = "import math\ndef check(candidate):\n    assert candidate(1) == math.floor(2.5)\n"
    assert flags(sandbox, poison, test) == [True]
    clean = "import math\ndef add(a, b=1):\n    return math.floor(a + b)\n"
    assert all(flags(sandbox, clean + "#" * index, test) == [True] for index in range(4))


# Speed and the cache


def test_judging_takes_milliseconds_per_case(sandbox: Sandbox) -> None:
    cases = [Case(f"{ADD}# {index}", "add", "assert add(1) == 2") for index in range(100)]
    began = time.perf_counter()
    assert all(verdict.correct for verdict in sandbox.judge_all(cases))
    assert time.perf_counter() - began < 10  # about 1 s on two idle cores


def test_the_same_content_is_judged_once(sandbox: Sandbox) -> None:
    case = Case("import time\ntime.sleep(0.5)\n" + ADD, "add", "assert add(1) == 2")
    began = time.perf_counter()
    verdicts = sandbox.judge_all([case] * 50)
    assert time.perf_counter() - began < 10
    assert all(verdict is verdicts[0] for verdict in verdicts)


def test_without_a_cache_every_case_is_judged_again() -> None:
    sandbox = Sandbox(workers=1, cache_size=0)
    case = Case(ADD, "add", "assert add(1) == 2")
    assert sandbox.judge(case) == sandbox.judge(case)
    assert sandbox.judge(case) is not sandbox.judge(case)
    sandbox.close()


# Starting, breaking, ending


def test_a_broken_server_is_replaced() -> None:
    sandbox = Sandbox(workers=1, cache_size=0)
    case = Case(ADD, "add", "assert add(1) == 2")
    assert sandbox.judge(case).correct
    (server,) = sandbox._pool.servers
    os.kill(server.process.pid, signal.SIGKILL)
    assert sandbox.judge(case).correct
    sandbox.close()
    assert sandbox.judge(case).correct
    sandbox.close()


def test_an_unpickled_sandbox_has_its_own_servers(sandbox: Sandbox) -> None:
    sandbox.judge(Case(ADD, "add", "assert add(1) == 2"))
    copy = pickle.loads(pickle.dumps(sandbox))
    assert copy._pool is None
    assert copy.limits == sandbox.limits


def test_servers_end_with_a_trainer_that_was_killed() -> None:
    program = """
import os, signal
from collm.sandbox.case import Case
from collm.sandbox.pool import Sandbox
sandbox = Sandbox(workers=1)
sandbox.submit(Case("while True: pass", "f", "assert f()"))
print(sandbox._pool.servers[0].process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    output = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60).stdout
    server = int(output)
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{server}") and time.monotonic() < deadline:
        if Path(f"/proc/{server}/stat").read_text().split()[2] == "Z":
            break  # whoever inherits it has not asked for its status yet
        time.sleep(0.05)
    assert time.monotonic() < deadline


def test_missing_protections_are_refused_unless_allowed() -> None:
    sandbox = Sandbox(workers=1, layers=())
    with pytest.raises(ConfigurationError, match=r"network, files, writes.*allow_unsafe"):
        sandbox.judge(Case(ADD, "add", "assert add(1) == 2"))
    unsafe = Sandbox(workers=1, layers=(), allow_unsafe=True)
    with pytest.warns(UserWarning, match="without these protections: network"):
        assert unsafe.judge(Case(ADD, "add", "assert add(1) == 2")).correct
    assert "NOT protected" in str(unsafe.protections)
    unsafe.close()


def test_a_broken_protection_is_detected() -> None:
    unsafe = Sandbox(workers=1, layers=(), allow_unsafe=True)
    with pytest.warns(UserWarning, match="without these protections"):
        verdict = unsafe.judge(probe.probe())
    unsafe.close()
    answer = {
        "loaded": verdict.loaded,
        "error": verdict.error,
        "units": [(unit.line, unit.text, unit.passed, unit.detail) for unit in verdict.units],
    }
    promised = Protections.of(dict.fromkeys(LAYERS, True), True, ())
    broken = {complaint.split(":")[0] for complaint in probe.complaints(answer, promised)}
    assert {"network", "writes", "signals"} <= broken
    assert not {"limits", "session", "environment"} & broken


@pytest.mark.parametrize(
    "arguments",
    [
        {"workers": 0},
        {"workers": True},
        {"memory_mb": 1},
        {"call_seconds": 0.0},
        {"call_seconds": 9.0, "judgement_seconds": 3.0},
        {"layers": ("magic",)},
        {"max_timeouts": 0},
    ],
)
def test_arguments_that_cannot_work_are_refused(arguments: dict) -> None:
    with pytest.raises(ConfigurationError, match=f"Sandbox.{next(iter(arguments))}"):
        Sandbox(**arguments)
