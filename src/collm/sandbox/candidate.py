"""The candidate, a process that runs a program, and the zygote, the process from which candidates are forked.

The zygote never sees a program or a test: it only forks, and the child reads the program from its own channel. So the
memory of a candidate contains only its own program and the arguments of its calls.
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
# Suffix of an answer to a call in which the counted function ran.
COUNTED = b"+"
_MAX_MESSAGE = 300
_MAX_NAME = 100
_MAX_REPLY = 200


def serve_forks(control: socket.socket, setup: Mapping[str, Any], processes: int | None) -> None:
    """Fork or end a candidate for each command from `control`; never returns.

    Args:
        control: Socket for the commands: "fork" with a descriptor for the candidate, or "reap".
        setup: Limits and layers; see `server`.
        processes: Descriptor of /proc if there are namespaces.
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
        command, descriptors, _, _ = socket.recv_fds(control, 16, 1)
        if command == b"fork":
            try:
                child = _fork(descriptors[0], control, setup, home)
                control.send(str(child).encode())
            except OSError as error:
                control.send(f"no process: {error}".encode()[:_MAX_REPLY])
            os.close(descriptors[0])
        elif command == b"reap":
            control.send(str(_reap(child, home is not None)).encode())
        else:
            os._exit(0)


def _choose_user() -> int | None:
    """The unprivileged user for candidates and judges if this process runs as root, else None."""
    user = confine.unprivileged_user()
    return user if os.geteuid() == 0 and confine.can_drop(user) else None


def _fork(channel: int, control: socket.socket, setup: Mapping[str, Any], home: int | None) -> int:
    if home is not None:
        # The child is the first process of a new PID namespace; when it ends, the kernel ends all others in it.
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
    """End the candidate and its child processes; returns its exit status."""
    if not alone:
        # The child may not have started its session yet, or the kernel may have ended it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not alone:
        _reap_orphans()
    return status


def _reap_orphans() -> None:
    """End orphans of a candidate, which are now the only children of this process."""
    while True:
        try:
            with open(f"/proc/self/task/{os.getpid()}/children") as file:
                children = [int(pid) for pid in file.read().split()]
        except FileNotFoundError:  # a kernel without this file; seccomp then prevents new processes
            return
        if not children:
            return
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def close_other_descriptors(channel: int, rules: int | None) -> None:
    """Start a session, and close all descriptors but `channel` and `rules`; standard streams go to /dev/null."""
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
    """Drop all rights that untrusted code must not have, then send `READY` over the channel.

    If a protection cannot be switched on, it sends the reason instead and ends the process.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    close_other_descriptors(channel, setup["rules"])
    try:
        # The temporary folder must be private and bounded in size; without namespaces there is none.
        if alone:
            confine.private_temporary(setup["limits"]["temporary_bytes"])
        os.chdir(confine.TEMPORARY if alone else "/")
        confine.confine(setup["limits"], setup["layers"], setup["user"], setup["rules"])
    except (confine.SetupFailure, OSError) as error:
        failed = error if isinstance(error, confine.SetupFailure) else confine.SetupFailure("process", str(error))
        failure = {"failed": failed.layer, "reason": failed.reason[:_MAX_MESSAGE]}
        frames.send(CHANNEL, json.dumps(failure).encode())
        os._exit(71)
    frames.send(CHANNEL, READY)


def _become_candidate(channel: int, setup: Mapping[str, Any], alone: bool) -> None:
    give_up(channel, setup, alone)
    serve_calls(CHANNEL, setup["limits"]["message_bytes"])


def serve_calls(channel: int, limit: int) -> None:
    """Load the program in the first message, then answer calls of its entry point until the channel closes."""
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
    """The program with top-level functions called `name` changed to advance `runs` whenever they run.

    The call that counts is inserted into the body of the function. So recursion gets no deeper, decorators see the
    original function, and another function assigned to the name is not counted.
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
    """An exception as plain data: the names of its classes, and its message."""
    try:
        text = str(error)[:_MAX_MESSAGE]
    except BaseException:
        text = ""
    return plain.dumps(["error", [str(kind.__name__)[:_MAX_NAME] for kind in type(error).__mro__], text])
