"""Safe serialization of plain data between the processes of a candidate and its judge.

None, bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set and frozenset are preserved exactly, with
bounded nesting and digits. An instance of a subclass becomes a value of the base class, without the methods of the
subclass. All other types are refused. Decoding never executes code that the other side chose.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

MAX_DEPTH = 50
# Larger integers are sent in hexadecimal, because Python refuses to convert very long decimals.
_SMALL = 2**63
_SMALL_DIGITS = len(str(-_SMALL))
_FLOAT_DIGITS = 32
_MAX_HEXADECIMAL = 1 << 18
# A program can choose values with equal hashes, and a set of many such values takes minutes to build.
_MAX_EQUAL_HASHES = 64


_HEXADECIMAL = re.compile(r"-?0x[0-9a-f]+")


class NotPlain(ValueError):
    """A value that is not plain data, or bytes that do not encode plain data."""


def dumps(value: Any) -> bytes:
    """Encode `value`; raises NotPlain."""
    return json.dumps(_encode(value, 0), separators=(",", ":")).encode("ascii")


def loads(data: bytes) -> Any:
    """Decode `data`; for any invalid input it raises NotPlain and nothing else.

    The time is linear in the length of `data`: digits and nesting are bounded, and so is the number of dict keys or
    set members with the same hash.
    """
    try:
        return _decode(
            json.loads(data, object_pairs_hook=_single, parse_int=_int, parse_float=_float, parse_constant=float), 0
        )
    except NotPlain:
        raise
    except (ValueError, TypeError, ArithmeticError, LookupError, RecursionError, MemoryError) as error:
        raise NotPlain(f"not plain data: {error}") from None


def _single(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) != 1:
        raise NotPlain(f"not plain data: an object of {len(pairs)} entries")
    return dict(pairs)


def _int(text: str) -> int:
    if len(text) > _SMALL_DIGITS:
        raise NotPlain(f"not plain data: a decimal of {len(text)} digits")
    return int(text)


def _float(text: str) -> float:
    if len(text) > _FLOAT_DIGITS:
        raise NotPlain(f"not plain data: a number of {len(text)} digits")
    return float(text)


def _encode(value: Any, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise NotPlain(f"a value nested more than {MAX_DEPTH} deep")
    kind = type(value)
    if value is None or kind is bool:
        return value
    # Methods of the base classes, because a subclass could override them.
    if issubclass(kind, str):
        return str.__str__(value)
    if issubclass(kind, int):
        integer = int.__pos__(value)
        return integer if -_SMALL < integer < _SMALL else {"int": hex(integer)}
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
        number = complex.__pos__(value)
        return {"complex": [number.real, number.imag]}
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
            raise NotPlain("not plain data: a complex number whose parts are not floats")
        return complex(real, imaginary)
    if name == "int":
        if len(content) > _MAX_HEXADECIMAL or not _HEXADECIMAL.fullmatch(content):
            raise NotPlain("not plain data: an invalid or too long integer")
        return int(content, 16)
    if name == "bytes":
        return bytes.fromhex(content)
    if name == "bytearray":
        return bytearray.fromhex(content)
    if not isinstance(content, list):
        raise NotPlain(f"not plain data: the content of {name!r} is not a list")
    if name == "dict":
        items = [(_decode(key, depth + 1), _decode(item, depth + 1)) for key, item in content]
        _check_hashes(key for key, _ in items)
        mapping = dict(items)
        if len(mapping) != len(items):
            raise NotPlain("not plain data: a duplicate key")
        return mapping
    members = [_decode(item, depth + 1) for item in content]
    if name == "tuple":
        return tuple(members)
    if name in ("set", "frozenset"):
        _check_hashes(members)
        return {"set": set, "frozenset": frozenset}[name](members)
    raise NotPlain(f"unknown kind of data {name!r}")


def _check_hashes(values: Iterable[Any]) -> None:
    """Refuse too many values with the same hash; raises TypeError for values without one."""
    most = max(Counter(map(hash, values)).values(), default=0)
    if most > _MAX_EQUAL_HASHES:
        raise NotPlain(f"not plain data: {most} keys or members with the same hash")
