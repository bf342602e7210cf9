"""Function calls in a model's response: `name(argument=value)`, one per line or in a list.

Responses are data: nothing is evaluated, and sizes are limited before anything is parsed.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from dataclasses import dataclass
from typing import Any

MAX_CHARACTERS = 8000
MAX_CALLS = 64
MAX_DEPTH = 20
BULLET = re.compile(r"^(?:[-*+]|\d{1,3}[.)])\s+")
CONSTANTS = {"true": True, "false": False, "null": None}


@dataclass(frozen=True)
class Call:
    """A function call.

    Args:
        name: Name of the function, with dots.
        arguments: Values by name of the argument: texts, numbers, booleans, None, lists and dicts.
    """

    name: str
    arguments: dict[str, Any]

    @property
    def key(self) -> str:
        """A text that equal calls share; the order of arguments does not matter, 1 and 1.0 are the same."""
        return json.dumps([self.name, plain(self.arguments)], sort_keys=True)


def plain(value: Any) -> Any:
    """`value` with whole floats as integers."""
    if isinstance(value, dict):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


@dataclass(frozen=True)
class Response:
    """The calls of a response.

    Args:
        calls: The calls in their order, repeated ones included.
        valid: Whether the response is nothing but calls, or `[]` for none.
    """

    calls: tuple[Call, ...]
    valid: bool


def read_calls(text: str) -> Response:
    """The calls in a response; lines that hold none, and all beyond 8000 characters or 64 calls, are left out."""
    lines = [BULLET.sub("", line.strip()) for line in text[:MAX_CHARACTERS].splitlines()]
    lines = [line for line in lines if line and not line.startswith("```")]
    whole = calls_of(" ".join(lines)) if lines and lines[0].startswith("[") else None
    found = [calls_of(line) for line in lines] if whole is None else [whole]
    calls = [call for group in found for call in group or ()]
    valid = bool(found) and None not in found and len(calls) <= MAX_CALLS and len(text) <= MAX_CHARACTERS
    return Response(tuple(calls[:MAX_CALLS]), valid)


def calls_of(text: str) -> list[Call] | None:
    """The calls of an expression: one, or a list of them; None if it is something else."""
    if depth(text) > MAX_DEPTH:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd escapes in texts
            node = ast.parse(text, mode="eval").body
        return [call_of(each) for each in (node.elts if isinstance(node, ast.List) else [node])]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def depth(text: str) -> int:
    """Largest number of brackets and signs that are open at once, at least; a bound on the depth of the parsed tree."""
    deepest = level = 0
    for character in text:
        level += (character in "([{") - (character in ")]}")
        deepest = max(deepest, level)
    signs = max((len(run) for run in re.findall(r"(?:[-+~]\s*|\bnot\s+|\blambda\s*:\s*)+", text)), default=0)
    return max(deepest, signs)


def call_of(node: ast.expr) -> Call:
    """The call that `node` is; raises ValueError if it is none, or has positional or repeated arguments."""
    if not isinstance(node, ast.Call) or node.args:
        raise ValueError("no call with named arguments")
    arguments: dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg is None or keyword.arg in arguments:
            raise ValueError("arguments must be named, each once")
        arguments[keyword.arg] = value_of(keyword.value)
    return Call(name_of(node.func), arguments)


def name_of(node: ast.expr) -> str:
    """A name with dots."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        raise ValueError("no name")
    return ".".join([node.id, *reversed(parts)])


def value_of(node: ast.expr) -> Any:
    """The value of a literal; tuples and sets are lists."""
    if isinstance(node, ast.Name) and node.id in CONSTANTS:
        return CONSTANTS[node.id]
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        return [value_of(each) for each in node.elts]
    if isinstance(node, ast.Dict):
        if not all(isinstance(key, ast.Constant) and isinstance(key.value, str) for key in node.keys):
            raise ValueError("keys must be texts")
        return {
            key.value: value_of(value)
            for key, value in zip(node.keys, node.values, strict=True)
            if isinstance(key, ast.Constant)
        }
    sign = 1
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        sign = -1 if isinstance(node.op, ast.USub) else 1
        node = node.operand
        if not isinstance(node, ast.Constant) or type(node.value) not in (int, float):
            raise ValueError("a sign belongs to a number")
    if not isinstance(node, ast.Constant):
        raise ValueError("no literal")
    value = node.value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        number = sign * value
        if not -1e15 <= number <= 1e15:
            raise ValueError("the number is too large")
        return number
    if isinstance(value, (str, bool)) or value is None:
        return value
    raise ValueError("no value of JSON")


def written(call: Call) -> str:
    """The call as a line."""
    return f"{call.name}({', '.join(f'{name}={value!r}' for name, value in call.arguments.items())})"
