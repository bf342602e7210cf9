"""A pool of servers, a cache of verdicts, and the word on what protects the machine."""

from __future__ import annotations

import atexit
import os
import queue
import sys
import threading
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from collm.errors import ConfigurationError
from collm.sandbox.asserts import units_of
from collm.sandbox.case import Case, Verdict, verdict_against
from collm.sandbox.confine import SetupFailure
from collm.sandbox.connection import Broken, Connection, Unreadable
from collm.sandbox.limits import LAYERS, MIB, Limits, Protections


class SandboxFailure(RuntimeError):
    """The sandbox itself could not work, so that there is no verdict. What a program does is never a reason."""


class Sandbox:
    """Judges programs that a model wrote, many side by side, each outside this process and under limits.

    Nothing starts before `protections` are asked for or something is judged. Then a probe tries to get out, what
    protects the machine is said on standard error, and it is an error if something essential is missing, unless
    `allow_unsafe` says otherwise.

    Args:
        workers: Programs judged at the same time; null for one for each CPU core, at most 8.
        call_seconds: Time for one call of the program, and for loading it.
        judgement_seconds: Time for the whole test of one program.
        max_timeouts: Lost calls after which the other asserts of the test count as failed.
        memory_mb: Memory of a process that runs a program.
        cache_size: Verdicts that are remembered by content; 0 for none.
        allow_unsafe: Run even where an essential protection cannot be had. Then run nothing but programs you trust.
        layers: Kernel features to use where they exist: namespaces, landlock, seccomp.
    """

    def __init__(
        self,
        workers: int | None = None,
        call_seconds: float = 3.0,
        judgement_seconds: float = 20.0,
        max_timeouts: int = 3,
        memory_mb: int = 512,
        cache_size: int = 10_000,
        allow_unsafe: bool = False,
        layers: tuple[str, ...] = LAYERS,
    ):
        for name, value, least in (
            ("workers", 1 if workers is None else workers, 1),
            ("max_timeouts", max_timeouts, 1),
            ("memory_mb", memory_mb, 64),
            ("cache_size", cache_size, 0),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigurationError(f"sandbox: {name} is {value!r}; give a whole number of at least {least}.")
        if not 0 < call_seconds <= judgement_seconds:
            raise ConfigurationError(
                f"sandbox: call_seconds is {call_seconds} and judgement_seconds {judgement_seconds}; the first must be "
                "above 0 and at most the second."
            )
        unknown = sorted(set(layers) - set(LAYERS))
        if unknown:
            raise ConfigurationError(f"sandbox: there are no layers {unknown}; choose from {', '.join(LAYERS)}.")
        self.limits = Limits(
            call_seconds=call_seconds,
            judgement_seconds=judgement_seconds,
            cpu_seconds=max(1, int(judgement_seconds + 0.999)),
            max_timeouts=max_timeouts,
            memory_bytes=memory_mb * MIB,
        )
        self.workers = workers or min(8, len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1)
        self.cache_size = cache_size
        self.allow_unsafe = allow_unsafe
        self.layers = tuple(name for name in LAYERS if name in layers)
        self._forget()

    def _forget(self) -> None:
        """Begin without servers, as a fresh object or in another process."""
        self._lock = threading.Lock()
        self._cache: OrderedDict[str, Future[Verdict]] = OrderedDict()
        self._pool: _Pool | None = None
        self._owner = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    @property
    def protections(self) -> Protections:
        """What is between programs and the machine; starts the servers if need be."""
        return self._started().protections

    def judge(self, case: Case) -> Verdict:
        """The verdict on one case."""
        return self.submit(case).result()

    def judge_all(self, cases: Sequence[Case]) -> list[Verdict]:
        """The verdicts on `cases`, which are judged side by side."""
        return [future.result() for future in [self.submit(case) for case in cases]]

    def submit(self, case: Case) -> Future[Verdict]:
        """Begin to judge a case; the same content is judged once."""
        pool = self._started()
        key = case.key
        with self._lock:
            future = self._cache.pop(key, None)
            if future is None or _failed(future):
                future = pool.executor.submit(pool.judge, case)
            if self.cache_size:
                self._cache[key] = future
                while len(self._cache) > self.cache_size:
                    self._cache.popitem(last=False)
        return future

    def _started(self) -> _Pool:
        if self._owner != os.getpid():
            # A forked process must not talk to its parent's servers.
            self._forget()
        with self._lock:
            if self._pool is None:
                self._pool = _Pool(self.workers, self.limits, self.layers, self.allow_unsafe)
                weakref.finalize(self, self._pool.close)
            return self._pool

    def close(self) -> None:
        """End the servers; the next judgement starts new ones."""
        with self._lock:
            if self._pool is not None and self._owner == os.getpid():
                self._pool.close()
            self._pool = None


def _failed(future: Future[Verdict]) -> bool:
    """Whether there is no verdict of a working sandbox, which is tried again rather than remembered."""
    return future.done() and (future.exception() is not None or future.result().broke)


class _Pool:
    """Servers and the threads that talk to them."""

    def __init__(self, workers: int, limits: Limits, layers: tuple[str, ...], allow_unsafe: bool):
        if sys.platform != "linux":
            raise ConfigurationError("The sandbox for programs that models write needs Linux.")
        self.limits = limits
        self.servers: list[Connection] = []
        self.idle: queue.SimpleQueue[Connection] = queue.SimpleQueue()
        self.closed = False
        first = Connection(limits, layers)
        self.servers.append(first)
        try:
            self.protections = first.start()
        except SetupFailure as error:
            raise SandboxFailure(f"The sandbox could not be set up: {error}.") from error
        if self.protections.missing:
            message = (
                f"Programs that a model writes would run without these protections: "
                f"{', '.join(self.protections.missing)} ({self.protections})."
            )
            if not allow_unsafe:
                first.close()
                raise ConfigurationError(
                    f"{message} Use a kernel and container that allow user namespaces, or Landlock and seccomp; or set "
                    "allow_unsafe of the sandbox to true if you trust every program."
                )
            warnings.warn(message, stacklevel=4)
        print(self.protections, file=sys.stderr)
        self.servers += [Connection(limits, first.layers, self.protections) for _ in range(workers - 1)]
        for server in self.servers:
            self.idle.put(server)
        self.executor = ThreadPoolExecutor(workers, thread_name_prefix="sandbox")
        atexit.register(self.close)

    def judge(self, case: Case) -> Verdict:
        """The verdict on `case` by whichever server is free; a server that breaks is replaced once.

        A program over which two servers broke down, while a third comes up and withstands the probe, is the cause of
        that and has failed. Where servers cannot be set up, nothing is said about the program.
        """
        server = self.idle.get()
        faults: list[Exception] = []
        try:
            for _ in range(2):
                if self.closed:
                    raise SandboxFailure("The sandbox was closed.")
                try:
                    return server.judge(case)
                except Unreadable as error:
                    raise SandboxFailure(str(error)) from error
                except (Broken, SetupFailure) as error:
                    faults.append(error)
            if not any(isinstance(fault, SetupFailure) for fault in faults):
                try:
                    server.start()
                except SetupFailure as error:
                    faults.append(error)
                else:
                    units = [(unit.line, unit.text) for unit in units_of(case.test)]
                    return verdict_against(units, f"the sandbox's server broke down twice over it ({faults[-1]})")
            raise SandboxFailure(f"The sandbox could not be set up: {faults[-1]}.") from faults[-1]
        finally:
            self.idle.put(server)

    def close(self) -> None:
        """End all servers."""
        self.closed = True
        atexit.unregister(self.close)
        self.executor.shutdown(wait=False, cancel_futures=True)
        for server in self.servers:
            server.close()
