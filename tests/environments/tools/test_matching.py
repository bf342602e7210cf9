"""Scores of function calls, worked by hand from the formula in `collm.environments.tools.matching`."""

from __future__ import annotations

from typing import Any

import pytest

from collm.environments.tools.calls import Call, read_calls
from collm.environments.tools.matching import MAXIMUM, MINIMUM, Expected, equal, match, score_calls, similarity

WEATHER = [
    Expected("get", {"city": ["Oslo"], "unit": ["", "C"]}),
    Expected("get", {"city": ["Rome"], "unit": ["", "C"]}),
]
FOUR = [Expected("root", {"n": [number]}) for number in (4, 9, 16, 25)]
GOOD = dict.fromkeys(("parse", "names", "arguments", "count", "balance", "exact"), 1)
OSLO, ROME = "get(city='Oslo')", "get(city='Rome')"

# Two agents, expected get(Oslo) and get(Rome) unless it says four roots. The non-zero quantities, in full.
CASES: dict[str, tuple[list[Expected], list[str], dict[str, float]]] = {
    "a perfect split": (
        WEATHER,
        [OSLO, ROME],
        GOOD,
    ),
    "the other way round": (
        WEATHER,
        [ROME, OSLO],
        GOOD,
    ),
    "optional arguments given": (
        WEATHER,
        ["get(city='oslo', unit='C')", "get(unit='c', city='ROME')"],
        GOOD,
    ),
    # 1 of 2 arguments is right
    "an optional argument that is wrong": (
        WEATHER,
        ["get(city='Oslo', unit='F')", ROME],
        {"parse": 1, "names": 1, "arguments": 0.75, "count": 1, "balance": 1},
    ),
    # 1 right, 1 expected, 1 superfluous
    "an argument that does not exist": (
        WEATHER,
        ["get(city='Oslo', day=1)", ROME],
        {"parse": 1, "names": 1, "arguments": 0.75, "count": 1, "balance": 1},
    ),
    # F1 of 1 right name among 1 given and 2 expected; |1 - 2| / 2; shares 1, 0 of 1, 1
    "one call is missing": (
        WEATHER,
        [OSLO, "[]"],
        {"parse": 1, "names": 2 / 3, "arguments": 0.5, "count": 0.5, "balance": 0.5, "lazy": 0.5},
    ),
    "no call at all": (WEATHER, ["[]", "[]"], {"parse": 1, "lazy": 1}),
    "blank responses": (WEATHER, ["", " \n"], {"lazy": 1}),
    # both agents write everything: two calls overlap, of two expected; the first agent is the giver of both
    "both write everything": (
        WEATHER,
        [f"{OSLO}\n{ROME}", f"{OSLO}\n{ROME}"],
        {"parse": 1, "names": 1, "arguments": 1, "count": 1, "exact": 1, "overlap": 1},
    ),
    "both write the same half": (
        WEATHER,
        [OSLO, OSLO],
        {"parse": 1, "names": 2 / 3, "arguments": 0.5, "count": 0.5, "balance": 0.5, "overlap": 0.5},
    ),
    # 4 given, 3 of them repeats of one agent: 2 repeats, and no other agent has a call
    "an agent repeats itself": (
        WEATHER,
        [f"{OSLO}\n{OSLO}\n{OSLO}\n{ROME}", ""],
        {"parse": 0.5, "names": 1, "arguments": 1, "count": 1, "exact": 1, "lazy": 0.5, "duplicate": 1},
    ),
    # 3 calls for 2: F1 = 2 * 2 / 5
    "a call too many": (
        WEATHER,
        [f"{OSLO}\nget(city='Bern')", ROME],
        {"parse": 1, "names": 0.8, "arguments": 1, "count": 0.5, "balance": 1, "extra": 0.5},
    ),
    # names do not match: no similarity, and useless calls balance nothing
    "another function": (WEATHER, ["put(city='Oslo')", "put(city='Rome')"], {"parse": 1, "count": 1}),
    "prose beside the calls": (
        WEATHER,
        [f"Sure!\n{OSLO}", ROME],
        {"parse": 0.5, "names": 1, "arguments": 1, "count": 1, "balance": 1, "exact": 1},
    ),
    # three and one of four: |3 - 2| + |1 - 2| = 2, of 4
    "an uneven split of four": (
        FOUR,
        ["root(n=4)\nroot(n=9)\nroot(n=16)", "root(n=25)"],
        {"parse": 1, "names": 1, "arguments": 1, "count": 1, "balance": 0.5, "exact": 1},
    ),
    "ten calls too many": (
        WEATHER,
        ["\n".join(f"get(city='{letter}')" for letter in "abcdefghijkl"), ""],
        # F1 = 2 * 2 / 14; matched are two calls of the right name without a right argument: none at all
        {"parse": 0.5, "names": 4 / 14, "extra": 1, "lazy": 0.5},
    ),
}
WEIGHTS = {
    **{"parse": 0.05, "names": 0.25, "arguments": 0.35, "count": 0.1, "balance": 0.15, "exact": 0.2},
    **{"overlap": -0.2, "lazy": -0.15, "extra": -0.05, "duplicate": -0.05},
}


@pytest.mark.parametrize("case", CASES)
def test_scores_by_hand(case: str) -> None:
    expected, texts, quantities = CASES[case]
    score = score_calls([read_calls(text) for text in texts], expected)
    assert score.quantities == pytest.approx({**dict.fromkeys(WEIGHTS, 0), **quantities})
    total = sum(weight * quantities.get(name, 0) for name, weight in WEIGHTS.items())
    assert sum(score.terms.values()) == pytest.approx(total)


def test_totals_by_hand() -> None:
    """The sums of two of the cases above, worked out to the end."""

    def total(case: str) -> float:
        expected, texts, _ = CASES[case]
        return sum(score_calls([read_calls(text) for text in texts], expected).terms.values())

    assert (pytest.approx(1.1), pytest.approx(-0.45)) == (MAXIMUM, MINIMUM)
    assert total("a perfect split") == pytest.approx(1.1)
    # 0.05 + 0.25 + 0.35 + 0.10 + 0.20 - 0.20
    assert total("both write everything") == pytest.approx(0.75)
    # 0.05 + 0.25 * 2/3 + 0.175 + 0.05 + 0.075 - 0.075
    assert total("one call is missing") == pytest.approx(0.05 + 1 / 6 + 0.225)


def test_three_agents_and_two_calls_leave_one_without_work() -> None:
    score = score_calls([read_calls(text) for text in (OSLO, "[]", ROME)], WEATHER)
    assert (score.quantities["lazy"], score.quantities["balance"]) == (0, 1)
    score = score_calls([read_calls(text) for text in (f"{OSLO}\n{ROME}", "[]", "[]")], WEATHER)
    assert (score.quantities["lazy"], score.quantities["balance"]) == (pytest.approx(1 / 3), 0)


def test_equal_calls_count_as_often_as_they_are_expected() -> None:
    twice = [Expected("roll", {"sides": [6]})] * 2
    score = score_calls([read_calls("roll(sides=6)")] * 2, twice)
    assert sum(score.terms.values()) == pytest.approx(1.1)
    score = score_calls([read_calls("roll(sides=6)\n" * 3), read_calls("roll(sides=6)")], twice)
    assert {name: score.quantities[name] for name in ("exact", "overlap", "duplicate", "balance")} == {
        "exact": 1,
        "overlap": 0.5,  # three are left of four, for two
        "duplicate": 0.5,
        "balance": 0,
    }


def test_a_match_of_all_calls_is_found_where_taking_the_first_fails() -> None:
    expected = [Expected("f", {"x": [1, 2]}), Expected("f", {"x": [1]})]
    found = match([Call("f", {"x": 1}), Call("f", {"x": 2})], expected)
    assert found == {0: (1, 1.0), 1: (0, 1.0)}


@pytest.mark.parametrize(
    ("arguments", "accepted", "expected"),
    [
        ({}, {}, 1.0),
        ({"x": 1}, {}, 0.7),
        ({}, {"x": [1]}, 0.0),
        ({}, {"x": ["", 1]}, 1.0),
        ({"x": 2}, {"x": ["", 1]}, 0.0),
        ({"x": 1}, {"x": [""]}, 0.0),  # it has to be left out
        ({"x": 1, "y": 2}, {"x": [1], "y": [3], "z": [4]}, 1 / 3),
        ({"x": 1, "w": 2}, {"x": [1], "y": [3]}, 1 / 3),  # 1 of 2 expected and 1 superfluous
    ],
)
def test_similarity_by_hand(arguments: dict[str, Any], accepted: dict[str, list[Any]], expected: float) -> None:
    assert similarity(Call("f", arguments), Expected("f", accepted)) == pytest.approx(expected)
    assert similarity(Call("g", arguments), Expected("f", accepted)) == 0.0


@pytest.mark.parametrize(
    ("given", "accepted", "expected"),
    [
        ("New York, NY", "new york NY", True),
        ("New York", "New Jersey", False),
        (5, 5.0, True),
        (1, True, False),
        (True, True, True),
        ("5", 5, False),
        (["Friends", "the office"], ["Friends", "The Office"], True),
        (["a"], ["a", "b"], False),
        (None, None, True),
        ({"adults": 2, "children": 1}, {"adults": [2], "children": [0, 1]}, True),
        ({"adults": 2}, {"adults": [2], "children": [0, 1]}, False),
        ({"adults": 2}, {"adults": [2], "children": ["", 1]}, True),
        ({"adults": 2, "dogs": 1}, {"adults": [2]}, False),
        ([{"a": 1}], [{"a": [1]}], True),
        ("{}", {"a": [1]}, False),
    ],
)
def test_values_by_hand(given: Any, accepted: Any, expected: bool) -> None:
    assert equal(given, accepted) is expected
