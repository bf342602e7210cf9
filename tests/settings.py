"""What a configuration file sets in vain: what would be so without it, and what no constructor takes."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from collm.data import RolloutDataModule

_NOTHING = inspect.Parameter.empty


def defaults_of(cls: type) -> dict[str, Any]:
    """Arguments of a constructor and what they are by default, those behind its `**kwargs` included."""
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        if "__init__" in vars(base) and base is not object:
            for name, parameter in inspect.signature(base.__init__).parameters.items():
                found.setdefault(name, parameter.default)
    return found


def vain(given: Any, earlier: Any = None, where: str = "") -> Iterator[str]:
    """Arguments of this project's classes in `given` that repeat the constructor's default or that it does not take.

    Environments, algorithms, critics, samplers, callbacks, strategies and the data module count. The fields of
    `policy` and of a critic's `model` do not: they replace those of another model in an earlier file.

    Args:
        given: A configuration, or a part of it.
        earlier: What was read before it; giving an argument its default back is no repetition.
        where: The place of `given` in the whole.
    """
    if isinstance(given, list):
        for index, entry in enumerate(given):
            yield from vain(entry, None, f"{where}[{index}]")
    if not isinstance(given, Mapping):
        return
    earlier = earlier if isinstance(earlier, Mapping) else {}
    path = given.get("class_path", earlier.get("class_path", ""))
    arguments, before, defaults = given, earlier, {}
    if where == "data":
        defaults = defaults_of(RolloutDataModule)
    elif path.startswith("collm."):
        yield from (f"{where}.{name} is not taken" for name in set(given) - {"class_path", "init_args"})
        module, _, name = path.rpartition(".")
        defaults = defaults_of(getattr(importlib.import_module(module), name))
        arguments, before, where = given.get("init_args") or {}, earlier.get("init_args") or {}, f"{where}.init_args"
    for name, value in arguments.items():
        if defaults and name not in defaults:
            yield f"{where}.{name} is not taken"
        default, was = defaults.get(name, _NOTHING), before.get(name, _NOTHING)
        if default is not _NOTHING and _same(value, default) and (was is _NOTHING or _same(was, default)):
            yield f"{where}.{name}: {value}".removeprefix(".")
        yield from vain(value, was, f"{where}.{name}".removeprefix("."))


def _same(first: Any, second: Any) -> bool:
    first, second = (list(value) if isinstance(value, tuple) else value for value in (first, second))
    return (
        type(first) is type(second)
        and first == second
        or ({type(first), type(second)} == {int, float} and first == second)
    )
