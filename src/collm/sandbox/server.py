"""A server that judges programs one after the other, for a trainer it shares nothing with but one socket.

It is a bare Python that keeps a second one, the zygote, to fork candidates from, and forks a judge for each test. It
passes calls from the judge to the candidate and answers back, without reading them, and keeps time:

    trainer ── socket ── server ──fork── judge      runs the test, decides
                           └───── zygote ──fork── candidate      runs the program, sees calls only

The judge never shares a process with the candidate, and the candidate's memory never held a test.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import platform
import secrets
import signal
import socket
import time
from collections.abc import Mapping
from typing import Any

from collm.sandbox import asserts, confine, frames, landlock, plain, seccomp
from collm.sandbox.candidate import NONCE_BYTES, serve_forks
from collm.sandbox.judge import run_judge

# What programs of this kind import; loaded once, so that no candidate waits for it.
_PRELOADED = (
    *("math", "cmath", "re", "string", "collections", "collections.abc", "itertools", "functools", "operator"),
    *("typing", "random", "heapq", "bisect", "copy", "json", "statistics", "fractions", "decimal", "datetime"),
    *("calendar", "hashlib", "enum", "dataclasses", "textwrap", "numbers", "array", "queue", "threading", "time"),
)
_MAX_REQUEST = 1 << 24


class CandidateLost(Exception):
    """The candidate cannot answer: out of time, ended, or breaking the rules of the channel."""


class Candidate:
    """A program in a process of its own, begun again when a call was lost.

    Args:
        control: Socket to the zygote.
        request: Program and entry point.
        limits: Fields of `Limits`.
        end: When the whole judgement ends.
        trainer: Descriptor of the trainer's socket; work stops when the trainer has gone.
    """

    def __init__(
        self, control: socket.socket, request: Mapping[str, Any], limits: Mapping[str, Any], end: float, trainer: int
    ):
        self.control = control
        self.request = request
        self.limits = limits
        self.end = end
        self.trainer = trainer
        self.channel: socket.socket | None = None
        self.lost = 0
        self.timeouts = 0

    def start(self) -> bytes:
        """Load the program; returns what came of it."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        socket.send_fds(self.control, [b"fork"], [theirs.fileno()])
        theirs.close()
        self.channel = ours
        if not self.control.recv(32):
            raise ConnectionError("the zygote has gone")
        order = {name: self.request[name] for name in ("program", "entry_point", "counted")}
        return self.exchange(json.dumps(order).encode())

    def call(self, arguments: bytes) -> bytes:
        """What the program answers to a call."""
        if self.lost >= self.limits["max_timeouts"]:
            raise CandidateLost("not tried: too many calls before were lost")
        if self.channel is None:
            self.start()
        return self.exchange(arguments)

    def exchange(self, message: bytes) -> bytes:
        """Send a message and return the answer, which must carry the same nonce."""
        assert self.channel is not None
        nonce = secrets.token_hex(NONCE_BYTES // 2).encode()
        deadline = min(self.end, time.monotonic() + self.limits["call_seconds"])
        descriptor = self.channel.fileno()
        try:
            frames.send(descriptor, nonce + message, deadline)
            answer = frames.receive(descriptor, self.limits["message_bytes"], deadline, self.trainer)
        except frames.Late:
            self.timeouts += 1
            self.stop()
            raise CandidateLost(f"no answer within {self.limits['call_seconds']:g} s") from None
        except frames.TooLarge:
            self.stop()
            raise CandidateLost("the answer is too large") from None
        except frames.Closed:
            raise CandidateLost(_cause_of_death(self.stop())) from None
        if not answer.startswith(nonce):
            self.stop()
            raise CandidateLost("something else than the answer was written to the channel")
        return answer[NONCE_BYTES:]

    def stop(self) -> int:
        """End the process, if there is one, with all it started; returns its status."""
        if self.channel is None:
            return 0
        self.lost += 1
        self.channel.close()
        self.channel = None
        self.control.send(b"reap")
        status = self.control.recv(32)
        if not status:
            raise ConnectionError("the zygote has gone")
        return int(status)


def _cause_of_death(status: int) -> str:
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        return f"the process was ended by {name}" + (" (CPU time or memory)" if name == "SIGKILL" else "")
    return f"the process ended itself with status {os.WEXITSTATUS(status)}"


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
        kind, *content = plain.loads(candidate.start())
        if kind == "error":
            verdict["error"] = ": ".join(filter(None, (str(content[0][0]), str(content[1]))))
        else:
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
    try:
        while True:
            message = frames.receive(channel, candidate.limits["message_bytes"], candidate.end, candidate.trainer)
            if message[:1] == b"C":
                verdict["calls"] += 1
                try:
                    answer = b"R" + candidate.call(message[1:])
                except CandidateLost as error:
                    answer = b"X" + str(error).encode()
                frames.send(channel, answer, candidate.end)
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
        verdict["error"] = f"the judgement took more than {candidate.limits['judgement_seconds']:g} s"
    except (frames.Closed, frames.TooLarge) as error:
        verdict["error"] = f"the test could not go on ({error})"
    finally:
        ours.close()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def main(channel: int) -> None:
    """Serve the trainer at `channel` until it goes."""
    os.environ.clear()
    setup = json.loads(frames.receive(channel, _MAX_REQUEST))
    for name in _PRELOADED:
        importlib.import_module(name)
    layers: dict[str, int] = dict.fromkeys(setup["layers"], 1)
    machine = platform.machine()
    notes = []
    processes = None
    if layers.get("namespaces"):
        try:
            processes = confine.enter_namespaces()
        except OSError as error:
            # Half of it may be done; a fresh server starts without.
            frames.send(channel, json.dumps({"failed": "namespaces", "reason": str(error)}).encode())
            return
    if layers.get("landlock"):
        layers["landlock"] = landlock.version()
        notes += [] if layers["landlock"] else ["no landlock: the kernel has none"]
    if layers.get("seccomp"):
        layers["seccomp"] = int(seccomp.supported(machine))
        notes += [] if layers["seccomp"] else ["no seccomp: not with this kernel or processor"]
    setup["layers"] = {name: layers.get(name, 0) for name in ("namespaces", "landlock", "seccomp")}
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
    user = setup["user"] is not None or os.geteuid() != 0
    frames.send(channel, json.dumps({"layers": setup["layers"], "user": user, "notes": notes}).encode())
    with contextlib.suppress(frames.Closed, frames.Abandoned, ConnectionError):
        while True:
            request = json.loads(frames.receive(channel, _MAX_REQUEST))
            try:
                verdict = judge(control, request, setup, channel)
            except (SyntaxError, ValueError) as error:
                verdict = {"failure": f"the test cannot be read ({error})"}
            frames.send(channel, json.dumps(verdict).encode())
