"""Programs that try to get out, to get a verdict they do not deserve, or to get in the way: those of attacks.txt.

The task is to add one. Each entry begins with a line "### kind, passes n: name". A `program` is as it stands, and
passes none of the asserts unless its heading says how many. A `try` is the body of a function that attempts something;
the program answers correctly only if that returned something true, so an assert that passes is an escape. Its
function `call` tries a system call of the kernel (number on x86_64, then on aarch64) and says whether it got there. A
`forge` is the bytes of an answer, which are written to the channel in place of one, once as the word on loading and
once as what a call returned: two attacks.

Facts about the machine that runs the tests are put in front: VICTIM, a file in the home; OUTSIDE, a file that must not
come into being; TRAINER, the id of this process; PORT and SOCKET, where it listens; PACKAGES, folders in which packages
are installed; COLLM, a file of this package.
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
import ctypes, errno, gc, os, platform, resource, signal, socket, subprocess, sys
def call(number, on_arm, *arguments):
    number = number if platform.machine() == "x86_64" else on_arm
    libc = ctypes.CDLL(None, use_errno=True)
    values = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    return libc.syscall(ctypes.c_long(number), *values) >= 0 or ctypes.get_errno() not in (errno.EPERM, errno.ENOSYS)
def attempt():
{body}
try:
    escaped = attempt()
except BaseException:
    escaped = False
def f(x):
    return x + 1 if escaped else None
"""
_FORGE = """\
import os, struct, sys
def forge(answer):
    frame = sys._getframe()
    while not isinstance(frame.f_locals.get("nonce"), bytes):
        frame = frame.f_back
    data = frame.f_locals["nonce"] + answer
    data = memoryview(struct.pack("!I", len(data)) + data)
    while data:
        data = data[os.write(3, data) :]
    os._exit(0)
def answer():
    return {body}
"""
_ON_LOADING = "forge(answer())\n"
_ON_A_CALL = "def f(x):\n    forge(answer())\n"
_HEADING = re.compile(r"^### (program|try|forge)(?:, passes (\d))?: (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Attack:
    """A program, how many of the asserts it passes, and of which kind it is."""

    name: str
    source: str
    passed: int
    kind: str

    def program(self, facts: Mapping[str, object]) -> str:
        return "".join(f"{name} = {value!r}\n" for name, value in facts.items()) + self.source


def read_attacks() -> list[Attack]:
    _, *pieces = _HEADING.split((Path(__file__).parent / "attacks.txt").read_text(encoding="utf-8"))
    attacks: list[Attack] = []
    for kind, passed, name, text in zip(*(iter(pieces),) * 4, strict=True):
        if kind == "forge":
            body = _FORGE.format(body=text.strip())
            attacks.append(Attack(f"{name}, in place of the word on loading", body + _ON_LOADING, 0, kind))
            attacks.append(Attack(f"{name}, in place of an answer", body + _ON_A_CALL, int(passed or 0), kind))
            continue
        source = _TRY.format(body=textwrap.indent(text.strip(), "    ")) if kind == "try" else text
        attacks.append(Attack(name, source, int(passed or 0), kind))
    return attacks


ATTACKS = read_attacks()
