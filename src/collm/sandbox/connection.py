"""The trainer's connection to one sandbox server."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from collm.sandbox import frames
from collm.sandbox.case import Case, Verdict, verdict_of
from collm.sandbox.confine import SetupFailure
from collm.sandbox.limits import LAYERS, Limits, Protections
from collm.sandbox.probe import complaints, probe

# A bare interpreter without site-packages, so there is no torch to load or for programs to import. The package modules
# are created by hand, so that its __init__ files do not run and no other package can be found.
_BOOT = """\
import sys, types
for name, path in (("collm", {package!r}), ("collm.sandbox", {sandbox!r})):
    module = sys.modules[name] = types.ModuleType(name)
    module.__path__ = [path]
sys.path[:] = [path for path in sys.path if path]
from collm.sandbox.server import main
main({channel})
"""
_MAX_VERDICT = 1 << 24
_START_SECONDS = 30.0
_GRACE_SECONDS = 10.0
_END_SECONDS = 2.0
# A character of the program takes at most six bytes in a message.
_BYTES_PER_CHARACTER = 6
_MALFORMED = (ValueError, TypeError, LookupError, RecursionError)


class Broken(Exception):
    """The server ended, did not answer in time, or sent an invalid answer."""


class Unreadable(Exception):
    """The test is not valid Python."""


class Connection:
    """One server process, started when it is first needed.

    Args:
        limits: What each judgement may use.
        layers: Kernel features to use if they exist.
        promised: Protections that every start must have; None to promise those of the first start.
    """

    def __init__(self, limits: Limits, layers: tuple[str, ...], promised: Protections | None = None):
        self.limits = limits
        self.layers = layers
        self.promised = promised
        self.libraries: list[str] = []
        self.process: subprocess.Popen | None = None
        self.channel: socket.socket | None = None

    def start(self) -> Protections:
        """Start the process and run the probe, which tries to escape.

        The first start drops layers that the kernel does not allow; later starts must have the promised ones.

        Raises:
            SetupFailure: The server did not start, lacks promised protections, or the probe escaped.
        """
        try:
            protections = self._start()
            lost = [] if self.promised is None else protections.lacks(self.promised)
            if lost:
                raise SetupFailure("promise", f"a server started without {', '.join(lost)} ({protections})")
            faults = complaints(self._ask(probe(self.libraries)), protections)
            if faults:
                raise SetupFailure("promise", f"The sandbox does not keep what it promises: {'; '.join(faults)}")
        except SetupFailure:
            self.close()
            raise
        except (frames.Closed, frames.Late, frames.TooLarge, OSError, *_MALFORMED) as error:
            self.close()
            raise SetupFailure("server", f"it did not start ({error!r})") from error
        self.promised = protections
        return protections

    def _start(self) -> Protections:
        notes: tuple[str, ...] = ()
        while True:
            answer = self._launch()
            if "failed" not in answer:
                break
            self.close()
            if self.promised is not None or answer["failed"] not in self.layers:
                raise SetupFailure(answer["failed"], answer["reason"])
            self.layers = tuple(name for name in self.layers if name != answer["failed"])
            notes += (f"no {answer['failed']}: {answer['reason']}",)
        self.libraries = [str(path) for path in answer["libraries"]]
        layers = {name: bool(answer["layers"][name]) for name in LAYERS}
        return Protections.of(layers, answer["user"], (*notes, *answer["notes"]))

    def _launch(self) -> dict[str, Any]:
        folder = Path(__file__).parent
        ours, theirs = socket.socketpair()
        boot = _BOOT.format(package=str(folder.parent), sandbox=str(folder), channel=theirs.fileno())
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-S", "-s", "-B", "-c", boot],
                # Sets iterate in the same order in every run.
                env={"PYTHONHASHSEED": "0"},
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        ours.setblocking(False)
        self.channel = ours
        setup = {"limits": asdict(self.limits), "layers": self.layers}
        return self._exchange(setup, _START_SECONDS)

    def judge(self, case: Case) -> Verdict:
        """The server's verdict on a case.

        Raises:
            SetupFailure: A process could not be confined, or the server could not start.
            Broken: The server did not answer; it is ended.
            Unreadable: The test is not valid Python.
        """
        if self.process is None:
            self.start()
        try:
            answer = self._ask(case)
            if "failure" not in answer:
                return verdict_of(answer)
            failure, setup = str(answer["failure"]), bool(answer.get("setup"))
        except (frames.Closed, frames.Late, frames.TooLarge, OSError, *_MALFORMED) as error:
            self.close()
            raise Broken(repr(error)) from error
        if not setup:
            raise Unreadable(failure)
        self.close()
        raise SetupFailure("server", failure)

    def _ask(self, case: Case) -> dict[str, Any]:
        """The server's answer to a case."""
        program, most = case.program, self.limits.message_bytes // _BYTES_PER_CHARACTER
        if len(program) > most:
            program = f"raise ValueError('the program is longer than {most} characters')"
        request = {
            "program": program,
            "entry_point": case.entry_point,
            "test": case.test,
            "prelude": case.prelude,
            "counted": case.counted,
        }
        return self._exchange(request, self.limits.judgement_seconds + _GRACE_SECONDS)

    def _exchange(self, message: dict[str, Any], seconds: float) -> dict[str, Any]:
        if self.channel is None:
            raise frames.Closed("not started")
        deadline = time.monotonic() + seconds
        frames.send(self.channel.fileno(), json.dumps(message).encode(), deadline)
        return json.loads(frames.receive(self.channel.fileno(), _MAX_VERDICT, deadline))

    def close(self) -> None:
        """End the process and its children; the server cleans up when its channel closes."""
        if self.channel is not None:
            self.channel.close()
            self.channel = None
        if self.process is not None:
            try:
                self.process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            self.process = None
