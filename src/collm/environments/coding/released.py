"""The rules of the authors' released code for coding tasks, which work on lines of text.

They are reproduced exactly, except for a limit on the length of a response, and with their flaws: a nested function
cuts off the remaining lines of the outer one, imports and constants of a response are dropped, a comment counts as a
call of the helper, and a discarded result is detected in one spelling only. Tests run in this project's sandbox, so an
object that equals everything, or a program that exits, does not pass them.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from functools import cached_property

from collm.environments.coding.program import HELPER, MAX_CHARACTERS, parse

_DEFINITION = re.compile(r"(\s*)def\s+\w+\s*\(")
_TRIPLE = ('"""', "'''")
_SENTENCE = re.compile(r"[A-Z][a-z].*[.!?:]")
_CODE_WORD = re.compile(r"[=()\[\]{}]|\b(?:def|return|if|for|while)\b")
_CHECK = re.compile(r"def check\(candidate\):[^\n]*\n(.*?)(?=\n[^\S\n]*\n+def|\Z)", re.DOTALL)
_RETURN = re.compile(r"return[ \n]")
_HELPER_CALL = re.compile(rf"\b{HELPER}\s*\(")
_THROWN_AWAY = re.compile(rf"{HELPER} \(.\)")


@dataclass(frozen=True)
class ReleasedProgram:
    """Two responses and a problem, parsed by the released rules.

    Args:
        helper: Text of the function `aux`, or empty.
        main: Text of the entry point, or empty.
        program: Imports of the problem and both functions.
        asserts: The tests: lines with an assert about the candidate, no line twice.
    """

    helper: str
    main: str
    program: str
    asserts: tuple[str, ...]

    @cached_property
    def parses(self) -> bool:
        """Whether the program is valid."""
        try:
            parse(self.program)
        except SyntaxError:
            return False
        return True

    @property
    def calls_helper(self) -> bool:
        """Whether the text of main holds a call of the helper, even in a comment."""
        return bool(_HELPER_CALL.search(self.main))

    @property
    def throws_away(self) -> bool:
        """Whether a line of main discards the result of the helper, in the one spelling that is recognized."""
        return any(_THROWN_AWAY.fullmatch(line.strip()) for line in self.main.split("\n"))

    @property
    def wrapper(self) -> bool:
        """Whether main, without signature, comments and docstring, only returns the result of the helper."""
        lines = [line for line in _without_doc_string(self.main) if not line.startswith(("#", "def "))]
        if not lines:
            return True
        if len(lines) == 1:
            return lines[0].startswith("return ") and HELPER in lines[0]
        if len(lines) == 2:
            assigned = re.match(rf"(\w+)\s*=\s*{HELPER}\s*\(", lines[0])
            return assigned is not None and re.fullmatch(rf"return\s+{assigned[1]}", lines[1]) is not None
        return False

    def returns(self, function: str) -> bool:
        """Whether the text of a function holds the word `return`, even in a docstring."""
        return bool(_RETURN.search(function))

    def runnable(self) -> list[str]:
        """The asserts that parse on one line; no program passes the others."""
        valid = []
        for line in self.asserts:
            try:
                ast.parse(line)
            except SyntaxError:
                continue
            valid.append(line)
        return valid

    def test(self) -> str:
        """A test with the asserts that can run."""
        return "def check(candidate):\n    pass\n" + "".join(f"    {line}\n" for line in self.runnable())


def read_released(prompt: str, test: str, entry_point: str, helper: str, main: str) -> ReleasedProgram:
    """Parse the responses `helper` and `main` by the released rules."""
    helper_text = function_text(clean(helper[:MAX_CHARACTERS]), HELPER)
    main_text = function_text(clean(main[:MAX_CHARACTERS]), entry_point)
    imports = import_lines(prompt)
    program = "\n\n".join(part for part in ("\n".join(imports), helper_text, main_text) if part)
    return ReleasedProgram(helper_text, main_text, program, assert_lines(test))


def clean(text: str) -> str:
    """Keep blocks that begin with a `def` and continue with deeper indentation; drop all other lines."""
    text = re.sub(r"```\w*", "", text)
    kept: list[str] = []
    depth = -1
    quote = ""
    for line in text.split("\n"):
        if quote:
            kept.append(line)
            quote = "" if quote in line else quote
            continue
        begins = _DEFINITION.match(line)
        if begins:
            depth = len(begins[1])
            kept.append(line)
            continue
        if depth < 0:
            continue
        opening = next((mark for mark in _TRIPLE if line.strip().startswith(mark)), "")
        deeper = len(line) - len(line.lstrip()) > depth
        if not line.strip() or deeper or line.startswith("\t") or opening:
            kept.append(line)
            if opening and line.strip().count(opening) == 1:
                quote = opening
        else:
            depth = -1
    return "\n".join(line for line in kept if not _is_sentence(line))


def _is_sentence(line: str) -> bool:
    line = line.strip()
    return bool(_SENTENCE.fullmatch(line)) and not _CODE_WORD.search(line)


def function_text(text: str, name: str) -> str:
    """The function `name` with its indented lines; of several in direct succession, the last one counts."""
    lines = text.split("\n")
    body: list[str] = []
    head = re.compile(rf"(\s*)def\s+{re.escape(name)}\s*\(")
    depth = 0
    for line in lines:
        begins = head.match(line)
        if begins:
            body, depth = [line.lstrip()], len(begins[1])
        elif body:
            if line.strip() and len(line) - len(line.lstrip()) <= depth:
                break
            body.append(line)
    return "\n".join(body).rstrip()


def import_lines(prompt: str) -> list[str]:
    """Distinct import lines of the problem."""
    lines = [line.strip() for line in prompt.split("\n")]
    return list(dict.fromkeys(line for line in lines if re.match(r"import\s+\S|from\s+\S+\s+import\s", line)))


def assert_lines(test: str) -> tuple[str, ...]:
    """Distinct lines with an assert about the candidate in the body of `check`."""
    body = _CHECK.search(test)
    lines = [line.strip() for line in body[1].split("\n")] if body else []
    return tuple(dict.fromkeys(line for line in lines if line.startswith("assert") and "candidate" in line))


def _without_doc_string(text: str) -> list[str]:
    """Stripped lines without blank and triple-quoted ones."""
    lines: list[str] = []
    quote = ""
    for line in (line.strip() for line in text.split("\n")):
        if quote:
            quote = "" if quote in line else quote
            continue
        opening = next((mark for mark in _TRIPLE if line.startswith(mark)), "")
        if opening:
            quote = "" if line.count(opening) > 1 else opening
        elif line:
            lines.append(line)
    return lines
