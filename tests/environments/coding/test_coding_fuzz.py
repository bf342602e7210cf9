"""100,000 fuzzed completions on each path that reads code: nothing raises, nothing is slow, rewards stay in range."""

from __future__ import annotations

import ast
import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from collm.environments.building.blocks import Rules, read_commands
from collm.environments.coding.program import MAX_CHARACTERS, parse, read_source
from collm.environments.coding.prompts import feedback_text
from collm.environments.coding.reward import READINGS
from collm.environments.writing.arxiv import ArXiv
from collm.sandbox.case import UnitResult, Verdict

# Python's opinion of fuzzed programs; outside of tests the environment silences it.
pytestmark = pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")

PROBLEM = {
    "prompt": 'import math\ndef total_odd(xs):\n    """Sum of the odd numbers of xs."""\n',
    "entry_point": "total_odd",
    "test": "def check(candidate):\n    assert candidate([1, 2, 3]) == 4\n    assert candidate([]) == 0\n",
}
UNITS = (
    UnitResult(2, "assert candidate([1, 2, 3]) == 4", True, ""),
    UnitResult(3, "assert candidate([]) == 0", False, "AssertionError"),
)
VERDICTS = (None, Verdict(True, True, UNITS, "", 0, 2, True), Verdict(True, True, UNITS, "", 0, 2, False))
PROGRAMS = (
    "def aux(xs):\n    return [x for x in xs if x % 2]\n",
    "def total_odd(xs):\n    odds = aux(xs)\n    return sum(odds)\n",
    "def total_odd(xs):\n    return aux(xs)\n",
    "def total_odd(xs):\n    if xs:\n        return aux(xs)\n    elif not xs:\n        return 0\n",
    "import math as m\nX = {1: 'a'}\n@m.cache\nasync def total_odd(xs):\n\taux(xs)\n\treturn f'{xs!r:>{9}}'\n",
    "class A:\n    def f(self, aux=1):\n        '''doc'''\n        return lambda: aux\n",
    "Sure! Here is the code:\n\n",
)
PIECES = (
    *(
        "```",
        "```python\n",
        "\t",
        "    ",
        "\n",
        "\r\n",
        "\r",
        "\f",
        "\\\n",
        "\0",
        "\ud800",
        "\ufeff",
        "é",
        "\u00a0",
        "🙂",
    ),
    *("(", ")", "[", "{", "'", '"', "'''", '"""', "f'{", "@", ":=", "-", "not ", "lambda: ", "*", ";", "#", "=", ":"),
    *("aux(xs)", "def ", "return ", "async ", "global aux\n", "import aux\n", "match x:\n case aux: pass\n", "yield"),
    *("if 0: ", "while 1:\n", "del aux\n", "try: pass\nexcept E as aux: pass\n", "from math import *\n", "x = 1\n"),
)
REPEATED = (
    "(",
    "[",
    "-",
    "not ",
    ".a",
    "+1",
    "9",
    "f",
    "if x:\n",
    "elif x: pass\n",
    "x=1;",
    "@a\n",
    "```\n",
    " ",
    "\t",
)


def completions(seed: int) -> Callable[[], str]:
    """A source of texts: programs cut up and put together with whatever is awkward."""
    rng = random.Random(seed)

    def one() -> str:
        text = rng.choice(PROGRAMS)
        if rng.random() < 0.3:
            text += rng.choice(PROGRAMS)
        for _ in range(rng.randrange(4)):
            position, piece = rng.randrange(len(text) + 1), rng.choice(PIECES)
            text = text[:position] + piece + text[position + rng.choice((0, 0, 1, 5)) :]
        if rng.random() < 0.05:
            position = rng.randrange(len(text) + 1)
            text = text[:position] + rng.choice(REPEATED) * rng.choice((5, 60, 400)) + text[position:]
        if rng.random() < 0.1:
            text = text[: rng.randrange(len(text) + 1)]
        return text

    return one


@pytest.mark.slow
@pytest.mark.parametrize(("form", "alone"), [("paper", False), ("paper", True), ("released", False)])
def test_fuzzed_completions(form: str, alone: bool) -> None:
    write = completions(7)
    limit = 0.05 if alone else 0.1  # seconds of CPU time, 0.05 for each completion
    readable = 0
    # One reading takes in two completions, or one of an agent alone.
    for number in range(100_000 if alone else 50_000):
        helper, main = None if alone else write(), write()
        begin = time.process_time()
        reading = READINGS[form](PROBLEM, helper, main, 2)
        case = reading.case()
        score = reading.score(None if case is None else VERDICTS[number % 3])
        feedback = feedback_text("full", "main", "total_odd", score, alone)
        if time.process_time() - begin > limit:  # the garbage collector of a long session may have run, so read again
            assert slowest(lambda pair: READINGS[form](PROBLEM, *pair, 2).case(), (helper, main)) < limit, (
                helper,
                main,
            )
        assert -1e-9 <= max(0.0, score.total_reward) <= (2.1 if alone else 4.0) + 1e-9, (helper, main)
        feedback.encode()
        if case is not None and form == "paper":
            parse(case.program)
            readable += 1
    assert form != "paper" or readable > 5_000


def test_pieces_of_text_are_the_statements_that_were_read() -> None:
    write = completions(11)
    seen = 0
    for _ in range(3_000):
        for statement in read_source(write()).statements:
            (node,) = ast.parse(statement.text).body
            assert ast.dump(node) == ast.dump(statement.node)
            seen += 1
    assert seen > 2_000


GROWING = {
    "fences": "```\n",
    "spaces behind a fence": " ",
    "tabs": "\t",
    "open brackets": "(",
    "quotes": '"',
    "words": "word ",
    "lines": "\n",
    "statements": "a = 1\n",
    "no statements": "a =\n",
    "decorators": "@a\n",
    "definitions cut off": "def f(\n",
    "branches": "def f():\n if x: return 1\n elif y: return 2\n",
    "minus signs": "-",
    "underscores": "_",
    "labels": "paragraph ",
    "commands": "/fill 0 0 0 1 1 1 stone\n",
    "sentences": "Aa",
}


ARXIV = ArXiv(num_train=2, num_eval=1, single_agent=True)


def slowest(read: Callable[[Any], object], text: Any) -> float:
    """The best of three, in seconds of CPU time."""
    times = []
    for _ in range(3):
        begin = time.process_time()
        read(text)
        times.append(time.process_time() - begin)
    return min(times)


def paper(text: str) -> None:
    READINGS["paper"](PROBLEM, text, text).score(None)


def released(text: str) -> None:
    READINGS["released"](PROBLEM, text, text).score(None)


def building(text: str) -> None:
    read_commands(text, Rules({"fill"}, {"stone"}, ((0, 0, 0), (9, 9, 9)), 10**9))


def writing(text: str) -> None:
    ARXIV.step(None, dict.fromkeys(ARXIV.agent_ids, text))


@pytest.mark.parametrize("pattern", GROWING)
@pytest.mark.parametrize("read", [paper, released, building, writing])
def test_time_grows_with_the_length(read: Callable[[str], None], pattern: str) -> None:
    start = "```" if pattern == "spaces behind a fence" else "def total_odd(xs):\n return aux(xs)\n"
    longest = MAX_CHARACTERS if read in (paper, released) else 40_000
    part, full = (start + (GROWING[pattern] * size)[: size - len(start)] for size in (longest // 8, longest))
    # Eight times the text: a time that grows with its square would be 64 times as long. A busy machine may add a factor
    # of three, and a clock half a millisecond.
    assert slowest(read, full) <= 24 * slowest(read, part) + 0.0005
    # More than the longest text that is read takes no longer: 40,000 blanks behind a fence once took 40 s.
    assert slowest(read, full + GROWING[pattern] * 40_000) < 0.5
