"""Programs that try to get out, to get a verdict they do not deserve, or to get in the way: those of attacks.txt.

The task is to add one. Each entry begins with a line "### kind, passes n: name". A `program` is as it stands, and
passes none of the asserts unless its heading says how many. A `try` is the body of a function that attempts something;
the program answers correctly only if that returned something true, so an assert that passes is an escape.

Facts about the machine that runs the tests are put in front: VICTIM, a file in the home; OUTSIDE, a file that must not
come into being; TRAINER, the id of this process; PORT and SOCKET, where it listens.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

TEST = """\
def check(candidate):
    assert candidate(1) == 2
    assert candidate(10) == 11
    for number in range(3):
        assert candidate(123456 + number) == 123457 + number
"""
TOTAL = 3

_TRY = """\
import ctypes, errno, gc, os, resource, signal, socket, subprocess, sys
def attempt():
{body}
try:
    escaped = attempt()
except BaseException:
    escaped = False
def f(x):
    return x + 1 if escaped else None
"""
_HEADING = re.compile(r"^### (program|try)(?:, passes (\d))?: (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Attack:
    """A program, and how many of the asserts it passes."""

    name: str
    source: str
    passed: int

    def program(self, facts: Mapping[str, object]) -> str:
        return "".join(f"{name} = {value!r}\n" for name, value in facts.items()) + self.source


def read_attacks() -> list[Attack]:
    _, *pieces = _HEADING.split((Path(__file__).parent / "attacks.txt").read_text(encoding="utf-8"))
    attacks = []
    for kind, passed, name, text in zip(*(iter(pieces),) * 4, strict=True):
        source = _TRY.format(body=textwrap.indent(text.strip(), "    ")) if kind == "try" else text
        attacks.append(Attack(name, source, int(passed or 0)))
    return attacks


ATTACKS = read_attacks()
