"""The trainer's end of one server."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from collm.sandbox import frames
from collm.sandbox.case import Case
from collm.sandbox.limits import LAYERS, Limits, Protections

# A bare interpreter: no site-packages, so no torch to load and none for programs to import. The package is put together
# by hand, so that its own __init__ files do not run and nothing beside it can be found.
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


class Connection:
    """One server process, started when it is first needed.

    Args:
        limits: What each judgement may use.
        layers: Kernel features to use where they exist.
    """

    def __init__(self, limits: Limits, layers: tuple[str, ...]):
        self.limits = limits
        self.layers = layers
        self.process: subprocess.Popen | None = None
        self.channel: socket.socket | None = None

    def start(self) -> Protections:
        """Start the process; without the layers that turn out not to be allowed."""
        notes: tuple[str, ...] = ()
        while True:
            answer = self._launch()
            if "failed" not in answer:
                break
            self.close()
            self.layers = tuple(name for name in self.layers if name != answer["failed"])
            notes += (f"no {answer['failed']}: {answer['reason']}",)
        layers = {name: bool(answer["layers"][name]) for name in LAYERS}
        return Protections.of(layers, answer["user"], (*notes, *answer["notes"]))

    def _launch(self) -> dict[str, Any]:
        folder = Path(__file__).parent
        ours, theirs = socket.socketpair()
        boot = _BOOT.format(package=str(folder.parent), sandbox=str(folder), channel=theirs.fileno())
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-S", "-s", "-B", "-c", boot],
                # Sets and dicts come out in the same order in every run.
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
        setup = {"limits": self.limits.plain(), "layers": self.layers}
        return self._exchange(setup, _START_SECONDS)

    def judge(self, case: Case) -> dict[str, Any]:
        """The server's answer to a case."""
        if self.process is None:
            self.start()
        request = {
            "program": case.program,
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
        """End the process and all it started; it cleans up when its channel closes."""
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
