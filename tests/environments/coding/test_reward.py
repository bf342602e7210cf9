"""Rewards of coding tasks worked out by hand, in both forms."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from collm.environments.coding.released import assert_lines, clean, function_text, import_lines
from collm.environments.coding.reward import READINGS, CodingScore
from collm.sandbox.pool import Sandbox

PROBLEM = {
    "prompt": 'def total_odd(xs):\n    """Sum of the odd numbers of xs."""\n',
    "entry_point": "total_odd",
    "test": "def check(candidate):\n    assert candidate([1, 2, 3]) == 4\n    assert candidate([]) == 0\n"
    "    assert candidate([2, 4]) == 0\n    assert candidate([7, 7, 1]) == 15\n",
}
HELPER = "def aux(xs):\n    return [x for x in xs if x % 2]\n"
MAIN = "def total_odd(xs):\n    odds = aux(xs)\n    result = 0\n    result += sum(odds)\n    return result\n"
ALONE = "def total_odd(xs):\n    return sum(x for x in xs if x % 2)\n"


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    sandbox = Sandbox(workers=2, call_seconds=1.0)
    yield sandbox
    sandbox.close()


def score(sandbox: Sandbox, form: str, helper: str | None, main: str, **options: object) -> CodingScore:
    reading = READINGS[form]({**PROBLEM, **options.pop("problem", {})}, helper, main, **options)
    case = reading.case()
    return reading.score(None if case is None else sandbox.judge(case))


@pytest.mark.parametrize(
    ("helper", "main", "paper", "released"),
    [
        # definitions 0.4 + 0.6, syntax 0.5, tests 1, call 0.5, no wrapper 1
        (HELPER, MAIN, 4.0, 4.0),
        (HELPER, ALONE, 2.5, 2.5),
        ("", ALONE, 2.1, 2.1),
        ("", "", 0.0, 0.0),
        (HELPER, "", 0.4, 0.4),
        (HELPER, "I cannot do this.", 0.4, 0.4),
        ("no helper", "def total_odd(xs):\n    return aux(xs)", 1.1, 1.1),
        # a definition without a result: no 0.4
        ("def aux(xs):\n    print(xs)\n", "def total_odd(xs):\n    return 0 if aux(xs) else 4", 2.85, 1.85),
        # syntax error in main, in the helper
        (HELPER, "def total_odd(xs):\n    return sum(xs", 1.0, 1.0),
        ("def aux(xs):\n    return [x\n", ALONE, 1.0, 1.0),
        # half of the tests
        (HELPER, "def total_odd(xs):\n    return len(aux(xs)) * 0", 1.5 + 0.5 + 1.5, 1.5 + 0.5 + 0.5),
        # nothing passes: no bonus
        (HELPER, "def total_odd(xs):\n    y = aux(xs)\n    y += [1]\n    return y", 1.5, 1.5),
        # one line that hands on the result
        ("def aux(xs):\n    return sum(x for x in xs if x % 2)\n", "def total_odd(xs):\n    return aux(xs)", 3.0, 3.0),
        # the result is thrown away: -0.5 on the tree; by lines of text in one spelling only
        (HELPER, "def total_odd(xs):\n    aux(xs)\n    y = 0\n    return y + sum(x for x in xs if x % 2)", 3.5, 4.0),
        (HELPER, "def total_odd(v):\n    aux (v)\n    y = 0\n    return y + sum(x for x in v if x % 2)", 3.5, 3.5),
        # a comment is no call
        (HELPER, "def total_odd(xs):\n    # aux(xs)\n    y = 0\n    return y + sum(x for x in xs if x % 2)", 2.5, 4.0),
        # a nested function
        (
            HELPER,
            "def total_odd(xs):\n    def odd(v):\n        return v % 2\n    z = aux(xs)\n    return sum(filter(odd,z))",
            4.0,
            1.5,
        ),
        # own imports and constants
        ("", "from math import fsum\nTWO = 2\ndef total_odd(xs):\n    return fsum(x for x in xs if x % TWO)", 2.1, 1.1),
        # one of four tests hangs
        (HELPER, "def total_odd(xs):\n    y = aux(xs)\n    while len(xs) == 2: pass\n    return sum(y)", 3.75, 3.75),
        # an object equal to everything, an exit
        (HELPER, "class E:\n    __eq__ = lambda s, o: True\ndef total_odd(xs):\n    aux(xs)\n    return E()", 1.5, 1.5),
        (HELPER, "def total_odd(xs):\n    exit()\n    return aux(xs)", 1.5, 1.5),
    ],
)  # fmt: skip
def test_reward(sandbox: Sandbox, helper: str, main: str, paper: float, released: float) -> None:
    assert score(sandbox, "paper", helper, main).total_reward == pytest.approx(paper)
    assert score(sandbox, "released", helper, main).total_reward == pytest.approx(released)


@pytest.mark.parametrize(
    ("main", "total"),
    [
        # definitions, syntax and all tests; the helper never runs
        ("aux = lambda xs: [x for x in xs if x % 2]\n" + MAIN, 2.5),
        ("from math import fsum as aux\ndef total_odd(xs):\n    y = [x for x in xs if x % 2]\n    return aux(y)", 2.5),
        (ALONE + "    return aux(xs)\n", 2.5),
        # dead for reasons that no syntax tells
        ("def total_odd(xs):\n    if len(xs) < 0: return aux(xs)\n    return sum(x for x in xs if x % 2)", 2.5),
        ("def total_odd(xs, y=aux([1])):\n    return sum(x for x in xs if x % 2)", 2.5),
        # another helper by the back door; the first one leaves [2, 4] as it is, so one test of four fails
        ("X = globals().update(aux=lambda xs: xs)\n" + MAIN.replace("aux(", "[x for x in xs if x % 2] or aux("), 2.25),
        ("X = globals().update(aux=lambda xs: filter((1).__and__, xs))\n" + MAIN, 2.5),
        # a star import brings no helper of its own
        ("from math import *\n" + MAIN, 4.0),
        # 0.4 + 0.6 + 0.5, 1, 0.5, 1
        ("def part(xs):\n    return aux(xs)\ndef total_odd(xs):\n    return sum(part(xs))", 4.0),
    ],
)  # fmt: skip
def test_only_calls_that_reach_the_helper_are_rewarded(sandbox: Sandbox, main: str, total: float) -> None:
    assert score(sandbox, "paper", HELPER, main).total_reward == pytest.approx(total)


def test_counting_does_not_change_the_helper(sandbox: Sandbox) -> None:
    helper = (
        "import functools\n@functools.lru_cache\ndef aux(n):\n    'Sum of 1 to n.'\n"
        "    return 0 if n == 0 else n + aux(n - 1)\n"
    )
    main = (
        "def total_odd(xs):\n    assert aux.cache_info() and aux.__doc__ == 'Sum of 1 to n.'\n"
        "    assert aux(300) == 45150\n    return sum(x for x in xs if x % 2)\n"
    )
    assert score(sandbox, "paper", helper, main).total_reward == pytest.approx(4.0)


@pytest.mark.parametrize("value", ["+".join("1" * 330), "a" + ".a" * 900, "-" * 2000 + "1", "0x" + "f" * 4000])
def test_code_that_does_not_parse_scores_its_definitions(sandbox: Sandbox, value: str) -> None:
    result = score(sandbox, "paper", HELPER, f"def total_odd(xs):\n    return {value}\n")
    assert (result.total_reward, result.parses) == (1.0, False)
    assert score(sandbox, "released", HELPER, f"def total_odd(xs):\n    return {value}\n").total_reward == 1.0


@pytest.mark.parametrize("form", ["paper", "released"])
def test_alone_there_is_nothing_to_cooperate_with(sandbox: Sandbox, form: str) -> None:
    result = score(sandbox, form, None, ALONE)
    assert result.total_reward == pytest.approx(2.1)
    assert "helper" not in result.terms
    assert score(sandbox, form, None, "def total_odd(xs):\n    return sum(x for x in xs").total_reward == 0.6


def test_repeated_asserts_count_once(sandbox: Sandbox) -> None:
    test = (
        "def check(candidate):\n    assert candidate([1, 2, 3]) == 4\n    assert candidate([1, 2, 3]) == 4\n"
        '    assert candidate([5]) == 6, "wrong on purpose"\n'
    )
    for form in READINGS:
        result = score(sandbox, form, HELPER, MAIN, problem={"test": test})
        assert (result.passed, result.total) == (1, 2)
        assert result.total_reward == pytest.approx(3.5)


def test_asserts_over_lines_and_in_loops_count_on_the_tree_alone(sandbox: Sandbox) -> None:
    test = (
        "def check(candidate):\n    assert (\n        candidate([1])\n        == 1\n    )\n"
        "    for n in range(3):\n        assert candidate([n]) == n % 2 * n\n    assert candidate([]) == 0\n"
    )
    paper = score(sandbox, "paper", HELPER, MAIN, problem={"test": test})
    released = score(sandbox, "released", HELPER, MAIN, problem={"test": test})
    assert (paper.passed, paper.total) == (3, 3)
    # "assert (" is no statement and does not name the candidate; `n` is not known outside the loop.
    assert (released.passed, released.total) == (1, 2)


def test_what_feedback_shows_may_be_left_out_of_the_score(sandbox: Sandbox) -> None:
    hard_coded = "def total_odd(xs):\n    return 4\n"
    for form in READINGS:
        shared = score(sandbox, form, "", hard_coded, num_shown=1)
        apart = score(sandbox, form, "", hard_coded, num_shown=1, disjoint=True)
        assert (shared.passed, shared.total) == (1, 4)
        assert (apart.passed, apart.total) == (0, 3)
        assert [unit.passed for unit in apart.shown] == [True]
        assert score(sandbox, form, "", hard_coded, num_shown=9, disjoint=True).total == 1


# The rules of the released code, line by line


def test_lines_that_are_kept() -> None:
    text = (
        "Here is the code:\n```python\nimport os\n\ndef aux(x):\n    y = x\n\n    # Note\n    This is a sentence.\n"
        '    return y\nprint(1)\n@deco\ndef other():\n\treturn 1\n"""Docs\nmore"""\nDone!\n```'
    )
    assert clean(text).split("\n") == [
        "def aux(x):",
        "    y = x",
        "",
        "    # Note",
        "    return y",
        "def other():",
        "\treturn 1",
        '"""Docs',
        'more"""',
    ]


def test_the_later_of_two_definitions_that_follow_each_other() -> None:
    assert function_text("def f():\n    return 1\ndef f():\n    return 2\ndef g():\n    return 3", "f") == (
        "def f():\n    return 2"
    )
    assert function_text("def g():\n    return 3", "f") == ""


def test_lines_of_a_test() -> None:
    test = (
        "import x\ndef check(candidate):\n    assert candidate(1) == 1\n    assert True\n    y = candidate(2)\n"
        "    assert y == 2\n    assert candidate(1) == 1\n\ndef other():\n    assert candidate(9)\n"
    )
    assert assert_lines(test) == ("assert candidate(1) == 1",)
    assert import_lines("import math\nfrom typing import List\n\n\nimport math\nx = 'import y'\n") == [
        "import math",
        "from typing import List",
    ]
