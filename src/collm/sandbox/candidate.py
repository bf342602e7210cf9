"""The process that runs a program, and the one it is forked from.

The zygote never sees a program or a test: it is told to fork, and the child reads the program from a channel of its
own. So there is nothing in a candidate's memory to find but its own program and the arguments it was called with.
"""

from __future__ import annotations

import ast
import contextlib
import itertools
import json
import os
import signal
import socket
from collections.abc import Iterator, Mapping
from typing import Any

from collm.sandbox import confine, frames, kernel, plain

CHANNEL = 3
READY = b"ready"
NONCE_BYTES = 16
# Ends an answer to a call in which the counted function ran.
COUNTED = b"+"
_MAX_MESSAGE = 300
_MAX_NAME = 100
_MAX_WORD = 200


def serve_forks(control: socket.socket, setup: Mapping[str, Any], processes: int | None) -> None:
    """Fork a candidate, or end it, at each word from `control`; never returns.

    Args:
        control: Where words come from: "fork" with a descriptor for the candidate, or "reap".
        setup: Limits and layers; see `server`.
        processes: Descriptor of /proc where there are namespaces.
    """
    home = None
    if processes is None:
        kernel.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1)
    else:
        home = os.open("self/ns/pid", os.O_RDONLY | os.O_CLOEXEC, dir_fd=processes)
        os.close(processes)
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    setup = {**setup, "user": _choose_user()}
    control.send(json.dumps(setup["user"]).encode())
    child = 0
    while True:
        word, descriptors, _, _ = socket.recv_fds(control, 16, 1)
        if word == b"fork":
            try:
                child = _fork(descriptors[0], control, setup, home)
                control.send(str(child).encode())
            except OSError as error:
                control.send(f"no process: {error}".encode()[:_MAX_WORD])
            os.close(descriptors[0])
        elif word == b"reap":
            control.send(str(_reap(child, home is not None)).encode())
        else:
            os._exit(0)


def _choose_user() -> int | None:
    """Whom candidates and judges become if this is root: somebody without rights."""
    user = confine.unprivileged_user()
    return user if os.geteuid() == 0 and confine.can_drop(user) else None


def _fork(channel: int, control: socket.socket, setup: Mapping[str, Any], home: int | None) -> int:
    if home is not None:
        # The child is the first of a process space of its own, which ends with it, whatever it started.
        kernel.unshare(kernel.CLONE_NEWPID)
    try:
        child = os.fork()
        if child == 0:
            try:
                control.detach()
                _become_candidate(channel, setup, home is not None)
            finally:
                os._exit(70)
    finally:
        if home is not None:
            kernel.setns(home, kernel.CLONE_NEWPID)
    return child


def _reap(child: int, alone: bool) -> int:
    """End the candidate and all it started; returns the status it ended with."""
    if not alone:
        # The child may not have begun its own session yet, or have been ended by the kernel.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not alone:
        _reap_orphans()
    return status


def _reap_orphans() -> None:
    """End what a candidate left behind: orphans become children of this process, which has no others."""
    while True:
        try:
            with open(f"/proc/self/task/{os.getpid()}/children") as file:
                children = [int(pid) for pid in file.read().split()]
        except FileNotFoundError:  # a kernel without this file; then processes cannot be made in the first place
            return
        if not children:
            return
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def settle(channel: int, rules: int | None) -> None:
    """Lead a session with `channel` and `rules` as the only descriptors, besides standard ones that lead nowhere."""
    os.setsid()
    nowhere = os.open("/dev/null", os.O_RDWR)
    for standard in range(CHANNEL):
        os.dup2(nowhere, standard)
    if channel != CHANNEL:
        os.dup2(channel, CHANNEL)
    kept = CHANNEL if rules is None else rules
    os.closerange(CHANNEL + 1, kept)
    os.closerange(kept + 1, 4096)


def give_up(channel: int, setup: Mapping[str, Any], alone: bool) -> None:
    """Give up what code from elsewhere must not have, and say at the channel that this is done.

    Ends the process, after saying why, where that does not work: then nothing may run.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    settle(channel, setup["rules"])
    try:
        # A scratch folder needs to be private and bounded; where it cannot be, there is none and nothing is writable.
        if alone:
            confine.private_scratch(setup["limits"]["scratch_bytes"])
        os.chdir(confine.SCRATCH if alone else "/")
        confine.confine(setup["limits"], setup["layers"], setup["user"], setup["rules"])
    except (confine.SetupFailure, OSError) as error:
        failed = error if isinstance(error, confine.SetupFailure) else confine.SetupFailure("process", str(error))
        word = {"failed": failed.layer, "reason": failed.reason[:_MAX_MESSAGE]}
        frames.send(CHANNEL, json.dumps(word).encode())
        os._exit(71)
    frames.send(CHANNEL, READY)


def _become_candidate(channel: int, setup: Mapping[str, Any], alone: bool) -> None:
    give_up(channel, setup, alone)
    serve_calls(CHANNEL, setup["limits"]["message_bytes"])


def serve_calls(channel: int, limit: int) -> None:
    """Load the program that comes first and answer calls of its entry point until the channel closes."""
    message = frames.receive(channel, 2 * limit)
    nonce, order = message[:NONCE_BYTES], json.loads(message[NONCE_BYTES:])
    namespace: dict[str, Any] = {"__name__": "candidate"}
    runs = itertools.count()
    try:
        exec(compile(_counting(order["program"], order["counted"], namespace, runs), "<program>", "exec"), namespace)
        function = namespace[order["entry_point"]]
        reply = plain.dumps(["value", None])
    except BaseException as error:
        reply, function = _describe(error), None
    frames.send(channel, nonce + reply)
    while function is not None:
        message = frames.receive(channel, limit)
        nonce = message[:NONCE_BYTES]
        before = next(runs) + 1
        try:
            arguments, keywords = plain.loads(message[NONCE_BYTES:])
            reply = plain.dumps(["value", function(*arguments, **keywords)])
            if len(reply) > limit - NONCE_BYTES - len(COUNTED):
                raise plain.NotPlain(f"the result is larger than {limit} bytes")
        except BaseException as error:
            reply = _describe(error)
        frames.send(channel, nonce + reply + (COUNTED if next(runs) > before else b""))


def _counting(program: str, name: str, namespace: dict[str, Any], runs: Iterator[int]) -> ast.Module | str:
    """The program, whose functions called `name` at its top level advance `runs` whenever they run.

    The step is taken within the function, so that a recursion is no deeper, a decorator sees the function it was
    written for, and a function that took over its name is not counted.
    """
    if not name:
        return program
    tree = ast.parse(program)
    step = f"__{os.urandom(8).hex()}"
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name == name:
            namespace[step] = runs.__next__
            call = ast.copy_location(ast.Expr(ast.Call(ast.Name(step, ast.Load()), [], [])), node)
            has_text = ast.get_docstring(node, clean=False) is not None
            node.body.insert(int(has_text), ast.fix_missing_locations(call))
    return tree


def _describe(error: BaseException) -> bytes:
    """What went wrong, as plain data: the names of the exception's classes, and what it says."""
    try:
        text = str(error)[:_MAX_MESSAGE]
    except BaseException:
        text = ""
    return plain.dumps(["error", [str(kind.__name__)[:_MAX_NAME] for kind in type(error).__mro__], text])
