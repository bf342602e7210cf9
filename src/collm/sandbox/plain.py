"""Plain data as bytes, and nothing else: what may cross between a candidate's process and the judge's.

None, bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set and frozenset go through exactly, nested
to a bounded depth and with bounded digits. An instance of a subclass arrives as the plain value it holds, so whatever
its methods would have done stays behind. Everything else is refused. Reading never runs code that the other side chose.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

MAX_DEPTH = 50
# Larger whole numbers travel in hexadecimal: Python refuses to read or write very long decimals.
_SMALL = 2**63
_SMALL_DIGITS = len(str(-_SMALL))
_REAL_DIGITS = 32
_MAX_HEXADECIMAL = 1 << 18
# Hashes of numbers, tuples and sets can be chosen; without a bound, a set of a few equal ones takes minutes to build.
_MAX_EQUAL_HASHES = 64


_HEXADECIMAL = re.compile(r"-?0x[0-9a-f]+")


class NotPlain(ValueError):
    """A value that is not plain data, or bytes that do not stand for any."""


def dumps(value: Any) -> bytes:
    """`value` as bytes; raises NotPlain."""
    return json.dumps(_encode(value, 0), separators=(",", ":")).encode("ascii")


def loads(data: bytes) -> Any:
    """The value that `data` stands for; raises NotPlain, and nothing else, whatever the other side wrote.

    Work grows with the length of `data` alone: numbers have bounded digits, values bounded depth, and few keys of a
    dict or members of a set may have the same hash.
    """
    try:
        return _decode(
            json.loads(data, object_pairs_hook=_single, parse_int=_whole, parse_float=_real, parse_constant=float), 0
        )
    except NotPlain:
        raise
    except (ValueError, TypeError, ArithmeticError, LookupError, RecursionError, MemoryError) as error:
        raise NotPlain(f"not plain data: {error}") from None


def _single(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) != 1:
        raise NotPlain(f"not plain data: an object of {len(pairs)} entries")
    return dict(pairs)


def _whole(text: str) -> int:
    if len(text) > _SMALL_DIGITS:
        raise NotPlain(f"not plain data: a decimal of {len(text)} digits")
    return int(text)


def _real(text: str) -> float:
    if len(text) > _REAL_DIGITS:
        raise NotPlain(f"not plain data: a number of {len(text)} digits")
    return float(text)


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
    if name == "complex":
        real, imaginary = content
        if type(real) is not float or type(imaginary) is not float:
            raise NotPlain("not plain data: a complex number of something else than floats")
        return complex(real, imaginary)
    if name == "int":
        if len(content) > _MAX_HEXADECIMAL or not _HEXADECIMAL.fullmatch(content):
            raise NotPlain("not plain data: a whole number that is too long, or none")
        return int(content, 16)
    if name == "bytes":
        return bytes.fromhex(content)
    if name == "bytearray":
        return bytearray.fromhex(content)
    if not isinstance(content, list):
        raise NotPlain(f"not plain data: {name!r} of something else than a list")
    if name == "dict":
        items = [(_decode(key, depth + 1), _decode(item, depth + 1)) for key, item in content]
        _check_hashes(key for key, _ in items)
        mapping = dict(items)
        if len(mapping) != len(items):
            raise NotPlain("not plain data: a key that comes twice")
        return mapping
    members = [_decode(item, depth + 1) for item in content]
    if name == "tuple":
        return tuple(members)
    if name in ("set", "frozenset"):
        _check_hashes(members)
        return {"set": set, "frozenset": frozenset}[name](members)
    raise NotPlain(f"unknown kind of data {name!r}")


def _check_hashes(values: Iterable[Any]) -> None:
    """Refuse hashes that are equal too often; raises TypeError for what has none."""
    most = max(Counter(map(hash, values)).values(), default=0)
    if most > _MAX_EQUAL_HASHES:
        raise NotPlain(f"not plain data: {most} keys or members of one hash")
