"""Plain data as bytes, and nothing else: what may cross between a candidate's process and the judge's.

None, bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set and frozenset go through exactly, nested
to a bounded depth. An instance of a subclass arrives as the plain value it holds, so whatever its methods would have
done stays behind. Everything else is refused. Reading never runs code that the other side chose.
"""

from __future__ import annotations

import json
from typing import Any

MAX_DEPTH = 50
# Larger whole numbers travel in hexadecimal: Python refuses to read or write very long decimals.
_SMALL = 2**63


class NotPlain(ValueError):
    """A value that is not plain data, or bytes that do not stand for any."""


def dumps(value: Any) -> bytes:
    """`value` as bytes; raises NotPlain."""
    return json.dumps(_encode(value, 0), separators=(",", ":")).encode("ascii")


def loads(data: bytes) -> Any:
    """The value that `data` stands for; raises NotPlain."""
    try:
        return _decode(json.loads(data), 0)
    except (ValueError, TypeError, RecursionError, KeyError) as error:
        raise NotPlain(f"not plain data: {error}") from None


def _encode(value: Any, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise NotPlain(f"a value nested more than {MAX_DEPTH} deep")
    kind = type(value)
    if value is None or kind is bool:
        return value
    # Methods of the base classes, because those of a subclass could say anything.
    if issubclass(kind, str):
        return str.__str__(value)
    if issubclass(kind, int):
        whole = int.__pos__(value)
        return whole if -_SMALL < whole < _SMALL else {"int": hex(whole)}
    if issubclass(kind, float):
        return float.__pos__(value)
    if issubclass(kind, list):
        return [_encode(item, depth + 1) for item in list.__iter__(value)]
    if issubclass(kind, dict):
        items = [[_encode(key, depth + 1), _encode(item, depth + 1)] for key, item in dict.items(value)]
        return {"dict": items}
    for name, base in (("tuple", tuple), ("set", set), ("frozenset", frozenset)):
        if issubclass(kind, base):
            return {name: [_encode(item, depth + 1) for item in base.__iter__(value)]}
    if issubclass(kind, complex):
        whole_number = complex.__pos__(value)
        return {"complex": [whole_number.real, whole_number.imag]}
    if issubclass(kind, bytes):
        return {"bytes": bytes.hex(value)}
    if issubclass(kind, bytearray):
        return {"bytearray": bytearray.hex(value)}
    raise NotPlain(f"{kind.__name__} is not plain data")


def _decode(data: Any, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise NotPlain(f"a value nested more than {MAX_DEPTH} deep")
    if isinstance(data, list):
        return [_decode(item, depth + 1) for item in data]
    if not isinstance(data, dict):
        return data
    ((name, content),) = data.items()
    if name == "dict":
        return {_decode(key, depth + 1): _decode(item, depth + 1) for key, item in content}
    if name in ("tuple", "set", "frozenset"):
        return {"tuple": tuple, "set": set, "frozenset": frozenset}[name](_decode(item, depth + 1) for item in content)
    if name == "int":
        return int(content, 16)
    if name == "complex":
        return complex(*content)
    if name in ("bytes", "bytearray"):
        return {"bytes": bytes, "bytearray": bytearray}[name].fromhex(content)
    raise NotPlain(f"unknown kind of data {name!r}")
