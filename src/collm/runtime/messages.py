"""Messages of jsonargparse in plain words: the setting, its value and the remedy."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
import traceback
from collections.abc import Iterator, Mapping

from jsonargparse import ArgumentParser

_NOISE = re.compile(
    r"Does not validate against|Subtypes:|Errors:|Given value|Expected a path but|Expected a None$|"
    r"Subclass types expect|a class path \(str\)|a dict with"
)
_UNKNOWN = re.compile(r"(?:[Oo]ption|[Kk]ey) '([\w.]+)'(?! is not accepted as)|unrecognized arguments: -*([\w.]+)")
_CLASS = re.compile(r"(?:dot import path string:|given class_path|Import path) '?([\w.]+)")


def readable(message: str, parser: ArgumentParser, components: Mapping[str, type]) -> str:
    """The cause in jsonargparse's message, with the closest valid name for an unknown one.

    Args:
        message: The message of jsonargparse.
        parser: The parser that raised it.
        components: The base class of each setting that names a class, by the last part of the setting's name.
    """
    keys: list[str] = []  # nested keys of the setting, outermost first
    causes: list[str] = []
    given = ""
    for line in message.splitlines():
        text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", line.strip().removeprefix("- "))
        text = re.sub(r"Expected a typing\.Literal\[(.*?)\]", r"Expected one of \1", text.replace("NoneType", "None"))
        if match := re.match(r'Parser key "([^"]+)":\s*', text):
            keys.append(match[1])
            text = text[match.end() :]
        if match := re.match(r"Given value: (?!NestedArg)(.{1,200})$", text):
            given = f"got {match[1]}"
        elif text and not _NOISE.match(text):
            causes.append(text)
    where = ".".join(dict.fromkeys(keys))
    causes = [_explained(cause, where, parser, components) for cause in dict.fromkeys(causes)]
    if (missing := re.search(r"No module named '([\w.]+)'", message)) and f"'{missing[1]}." not in message:
        how = 'install it with pip install "collm[lowbit]"' if missing[1] == "bitsandbytes" else "install it"
        given, causes = "", [f"no module named {missing[1]!r}, which it imports; {how} or correct the name"]
    named = (match[1] for match in _CLASS.finditer(message))
    if problem := next((found for name in dict.fromkeys(named) if (found := import_problem(name))), ""):
        given, causes = "", [problem]
    if given and all(cause.startswith("Expected") and "Got value" not in cause for cause in causes):
        causes.append(given)
    text = (f"{where}: " if where else "") + "; ".join(causes or [message.strip()])
    return re.sub(r"^([\w.]+): (?!\w*(?:Error|Exception): )([\w.]+): ", r"\1.\2: ", text)


def import_problem(class_path: str) -> str:
    """Why the file that holds a class of the user's own cannot be imported, and where; empty if it can."""
    module = class_path.rpartition(".")[0]
    try:
        if module and not module.startswith("collm."):
            importlib.import_module(module)
    except ModuleNotFoundError:
        return ""  # `readable` says which module is missing
    except Exception as error:
        frames = [one for one in traceback.extract_tb(error.__traceback__) if not one.filename.startswith("<")]
        where = f"{frames[-1].filename} line {frames[-1].lineno}: {frames[-1].line}" if frames else ""
        if isinstance(error, SyntaxError) and error.filename:
            where = f"{error.filename} line {error.lineno}: {(error.text or '').strip()}"
        return f"{type(error).__name__}: {error}\n{where}\n(while {class_path} was imported)"
    return ""


def _arguments(cls: type) -> set[str]:
    """Names of the constructor arguments of `cls`, those it passes on to its base classes included."""
    own = [base for base in cls.__mro__ if base.__module__.startswith("collm.") and "__init__" in vars(base)]
    return {name for base in own for name in inspect.signature(base).parameters} - {"kwargs"}


def _explained(cause: str, where: str, parser: ArgumentParser, components: Mapping[str, type]) -> str:
    """`cause` in plain words, with the closest valid name for an unknown one."""
    if cause.startswith("unknown setting"):  # already explained by the parser of a component
        return cause
    if cause.endswith(" is abstract"):
        return f"no class is chosen yet; put --{where}=... before its settings"
    if match := re.search(r"arguments are required: (.*)", cause):
        return f"{match[1]} missing; give a --config that sets it, such as a complete one of configs/experiments"
    if match := _UNKNOWN.search(cause):
        name = match[1] or match[2]
        subcommands = parser._subcommands_action.choices.values() if parser._subcommands_action else ()
        known = {action.dest for one in (parser, *subcommands) for action in one._actions} - {"help"}
        settings = {dest.partition(".")[0] for dest in known} - {"print_shtab"}
        if "model" in components and settings == _arguments(components["model"]):
            return (
                f"unknown setting {name!r}; no algorithm is chosen yet, or one without this setting: put --model=... "
                "before its settings"
            )
        return f"unknown setting {name!r}; {_nearest(name, known, 1)}"
    if match := _CLASS.search(cause):
        name = match[1]
        bases = [base for key, base in components.items() if key in where.split(".")[-1:]] or components.values()
        known = {cls.__name__ for base in bases for cls in _subclasses(base)}
        remedy = _nearest(name.split(".")[-1], known, 2) if known else "give the import path of one that does"
        return f"{name!r} is not a class that fits here; {remedy}"
    return cause


def _nearest(name: str, known: set[str], num: int) -> str:
    if near := difflib.get_close_matches(name, sorted(known), num, 0.6):
        return f"did you mean {' or '.join(map(repr, near))}?"
    return f"there are {', '.join(sorted(known)) or 'none'}" if len(known) <= 50 else "--help lists all there are"


def _subclasses(cls: type) -> Iterator[type]:
    """Concrete subclasses of `cls` in this package."""
    subclasses: list[type] = cls.__subclasses__()
    for subclass in subclasses:
        yield from _subclasses(subclass)
        if subclass.__module__.startswith("collm.") and not inspect.isabstract(subclass):
            yield subclass
