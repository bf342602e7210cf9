"""A server process that judges programs one after the other and shares only a socket with the trainer.

The server is a bare Python interpreter. It forks candidates from a second one, the zygote, and forks a judge for each
test. It forwards calls from the judge to the candidate, and the answers back, without decoding them, and enforces the
time limits. Only the judge, which is confined and can be ended, decodes answers of a program; the server itself decodes
no more than a short message about loading:

    trainer ── socket ── server ──fork── judge      runs the test, decides
                           └───── zygote ──fork── candidate      runs the program, sees calls only

The judge never shares a process with the candidate, and the candidate's memory never contains a test.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import platform
import signal
import socket
import time
from collections.abc import Mapping
from typing import Any

from collm.sandbox import asserts, confine, frames, landlock, library, seccomp
from collm.sandbox.candidate import serve_forks
from collm.sandbox.candidate_process import SETUP_SECONDS, Candidate, CandidateLost, await_ready
from collm.sandbox.confine import SetupFailure
from collm.sandbox.judge import run_judge

# Modules that such programs often import; they are loaded once, before candidates are forked.
_PRELOADED = (
    *("math", "cmath", "re", "string", "collections", "collections.abc", "itertools", "functools", "operator"),
    *("typing", "random", "heapq", "bisect", "copy", "json", "statistics", "fractions", "decimal", "datetime"),
    *("calendar", "hashlib", "enum", "dataclasses", "textwrap", "numbers", "array", "queue", "threading", "time"),
)
_MAX_REQUEST = 1 << 24


def judge(control: socket.socket, request: Mapping[str, Any], setup: Mapping[str, Any], trainer: int) -> dict[str, Any]:
    """The verdict on one program."""
    limits = setup["limits"]
    end = time.monotonic() + limits["judgement_seconds"]
    units = asserts.units_of(request["test"])
    passed: dict[int, bool] = {}
    details: dict[int, str] = {}
    verdict: dict[str, Any] = {"loaded": False, "error": "", "completed": False, "calls": 0, "counted": False}
    candidate = Candidate(control, request, limits, end, trainer)
    try:
        verdict["error"] = candidate.start()
        if not verdict["error"]:
            verdict["loaded"] = True
            _run_test(candidate, request, setup, verdict, passed, details)
    except (CandidateLost, ValueError, TypeError, LookupError) as error:
        verdict["error"] = str(error)
    finally:
        candidate.stop()
    verdict["timeouts"] = candidate.timeouts
    verdict["units"] = [
        [unit.line, unit.text, passed.get(number, False), details.get(number, "not reached")]
        for number, unit in enumerate(units)
    ]
    return verdict


def _run_test(
    candidate: Candidate,
    request: Mapping[str, Any],
    setup: Mapping[str, Any],
    verdict: dict[str, Any],
    passed: dict[int, bool],
    details: dict[int, str],
) -> None:
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        run_judge(theirs.detach(), request, setup)
    theirs.close()
    ours.setblocking(False)
    channel = ours.fileno()
    seconds = candidate.limits["call_seconds"]
    deadline = candidate.end
    try:
        await_ready(channel, candidate.end + SETUP_SECONDS, candidate.trainer)
        while True:
            message = frames.receive(channel, candidate.limits["message_bytes"], deadline, candidate.trainer)
            if message[:1] == b"C":
                verdict["calls"] += 1
                try:
                    answer = b"R" + candidate.call(message[1:])
                except CandidateLost as error:
                    answer = b"X" + str(error).encode()
                # The program can make it slow to decode an answer, compare it or put it into a set.
                deadline = min(candidate.end, time.monotonic() + seconds)
                frames.send(channel, answer, deadline)
                continue
            entry = json.loads(message[1:])
            verdict["counted"] |= entry["counted"]
            if "unit" not in entry:
                verdict["completed"], verdict["error"] = entry["done"], entry["error"]
                return
            number = entry["unit"]
            if passed.get(number, True):
                passed[number], details[number] = entry["passed"], entry["detail"]
    except frames.Late:
        verdict["error"] = (
            f"the judgement took more than {candidate.limits['judgement_seconds']:g} s"
            if deadline == candidate.end
            else f"the test took more than {seconds:g} s over an answer"
        )
    except (frames.Closed, frames.TooLarge) as error:
        verdict["error"] = f"the test could not continue ({error})"
    finally:
        ours.close()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _failed(error: SetupFailure) -> bytes:
    return json.dumps({"failed": error.layer, "reason": error.reason}).encode()


def _try_setup(control: socket.socket, setup: Mapping[str, Any], trainer: int) -> None:
    """Start a process that runs no program, to check that every layer can be switched on."""
    candidate = Candidate(control, {}, setup["limits"], time.monotonic() + SETUP_SECONDS, trainer)
    try:
        candidate.fork()
    finally:
        candidate.stop()


def _prepare(setup: dict[str, Any]) -> tuple[int | None, list[str]]:
    """Switch on the layers that apply to the server itself, and add the available layers to `setup`.

    Returns a descriptor of /proc if there are namespaces, and why a layer is missing; raises SetupFailure.
    """
    layers = dict.fromkeys(setup["layers"], 1)
    machine = platform.machine()
    notes = []
    processes = rules = None
    try:
        libraries = library.shared_libraries() if layers else {}
    except OSError as error:
        raise SetupFailure("files", str(error)) from None
    if layers.get("namespaces"):
        try:
            processes = confine.enter_namespaces(libraries)
        except OSError as error:
            # The setup may be incomplete, so a new server starts without namespaces.
            raise SetupFailure("namespaces", str(error)) from None
    if layers.get("landlock"):
        layers["landlock"] = landlock.version()
        notes += [] if layers["landlock"] else ["no landlock: the kernel has none"]
        if layers["landlock"]:
            rules = confine.file_rules(layers["landlock"], libraries, processes is not None)
    if layers.get("seccomp"):
        layers["seccomp"] = int(seccomp.supported(machine))
        notes += [] if layers["seccomp"] else ["no seccomp: not with this kernel or processor"]
        if layers["seccomp"]:
            seccomp.program(machine)  # cached for the forked processes
    setup["layers"] = {name: layers.get(name, 0) for name in ("namespaces", "landlock", "seccomp")}
    setup["rules"] = rules
    setup["libraries"] = sorted(set(libraries.values()))
    return processes, notes


def main(channel: int) -> None:
    """Serve the trainer at `channel` until it closes the channel."""
    os.environ.clear()
    os.umask(0o022)
    setup = json.loads(frames.receive(channel, _MAX_REQUEST))
    for name in _PRELOADED:
        importlib.import_module(name)
    try:
        processes, notes = _prepare(setup)
    except SetupFailure as error:
        frames.send(channel, _failed(error))
        return
    gc.collect()
    gc.freeze()
    control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        try:
            os.close(channel)
            control.close()
            serve_forks(theirs, setup, processes)
        finally:
            os._exit(70)
    theirs.close()
    if processes is not None:
        os.close(processes)
    setup["user"] = json.loads(control.recv(32) or b"null")
    try:
        _try_setup(control, setup, channel)
    except SetupFailure as error:
        frames.send(channel, _failed(error))
        return
    user = setup["user"] is not None or os.geteuid() != 0
    report = {"layers": setup["layers"], "user": user, "notes": notes, "libraries": setup.pop("libraries")}
    frames.send(channel, json.dumps(report).encode())
    with contextlib.suppress(frames.Closed, frames.Abandoned, ConnectionError):
        while True:
            request = json.loads(frames.receive(channel, _MAX_REQUEST))
            try:
                verdict = judge(control, request, setup, channel)
            except SetupFailure as error:
                verdict = {"failure": str(error), "setup": True}
            except ConnectionError:
                raise
            except OSError as error:  # out of descriptors or processes
                verdict = {"failure": f"process: {error}", "setup": True}
            except (SyntaxError, ValueError, RecursionError) as error:
                verdict = {"failure": f"the test cannot be read ({error})"}
            frames.send(channel, json.dumps(verdict).encode())
