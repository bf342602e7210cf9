"""A server that judges programs one after the other, for a trainer it shares nothing with but one socket.

It is a bare Python that keeps a second one, the zygote, to fork candidates from, and forks a judge for each test. It
passes calls from the judge to the candidate and answers back, without reading them, and keeps time. What a program
answers is read by the judge alone, which is under limits and can be ended; only a short word on loading is read here:

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

from collm.sandbox import asserts, confine, frames, landlock, library, plain, seccomp
from collm.sandbox.candidate import NONCE_BYTES, READY, serve_forks
from collm.sandbox.confine import SetupFailure
from collm.sandbox.judge import run_judge

# What programs of this kind import; loaded once, so that no candidate waits for it.
_PRELOADED = (
    *("math", "cmath", "re", "string", "collections", "collections.abc", "itertools", "functools", "operator"),
    *("typing", "random", "heapq", "bisect", "copy", "json", "statistics", "fractions", "decimal", "datetime"),
    *("calendar", "hashlib", "enum", "dataclasses", "textwrap", "numbers", "array", "queue", "threading", "time"),
)
_MAX_REQUEST = 1 << 24
_MAX_LOADED = 1 << 16
# Beyond the end of the judgement; a server that takes longer counts as broken.
_SETUP_SECONDS = 5.0
_MAX_TEXT = 300
_LOADED = plain.dumps(["value", None])


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

    def fork(self) -> None:
        """Begin a process that has given up what it must; raises SetupFailure."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        socket.send_fds(self.control, [b"fork"], [theirs.fileno()])
        theirs.close()
        self.channel = ours
        word = self.control.recv(_MAX_LOADED)
        if not word:
            raise ConnectionError("the zygote has gone")
        if not word.isdigit():
            self.channel = None
            ours.close()
            raise SetupFailure("process", word.decode("utf-8", "replace"))
        _await_ready(ours.fileno(), self.end + _SETUP_SECONDS, self.trainer)

    def start(self) -> str:
        """Load the program; returns why it did not load, or nothing."""
        self.fork()
        order = {name: self.request[name] for name in ("program", "entry_point", "counted")}
        return _load_error(self.exchange(json.dumps(order).encode(), _MAX_LOADED))

    def call(self, arguments: bytes) -> bytes:
        """What the program answers to a call."""
        if self.lost >= self.limits["max_timeouts"]:
            raise CandidateLost("not tried: too many calls before were lost")
        if self.channel is None:
            self.start()
        return self.exchange(arguments, self.limits["message_bytes"])

    def exchange(self, message: bytes, limit: int) -> bytes:
        """Send a message and return the answer of at most `limit` bytes, which must carry the same nonce."""
        assert self.channel is not None
        nonce = secrets.token_hex(NONCE_BYTES // 2).encode()
        deadline = min(self.end, time.monotonic() + self.limits["call_seconds"])
        descriptor = self.channel.fileno()
        try:
            frames.send(descriptor, nonce + message, deadline)
            answer = frames.receive(descriptor, limit, deadline, self.trainer)
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


def _await_ready(channel: int, deadline: float, trainer: int) -> None:
    """Wait until the process at `channel` has given up what it must; it runs nothing from elsewhere before."""
    try:
        word = frames.receive(channel, _MAX_LOADED, deadline, trainer)
    except (frames.Closed, frames.Late) as error:
        raise SetupFailure("process", f"it did not come up ({error!r})") from None
    if word != READY:
        failed = json.loads(word)
        raise SetupFailure(failed["failed"], failed["reason"])


def _load_error(answer: bytes) -> str:
    """Why a program did not load; empty if it did."""
    if answer == _LOADED:
        return ""
    try:
        kind, names, text = json.loads(answer)
        name = names[0]
    except (ValueError, TypeError, LookupError, RecursionError):
        kind = None
    if kind != "error" or type(name) is not str or type(text) is not str:
        return "something else than the word on loading was written to the channel"
    return ": ".join(filter(None, (name, text[:_MAX_TEXT]))) or "an exception without a name"


def _cause_of_death(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
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
        _await_ready(channel, candidate.end + _SETUP_SECONDS, candidate.trainer)
        while True:
            message = frames.receive(channel, candidate.limits["message_bytes"], deadline, candidate.trainer)
            if message[:1] == b"C":
                verdict["calls"] += 1
                try:
                    answer = b"R" + candidate.call(message[1:])
                except CandidateLost as error:
                    answer = b"X" + str(error).encode()
                # To read an answer, compare it and put it into a set is work that the program can make long.
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
        whole = deadline == candidate.end
        verdict["error"] = (
            f"the judgement took more than {candidate.limits['judgement_seconds']:g} s"
            if whole
            else f"the test took more than {seconds:g} s over an answer"
        )
    except (frames.Closed, frames.TooLarge) as error:
        verdict["error"] = f"the test could not go on ({error})"
    finally:
        ours.close()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _failed(error: SetupFailure) -> bytes:
    return json.dumps({"failed": error.layer, "reason": error.reason}).encode()


def _try_setup(control: socket.socket, setup: Mapping[str, Any], trainer: int) -> None:
    """Begin a process that runs nothing, to see whether every layer can be switched on."""
    candidate = Candidate(control, {}, setup["limits"], time.monotonic() + _SETUP_SECONDS, trainer)
    try:
        candidate.fork()
    finally:
        candidate.stop()


def _prepare(setup: dict[str, Any]) -> tuple[int | None, list[str]]:
    """Switch on what holds for the whole server, and note in `setup` which layers there are.

    Returns a descriptor of /proc where there are namespaces, and why a layer is missing; raises SetupFailure.
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
            # Half of it may be done; a fresh server starts without.
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
            seccomp.program(machine)  # made once, for every process to come
    setup["layers"] = {name: layers.get(name, 0) for name in ("namespaces", "landlock", "seccomp")}
    setup["rules"] = rules
    setup["libraries"] = sorted(set(libraries.values()))
    return processes, notes


def main(channel: int) -> None:
    """Serve the trainer at `channel` until it goes."""
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
            except OSError as error:  # no descriptors or processes to be had
                verdict = {"failure": f"process: {error}", "setup": True}
            except (SyntaxError, ValueError, RecursionError) as error:
                verdict = {"failure": f"the test cannot be read ({error})"}
            frames.send(channel, json.dumps(verdict).encode())
