"""What is read out of a response as function calls."""

from __future__ import annotations

import time

import pytest

from collm.environments.tools.calls import Call, read_calls, written

ONE = Call("f", {"x": 1})


@pytest.mark.parametrize(
    ("text", "calls", "valid"),
    [
        ("f(x=1)", [ONE], True),
        ("[f(x=1), g.h()]", [ONE, Call("g.h", {})], True),
        ("[f(x=1),\n g.h()]", [ONE, Call("g.h", {})], True),
        ("f(x=1)\nf(x=1)", [ONE, ONE], True),
        ("```python\n1. f(x=1)\n- f(x=1)\n```", [ONE, ONE], True),
        ("[]", [], True),
        ("[]\nf(x=1)", [ONE], True),
        ("", [], False),
        ("I call f(x=1).", [], False),
        ("f(x=1)\nDone.", [ONE], False),
        ("f(1)", [], False),
        ("f(x=1, x=2)", [], False),
        ("f(**{'x': 1})", [], False),
        ("f(x=g())", [], False),
        ("f(x=__import__('os'))", [], False),
        ("f(x='a' * 10**9)", [], False),
        ("f(x=1)(y=2)", [], False),
        ("f(x=1e999)", [], False),
        ("f(x=" + "9" * 5000 + ")", [], False),
        (
            "f(x=[1, 'a', -2.5, true, None, {'k': (1,)}])",
            [Call("f", {"x": [1, "a", -2.5, True, None, {"k": [1]}]})],
            True,
        ),
        ("f(x={1: 2})", [], False),
        ("f(x=b'a')", [], False),
        ("f(x=-'a')", [], False),
        ("f(x='\\d')", [Call("f", {"x": "\\d"})], True),
        ("f(x='\x00')", [], False),
    ],
)
def test_calls_by_hand(text: str, calls: list[Call], valid: bool) -> None:
    found = read_calls(text)
    assert (list(found.calls), found.valid) == (calls, valid)


@pytest.mark.parametrize(
    "text",
    ["(" * 5000, "-" * 7000 + "1", "f(x=" + "[" * 4000 + "]" * 4000 + ")", "a" + ".a" * 3900 + "()", "not " * 1900]
    + ["f(x=1)\n" * 5000, "lambda:" * 1100 + "1", "f(x=" + "1 if 1 else " * 600 + "1)", "{" * 30, "f'{f(x=1)}'"],
)
def test_hostile_responses_are_read_quickly(text: str) -> None:
    began = time.perf_counter()
    assert len(read_calls(text).calls) <= 64
    assert not read_calls(text).valid
    assert time.perf_counter() - began < 2.0  # far above what it takes


def test_a_call_is_read_as_it_is_written() -> None:
    call = Call("a.b", {"x": [1, 2.5], "y": "it's", "z": {"k": None}, "on": True})
    assert read_calls(written(call)).calls == (call,)
    assert Call("f", {"a": 1, "b": 2.0}).key == Call("f", {"b": 2, "a": 1.0}).key != Call("f", {"a": True, "b": 2}).key
