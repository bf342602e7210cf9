"""What crosses between processes is plain data, exactly."""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter, OrderedDict, deque, namedtuple
from enum import IntEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from collm.sandbox.plain import NotPlain, dumps, loads

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False)
)
KEYS = SCALARS | st.tuples(SCALARS, SCALARS) | st.frozensets(SCALARS, max_size=3)
VALUES = st.recursive(
    SCALARS | st.sets(KEYS, max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple) | st.dictionaries(KEYS, inner, max_size=4)
    ),
    max_leaves=20,
)


def same(first: object, second: object) -> bool:
    return type(first) is type(second) and first == second and repr(first) == repr(second)


@given(VALUES)
def test_values_are_preserved_exactly(value: object) -> None:
    arrived = loads(dumps(value))
    assert type(arrived) is type(value)
    assert arrived == value


@pytest.mark.parametrize("value", [-0.0, float("inf"), -(2**64), True, 1, 1.0, "\ud800", bytearray(b"x")])
def test_details_survive(value: object) -> None:
    arrived = loads(dumps(value))
    assert type(arrived) is type(value)
    assert arrived == value
    if isinstance(value, float):
        assert math.copysign(1, arrived) == math.copysign(1, value)


def test_integers_may_be_longer_than_python_would_print() -> None:
    assert loads(dumps(-(10**5000))) == -(10**5000)


def test_nan_arrives_as_nan() -> None:
    assert math.isnan(loads(dumps(float("nan"))))


class Level(IntEnum):
    HIGH = 3


class Shout(str):
    def __str__(self) -> str:
        return "never called"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Level.HIGH, 3),
        (Shout("hello"), "hello"),
        (Counter("aab"), {"a": 2, "b": 1}),
        (OrderedDict(x=1), {"x": 1}),
        (namedtuple("Point", "x y")(1, 2), (1, 2)),
    ],
)
def test_instances_of_subclasses_arrive_as_plain(value: object, expected: object) -> None:
    assert same(loads(dumps(value)), expected)


@pytest.mark.parametrize("value", [object(), len, iter([]), deque([1]), range(3), {"a": object()}])
def test_other_values_are_refused(value: object) -> None:
    with pytest.raises(NotPlain, match="not plain data"):
        dumps(value)


def test_depth_is_bounded() -> None:
    value: list = []
    value.append(value)
    with pytest.raises(NotPlain, match="nested"):
        dumps(value)
    with pytest.raises(NotPlain, match="not plain|nested"):
        loads(b"[" * 100_000 + b"]" * 100_000)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"{}", b'{"eval":"1"}', b'{"int":"zz"}', b'{"set":[[]]}', b'{"dict":[[1]]}', b'{"a":1,"b":2}', b"\xff"],
)
def test_bytes_that_encode_nothing_are_refused(data: bytes) -> None:
    with pytest.raises(NotPlain):
        loads(data)


HUGE = b"1" + b"0" * 400
# To put them into a set takes Python half a minute.
COLLIDING = [dumps(k * (2**61 - 1)) for k in range(1, 45_001)]


@pytest.mark.parametrize(
    "data",
    [
        b'{"complex":[' + HUGE + b",0]}",
        b'{"complex":[1,2]}',
        b'{"complex":["1","2"]}',
        b'{"complex":[1.0]}',
        HUGE,
        b"1." + b"0" * 40,
        b'{"int":"0x' + b"f" * (1 << 18) + b'"}',
        b'{"int":"0x_f"}',
        b'{"int":" 0xf"}',
        b'{"int":15}',
        b'{"int":"0xf","int":"0xf"}',
        b'{"dict":[[1,2],[1,3]]}',
        b'{"dict":[[1,2],[true,3]]}',
        b'{"dict":[[1,2,3]]}',
        b'{"dict":"ab"}',
        b'{"tuple":"ab"}',
        b'{"set":{"dict":[]}}',
        b'{"bytes":"0"}',
        b'{"bytes":7}',
        b'{"set":[{"dict":[]}]}',
        b'{"tuple":[' * 5000 + b"]}" * 5000,
        b'{"set":[%s]}' % b",".join(COLLIDING),
        b'{"dict":[%s]}' % b",".join(b"[%s,1]" % key for key in COLLIDING),
        b'{"frozenset":[%s]}' % b",".join(b'{"tuple":[%s]}' % key for key in COLLIDING),
        dumps({complex(-1000003 * k, k) for k in range(1, 100)}),
    ],
    ids=lambda data: repr(data[:30]),
)
def test_hostile_bytes_are_refused_quickly(data: bytes) -> None:
    began = time.process_time()
    with pytest.raises(NotPlain):
        loads(data)
    assert time.process_time() - began < 5


def test_nan_equals_nothing_wherever_it_stands() -> None:
    assert loads(b"[NaN]") != loads(b"[NaN]")
    assert len(loads(b'{"set":[NaN,NaN]}')) == 2


@given(st.binary(max_size=60))
def test_invalid_bytes_raise_nothing_but_not_plain(data: bytes) -> None:
    with contextlib.suppress(NotPlain):
        loads(data)
