"""The process that runs a test.

The candidate runs in another process; a proxy here sends calls and receives plain data. A test is trusted, but the
values that the candidate returns can make it slow or large, so it runs under limits as well.
"""

from __future__ import annotations

import builtins
import json
import os
import random
from collections.abc import Mapping
from typing import Any

from collm.sandbox import asserts, frames, plain
from collm.sandbox.candidate import CHANNEL, COUNTED, give_up

_MAX_MESSAGE = 300


class CandidateError(Exception):
    """The candidate raised an exception whose class does not exist here."""


class CandidateLost(BaseException):
    """The candidate timed out or ended; a BaseException, so that no test takes it for an expected exception."""


def describe(error: BaseException) -> str:
    """Type and message of an exception."""
    try:
        text = str(error)[:_MAX_MESSAGE]
    except (ValueError, RecursionError, MemoryError):
        text = "the message is too large to show"
    name = "" if isinstance(error, CandidateLost) else type(error).__name__
    return f"{name}: {text}" if name and text else name or text


def run_judge(channel: int, request: Mapping[str, Any], setup: Mapping[str, Any]) -> None:
    """Run the test of `request` and report over `channel`; never returns."""
    try:
        give_up(channel, setup, alone=False)
        _run(request, setup["limits"]["message_bytes"])
    finally:
        os._exit(70)


def _run(request: Mapping[str, Any], limit: int) -> None:
    counted = False

    def send(entry: dict[str, Any]) -> None:
        frames.send(CHANNEL, b"U" + json.dumps({**entry, "counted": counted}).encode())

    def report(number: int, passed: bool, detail: str) -> None:
        send({"unit": number, "passed": passed, "detail": detail})

    def candidate(*arguments: Any, **keywords: Any) -> Any:
        nonlocal counted
        frames.send(CHANNEL, b"C" + plain.dumps([list(arguments), keywords]))
        reply = frames.receive(CHANNEL, limit + 1)
        if reply[:1] == b"X":
            raise CandidateLost(reply[1:].decode())
        counted |= reply.endswith(COUNTED)
        return _decode(reply[1:].removesuffix(COUNTED))

    random.seed(0)
    test, repeated = asserts.instrument(request["test"])
    recorder = asserts.Recorder(report, describe, repeated)
    namespace: dict[str, Any] = {"__name__": "test", **recorder.names}
    outcome: dict[str, Any] = {"done": True, "error": ""}
    try:
        exec(compile(request["prelude"], "<prelude>", "exec"), namespace)
        namespace.update({"candidate": candidate, request["entry_point"]: candidate})
        exec(compile(test, "<test>", "exec"), namespace)
        if callable(namespace.get("check")):
            namespace["check"](candidate)
    except BaseException as error:
        outcome = {"done": False, "error": describe(error)}
    recorder.finish(outcome["done"])
    send(outcome)
    os._exit(0)


def _decode(data: bytes) -> Any:
    """The value that the candidate returned, or the exception that it raised."""
    try:
        kind, *content = plain.loads(data)
        if kind == "value":
            (value,) = content
            return value
        names, text = content
        chain = [str(name) for name in names]
        text = str(text)[:_MAX_MESSAGE]
    except (ValueError, TypeError) as error:
        raise CandidateError(f"the answer is not plain data ({error})") from None
    for name in chain:
        known = getattr(builtins, name, None)
        # An exception that ends an iteration would make `all(map(candidate, ...))` true.
        if known is Exception or known in (StopIteration, StopAsyncIteration):
            break
        if isinstance(known, type) and issubclass(known, Exception):
            raise _raised(known, text)
    raise CandidateError(": ".join(part for part in (chain[0] if chain else "", text) if part))


def _raised(kind: type[Exception], text: str) -> Exception:
    """An exception of a builtin class, some of which need more arguments than a message."""
    try:
        return kind(text)
    except TypeError:
        return CandidateError(f"{kind.__name__}: {text}")
