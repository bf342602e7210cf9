"""Calls of functions that a user wrote: found by import path, and called under a time limit.

Plain functions are called one after the other in a thread; asynchronous ones side by side, up to a limit. A thread
cannot be stopped: a plain call that exceeds its time goes on in the background, and its result is dropped.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import math
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from collm.errors import ConfigurationError, shortened


class TooSlow(Exception):
    """A call exceeded its time limit."""


def load_function(setting: str, path: Any) -> Callable[..., Any]:
    """The function of an import path such as `my_rewards.brevity`; the current folder is importable.

    Args:
        setting: Name of the setting, for messages.
        path: The import path.

    Raises:
        ConfigurationError: There is no such module or function, or the module cannot be imported.
    """
    if not isinstance(path, str) or not all(part.isidentifier() for part in path.split(".")) or "." not in path:
        raise ConfigurationError(f"{setting} is {path!r:.80}; give an import path such as my_rewards.brevity.")
    module_name, _, name = path.rpartition(".")
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
        importlib.invalidate_caches()
    try:
        module = importlib.import_module(module_name)
    # Whatever the user's module does when it is imported.
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigurationError(
                f"{setting} is {path!r}, but there is no module {error.name!r} (looked in {folder} and the installed "
                f"packages); start where {module_name.split('.')[0]}.py is, or correct the name."
            ) from error
        raise ConfigurationError(
            f"{setting} is {path!r}, but importing {module_name} failed: {described(error)}; mend that module."
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        found = sorted(
            key
            for key, value in vars(module).items()
            if inspect.isroutine(value) and getattr(value, "__module__", None) == module_name
        )
        raise ConfigurationError(
            f"{setting} is {path!r}, but {module_name} has no function {name!r} (it has {found[:10]}); correct it."
        )
    return function


def described(error: BaseException) -> str:
    """Type, message and place of an error in the user's code."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({os.path.basename(frames[-1].filename)} line {frames[-1].lineno})" if frames else ""
    return shortened(f"{type(error).__name__}: {error}{place}", 400)


def is_async(function: Callable[..., Any]) -> bool:
    """Whether a call of `function` returns a coroutine."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(getattr(function, "__call__", None))  # noqa: B004


class Calls:
    """Calls of one function.

    Args:
        function: A plain or an asynchronous function.
        seconds: Time limit of one call.
        max_concurrent: Number of calls of an asynchronous function at the same time.
    """

    def __init__(self, function: Callable[..., Any], seconds: float, max_concurrent: int) -> None:
        self.function = function
        self.seconds = seconds
        self.max_concurrent = max_concurrent

    def run(self, arguments: Sequence[tuple[tuple, dict[str, Any]]]) -> list[Any]:
        """The result of a call with each of `arguments` (positional ones, named ones), or the exception it raised."""
        return (self._side_by_side if is_async(self.function) else self._in_turn)(arguments)

    def _in_turn(self, arguments: Sequence[tuple[tuple, dict[str, Any]]]) -> list[Any]:
        results: list[Any] = []
        while len(results) < len(arguments):
            worker = _Worker(self.function, arguments[len(results) :])
            start_thread(worker.work)
            while len(results) < len(arguments):
                try:
                    results.append(worker.answers.get(timeout=self.seconds))
                except queue.Empty:
                    if worker.leave():
                        results.append(TooSlow(f"took longer than {self.seconds:g} s"))
                        break
        return results

    def _side_by_side(self, arguments: Sequence[tuple[tuple, dict[str, Any]]]) -> list[Any]:
        answer: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()
        start_thread(lambda: answer.put(asyncio.run(self._gather(arguments))))
        rounds = math.ceil(len(arguments) / self.max_concurrent)
        try:
            return answer.get(timeout=1.1 * rounds * self.seconds + 1.0)
        except queue.Empty:  # the function blocks the event loop, so its time limit did not work
            return [TooSlow(f"took longer than {self.seconds:g} s without an await")] * len(arguments)

    async def _gather(self, arguments: Sequence[tuple[tuple, dict[str, Any]]]) -> list[Any]:
        gate = asyncio.Semaphore(self.max_concurrent)

        async def answer(positional: tuple, by_name: dict[str, Any]) -> Any:
            try:
                return await self.function(*positional, **by_name)
            except (SystemExit, KeyboardInterrupt) as error:  # which would end the event loop
                return error

        async def call(positional: tuple, by_name: dict[str, Any]) -> Any:
            async with gate:
                task = asyncio.ensure_future(answer(positional, by_name))
                await asyncio.wait([task], timeout=self.seconds)
                if not task.done():
                    task.cancel()
                    return TooSlow(f"took longer than {self.seconds:g} s")
                return task.exception() or task.result()

        return await asyncio.gather(*(call(*each) for each in arguments), return_exceptions=True)


class _Worker:
    """Calls `function` with each of `arguments` until it is left; each result or exception goes to `answers`."""

    def __init__(self, function: Callable[..., Any], arguments: Sequence[tuple[tuple, dict[str, Any]]]) -> None:
        self.function = function
        self.arguments = arguments
        self.answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._is_left = False
        self._lock = threading.Lock()

    def work(self) -> None:
        """Make the calls; the one during which it was left is the last."""
        for positional, by_name in self.arguments:
            try:
                answer = self.function(*positional, **by_name)
            except BaseException as error:  # also SystemExit, which would end the thread silently
                answer = error
            with self._lock:
                if self._is_left:
                    return
                self.answers.put(answer)

    def leave(self) -> bool:
        """Whether the worker is left now; not if an answer has come in the meantime."""
        with self._lock:
            self._is_left = self.answers.empty()
            return self._is_left


def start_thread(target: Callable[..., None], *arguments: Any) -> None:
    """Run `target` in a thread that does not keep the process alive."""
    threading.Thread(target=target, args=arguments, daemon=True).start()
