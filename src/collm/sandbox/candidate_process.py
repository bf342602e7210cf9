"""The server's side of a candidate: a program in a process of its own, which is forked, called and ended."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import time
from collections.abc import Mapping
from typing import Any

from collm.sandbox import frames, plain
from collm.sandbox.candidate import NONCE_BYTES, READY
from collm.sandbox.confine import SetupFailure

SETUP_SECONDS = 5.0
"""Time for starting a process, beyond the end of the judgement; a server that takes longer counts as crashed."""
_MAX_LOADED = 1 << 16
_MAX_TEXT = 300
_LOADED = plain.dumps(["value", None])


class CandidateLost(Exception):
    """The candidate cannot answer: it timed out, ended, or sent an invalid message."""


class Candidate:
    """A program in its own process, which is restarted after a lost call.

    Args:
        control: Socket to the zygote.
        request: Program and entry point.
        limits: Fields of `Limits`.
        end: Deadline of the judgement.
        trainer: Descriptor of the trainer's socket; work stops when the trainer closes it.
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
        """Start a confined process; raises SetupFailure."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        socket.send_fds(self.control, [b"fork"], [theirs.fileno()])
        theirs.close()
        self.channel = ours
        reply = self.control.recv(_MAX_LOADED)
        if not reply:
            raise ConnectionError("the zygote has ended")
        if not reply.isdigit():
            self.channel = None
            ours.close()
            raise SetupFailure("process", reply.decode("utf-8", "replace"))
        await_ready(ours.fileno(), self.end + SETUP_SECONDS, self.trainer)

    def start(self) -> str:
        """Load the program; returns why it did not load, or an empty text."""
        self.fork()
        order = {name: self.request[name] for name in ("program", "entry_point", "counted")}
        return _load_error(self.exchange(json.dumps(order).encode(), _MAX_LOADED))

    def call(self, arguments: bytes) -> bytes:
        """The program's answer to a call."""
        if self.lost >= self.limits["max_timeouts"]:
            raise CandidateLost("not tried: too many earlier calls were lost")
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
            raise CandidateLost("the program wrote something other than the answer to the channel")
        return answer[NONCE_BYTES:]

    def stop(self) -> int:
        """End the process, if there is one, and its children; returns its exit status."""
        if self.channel is None:
            return 0
        self.lost += 1
        self.channel.close()
        self.channel = None
        self.control.send(b"reap")
        status = self.control.recv(32)
        if not status:
            raise ConnectionError("the zygote has ended")
        return int(status)


def await_ready(channel: int, deadline: float, trainer: int) -> None:
    """Wait until the process at `channel` is confined; before that it runs no untrusted code."""
    try:
        message = frames.receive(channel, _MAX_LOADED, deadline, trainer)
    except (frames.Closed, frames.Late) as error:
        raise SetupFailure("process", f"it did not start ({error!r})") from None
    if message != READY:
        failed = json.loads(message)
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
        return "the program wrote to the channel while it was loaded"
    return ": ".join(filter(None, (name, text[:_MAX_TEXT]))) or "an exception without a name"


def _cause_of_death(status: int) -> str:
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
        return f"the process was ended by {name}" + (" (CPU time or memory)" if name == "SIGKILL" else "")
    return f"the process ended itself with status {os.WEXITSTATUS(status)}"
