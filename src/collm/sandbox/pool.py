"""The sandbox: a pool of servers with a cache of verdicts."""

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
from typing import Annotated, Any

from collm.errors import ConfigurationError
from collm.runtime.checks import COUNT, Count, CountOrZero, Positive, Range, checked
from collm.sandbox.asserts import units_of
from collm.sandbox.case import Case, Verdict, verdict_against
from collm.sandbox.confine import SetupFailure
from collm.sandbox.connection import Broken, Connection, Unreadable
from collm.sandbox.limits import LAYERS, MIB, Limits, Protections


class SandboxFailure(RuntimeError):
    """The sandbox itself failed, so there is no verdict; never raised because of what a program does."""


class Sandbox:
    """Runs programs that a model wrote against their tests, in parallel, in other processes and under limits.

    The servers start when `protections` is read or the first program is judged. Then a probe tries to escape, and the
    protections are printed to standard error. A missing essential protection is an error unless `allow_unsafe` is set.

    Args:
        workers: Programs judged at the same time; null for the number of CPU cores, at most 8.
        call_seconds: Time for one call of the program, and for loading it.
        judgement_seconds: Time for the complete test of one program.
        max_timeouts: Lost calls after which the other asserts of the test count as failed.
        memory_mb: Memory of a process that runs a program.
        cache_size: Number of cached verdicts, by content of program and test; 0 for no cache.
        allow_unsafe: Run even without an essential protection. Only for programs that you trust.
        layers: Kernel features to use if they exist: namespaces, landlock, seccomp.
    """

    @checked
    def __init__(
        self,
        workers: Count | None = None,
        call_seconds: Positive = 3.0,
        judgement_seconds: Positive = 20.0,
        max_timeouts: Count = 3,
        memory_mb: Annotated[int, Range(64, COUNT.most, whole=True)] = 512,
        cache_size: CountOrZero = 10_000,
        allow_unsafe: bool = False,
        layers: tuple[str, ...] = LAYERS,
    ):
        if call_seconds > judgement_seconds:
            raise ConfigurationError(
                f"Sandbox.call_seconds is {call_seconds}, more than judgement_seconds, {judgement_seconds}; lower it."
            )
        unknown = sorted(set(layers) - set(LAYERS))
        if unknown:
            raise ConfigurationError(f"Sandbox.layers: there are no layers {unknown}; choose from {', '.join(LAYERS)}.")
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
        """Reset to a state without servers, for a new object or in a forked process."""
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
        """The protections of the machine from programs; starts the servers if necessary."""
        return self._started().protections

    def judge(self, case: Case) -> Verdict:
        """The verdict on one case."""
        return self.submit(case).result()

    def judge_all(self, cases: Sequence[Case]) -> list[Verdict]:
        """The verdicts on `cases`, which are judged in parallel."""
        return [future.result() for future in [self.submit(case) for case in cases]]

    def submit(self, case: Case) -> Future[Verdict]:
        """Start to judge a case; identical cases are judged once."""
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
            # A forked process must not use its parent's servers.
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
    """Whether the sandbox failed or crashed, so that the case is tried again instead of cached."""
    return future.done() and (future.exception() is not None or future.result().broke)


class _Pool:
    """Servers and the threads that communicate with them."""

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
        """The verdict on `case` from any idle server; a server that crashes is restarted once.

        If two servers crashed while judging the program and a third one starts and passes the probe, the program is
        the cause and has failed. If servers cannot be set up, the sandbox has failed and there is no verdict.
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
                    return verdict_against(units, f"it crashed the sandbox's server twice ({faults[-1]})")
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
