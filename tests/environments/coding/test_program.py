"""Programs out of responses, decided on the syntax tree."""

from __future__ import annotations

import ast

import pytest

from collm.environments.coding.helper_use import HelperUse, helper_use, is_wrapper
from collm.environments.coding.program import assemble, read_prompt, read_source, surroundings

PROMPT = '''from typing import List
import math

LIMIT = 10


def square(x: float) -> float:
    """The square of x."""
    return x * x


def solve(xs: List[float]) -> float:
    """Sum the squares.
    >>> solve([1, 2])
    5
    """
'''


def use(main: str) -> HelperUse:
    return helper_use(read_source(main), "solve")


def names(text: str) -> list[str]:
    return [getattr(node, "name", type(node).__name__) for node in read_source(text).nodes]


def test_what_belongs_to_a_definition_survives() -> None:
    main = """
from functools import lru_cache
from dataclasses import dataclass
import re as regex

TABLE = {
    "a": 1,
}

@dataclass
class Pair:
    left: int

def outer(f):
    return f

@outer
def solve(xs: "list[int]", *, scale: float = 1.0) -> float:
    @lru_cache
    def inner(x):
        return x * scale
    total = sum(map(inner, xs))
    return total
"""
    program = assemble(PROMPT, "solve", read_source("def aux(x):\n    return x"), read_source(main))
    for piece in (
        "from typing import List",
        "import math",
        "LIMIT = 10",
        "def square",
        "def aux",
        "import re as regex",
        "TABLE",
        "@dataclass",
        "@outer",
        "@lru_cache",
        "scale: float = 1.0",
        "return total",
    ):
        assert piece in program
    namespace: dict = {}
    exec(program, namespace)
    assert namespace["solve"]([1, 2], scale=2.0) == 6.0


@pytest.mark.parametrize(
    "text",
    [
        "def solve(xs):\n    return 1\n",
        "Sure! Here is the code:\n```python\ndef solve(xs):\n    return 1\n```\nIt returns one.",
        "```\ndef solve(xs):\n    return 1",
        "    def solve(xs):\n        return 1\n",
        "The function below returns one.\n\ndef solve(xs):\n    return 1\n\nI hope this helps!",
        "def solve(xs):\r\n\treturn 1\r\n",
        "import the list of numbers first, then:\ndef solve(xs):\n    return 1",
        "def solve(xs):\n    return 1\n\nprint(solve([1]))\nassert solve([]) == 1\n",
        "def solve(xs):\n    return 1\n\ndef cut_off(xs):\n    return xs[",
    ],
)
def test_code_is_extracted_from_responses(text: str) -> None:
    source = read_source(text)
    assert ast.unparse(source.definition("solve")) == "def solve(xs):\n    return 1"
    assert source.broken("solve") == ""
    assert [node for node in source.nodes if not isinstance(node, ast.FunctionDef)] == []


def test_the_last_definition_counts() -> None:
    assert "return 2" in ast.unparse(read_source("def solve(): return 1\ndef solve(): return 2").definition("solve"))


def test_only_definitions_imports_and_constants_run() -> None:
    text = "import os\nX = 1\nY = solve(2)\nprint(X)\nfor i in X: pass\ndef solve(x):\n    return x\nsolve(3)\n"
    assert names(text) == ["Import", "Assign", "solve"]


@pytest.mark.parametrize(
    ("text", "attempts", "broken"),
    [
        ("def solve(xs):\n    return sum(xs", True, True),
        ("def solve(xs):\n    sum(xs", False, True),
        ("def solve(xs):\n    print(xs)", False, False),
        ("def solve(xs):\n    def inner():\n        return 1\n    inner()", False, False),
        ("def solve(xs):\n    return", False, False),
        ("def solve(xs):\n    yield 1", True, False),
        ("nothing at all", False, False),
        ("", False, False),
        ("def solved(xs):\n    return 1", False, False),
        ("def solve(xs):\n    return '\0'", True, True),
    ],
)
def test_a_definition_counts_if_it_returns_something(text: str, attempts: bool, broken: bool) -> None:
    source = read_source(text)
    assert (source.attempts("solve"), bool(source.broken("solve"))) == (attempts, broken)


def test_errors_name_the_line() -> None:
    assert read_source("Look:\n\ndef solve(xs):\n    return (1\n\nBye.").broken("solve").startswith("line 4")


def test_each_author_defines_its_own_function_only() -> None:
    helper = read_source("def solve(x):\n    return 'stolen'\ndef aux(x):\n    return 1")
    main = read_source("def aux(x):\n    return 'mine'\ndef solve(x):\n    return aux(x)")
    namespace: dict = {}
    exec(assemble(PROMPT, "solve", helper, main), namespace)
    assert namespace["solve"](0) == 1


def test_future_imports_come_first() -> None:
    main = read_source("from __future__ import annotations\ndef solve(x: Unknown):\n    return x")
    assert assemble(PROMPT, "solve", None, main).startswith("from __future__ import annotations")


def test_surroundings_are_what_the_problem_gives() -> None:
    assert "def square" in surroundings(PROMPT, "solve")
    assert "def solve" not in surroundings(PROMPT, "solve")
    assert [type(each.node).__name__ for each in read_prompt("import math\ndef f(x):\n")] == ["Import", "FunctionDef"]


@pytest.mark.parametrize(
    ("main", "called", "used", "wrapper"),
    [
        ("def solve(xs):\n    ys = aux(xs)\n    return sum(ys)", True, True, False),
        ("def solve(xs):\n    return sum(x for x in aux(xs) if x)", True, True, False),
        ("def solve(xs):\n    # aux(xs)\n    return sum(xs)", False, False, False),
        ("def solve(xs):\n    'aux(xs)'\n    return sum(xs)", False, False, False),
        ("def solve(xs):\n    aux(xs)\n    return sum(xs)", True, False, False),
        ("def solve(xs):\n    y = aux(xs)\n    return sum(xs)", True, False, False),
        ("def solve(xs):\n    a, b = aux(xs)\n    return sum(xs)", True, False, False),
        ("def solve(xs):\n    a, b = aux(xs)\n    return b + 1", True, True, False),
        ("def solve(xs):\n    aux(xs)\n    return 1 + aux(xs)", True, True, False),
        ("def solve(xs):\n    def inner(x):\n        return aux(x) + 1\n    return inner(xs)", True, True, False),
        ("def part(x):\n    return aux(x) + 1\ndef solve(xs):\n    return part(xs)", True, True, False),
        ("def part(x):\n    return aux(x) + 1\ndef solve(xs):\n    return sum(xs)", False, False, False),
        ("def solve(xs, aux=len):\n    return aux(xs) + 1", False, False, False),
        ("def solve(xs):\n    aux = len\n    return aux(xs) + 1", False, False, False),
        ("def solve(xs):\n    xs.append = aux(xs)\n    return 0", True, True, False),
        ("def solve(xs):\n    return aux(xs)", True, True, True),
        ("def solve(xs):\n    'Doc.'\n    y = aux(xs, 1)\n    return y", True, True, True),
        ("def solve(xs):\n    return list(aux(xs))", True, True, True),
        ("def solve(xs):\n    return aux(xs) + 1", True, True, False),
        ("def solve(xs):\n    z = 0\n    return aux(xs)", True, True, False),
    ],
)
def test_use_of_the_helper(main: str, called: bool, used: bool, wrapper: bool) -> None:
    assert use(main) == HelperUse(called, used, wrapper)


def test_an_empty_function_is_a_wrapper() -> None:
    assert is_wrapper(ast.parse("def solve(xs):\n    'Doc.'\n    pass").body[0])


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("+".join("1" * 330), "it is nested too deeply"),
        ("a" + ".a" * 900, "it is nested too deeply"),
        ("-" * 2000 + "1", "it is nested too deeply"),
        ("-" * 7000 + "1", "it is nested too deeply"),
        ("0x" + "f" * 4000, "a number has too many digits"),
        ("9" * 4200, "a number has too many digits"),
        ("(" * 5000, "too many nested parentheses"),
        ("'\0'", "null bytes"),
        ("'\ud800'", "surrogates not allowed"),
    ],
)
def test_code_beyond_the_limits_does_not_parse(text: str, error: str) -> None:
    source = read_source(f"X = 1\ndef solve(xs):\n    return {text}")
    assert source.definition("solve") is None
    assert source.broken("solve").startswith("line ")
    assert error in source.broken("solve")
    # What is written beside it is still read, and the attempt to return something counts.
    assert (names(source.text), source.attempts("solve")) == (["Assign"], True)


def test_code_at_the_limits_parses() -> None:
    for text in ("+".join("1" * 150), "a" + ".a" * 150, "-" * 150 + "1", "0x" + "f" * 3000):
        assert read_source(f"def solve(xs):\n    return {text}").error == ""


def test_code_is_kept_as_it_was_written() -> None:
    helper = (
        "# -*- é -*-\nX = 'é'; Y = 2 ; \\\nZ = 3  # last\n\n@ (\n  # why\n  f)\ndef aux(x):\n    return '\\t'  # é\n"
    )
    main = "print(1)\ndef solve(x):\n    # half\n    return x/2\n"
    assert assemble("import math\ndef solve(x):", "solve", read_source(helper), read_source(main)) == (
        "import math\n# -*- é -*-\nX = 'é'\nY = 2\nZ = 3\n# last\n\n@ (\n  # why\n  f)\ndef aux(x):\n    return '\\t'\n"
        "def solve(x):\n    # half\n    return x/2\n"
    )


LIVE = "def solve(xs):\n    return aux(xs) + 1\n"


@pytest.mark.parametrize(
    "text",
    [
        "def aux(x): return x",
        "async def aux(x): return x",
        "class aux: pass",
        "aux = lambda x: x",
        "aux: object = len",
        "a, *aux = 1, 2",
        "import math as aux",
        "import aux",
        "import aux.part",
        "from math import sqrt as aux",
        "from math import aux",
        "X = (aux := len)",
        "def part(y):\n    return [aux for aux in y]",
        "def part(y):\n    return lambda aux: y",
        "def part(*aux): pass",
        "def part(**aux): pass",
        "def part(y):\n    global aux",
        "def part(y):\n    for aux in y: pass",
        "def part(y):\n    with y as aux: pass",
        "def part(y):\n    try: pass\n    except y as aux: pass",
        "def part(y):\n    del aux",
        "def part(y):\n    match y:\n        case aux: pass",
        "def part(y):\n    match y:\n        case [*aux]: pass",
        "def part(y):\n    match y:\n        case {**aux}: pass",
        "def part(y):\n    match y:\n        case [1, 2] as aux: pass",
        "def part(y):\n    def aux(): pass",
    ],
)
def test_who_gives_the_helper_another_meaning_does_not_call_it(text: str) -> None:
    assert use(LIVE) == HelperUse(True, True, False)
    assert use(text + "\n" + LIVE) == HelperUse(False, False, False)


@pytest.mark.parametrize("text", ["import math.aux", "from math import aux as other", "X = dict(aux=1)", "X = 'aux'"])
def test_other_things_of_that_name_do_not_matter(text: str) -> None:
    assert use(text + "\n" + LIVE) == HelperUse(True, True, False)


@pytest.mark.parametrize(
    "body",
    [
        "return 1\n    aux(xs)",
        "raise xs\n    return aux(xs)",
        "if False:\n        return aux(xs)\n    return 1",
        "if not 1: aux(xs)\n    return 1",
        "while 0: aux(xs)\n    return 1",
        "return aux(xs) if 0 else 1",
        "return 0 and aux(xs)",
        "return 1 or aux(xs)",
        "if xs: return 1\n    else: return 2\n    return aux(xs)",
        "if True: return 1\n    return aux(xs)",
        "with xs: return 1\n    return aux(xs)",
        "def inner(): return aux(xs)\n    return 1",
        "def inner(): return inner() + aux(xs)\n    return 1",
        "return 'aux(xs)'",
    ],
)
def test_a_call_that_cannot_run_is_none(body: str) -> None:
    assert use(f"def solve(xs):\n    {body}\n") == HelperUse(False, False, False)


def test_a_call_that_cannot_run_does_not_change_what_the_others_are() -> None:
    assert use("def solve(xs):\n    aux(xs)\n    return 1\n    return aux(xs)") == HelperUse(True, False, False)
    assert use("def solve(xs):\n    0\n    return aux(xs)\n    x = 1\n    return x") == HelperUse(True, True, True)
    assert use("def solve(xs):\n    if 1: return aux(xs)\n    return 1") == HelperUse(True, True, True)
    assert use("def solve(xs):\n    class A:\n        def f(self): return aux(xs) + 1\n    return A().f()").called


def test_many_branches_take_no_long_time() -> None:
    text = "def solve(xs):\n    if xs: return aux(xs)\n" + "    elif xs: return 1\n" * 150
    assert use(text + "    else: return 0\n    return aux(xs)") == HelperUse(True, True, False)
