"""The rules of the authors' released code for coding tasks, which work on lines of text.

They are kept to the letter, within the bounds that keep reading safe, and with their oddities: a nested function cuts
off the rest of the function around it, own imports and constants are lost, a comment counts as using the helper, and a
result that is thrown away goes unnoticed but in one spelling. Only the running of tests is not theirs: the sandbox does
it, so an object equal to everything, or a program that exits, no longer gets the better of them.
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
    """What the released rules make of two completions and a problem.

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
        """Whether the text of main mentions a call of the helper, be it in a comment."""
        return bool(_HELPER_CALL.search(self.main))

    @property
    def throws_away(self) -> bool:
        """Whether a line of main is a call of the helper in the one spelling that is recognized."""
        return any(_THROWN_AWAY.fullmatch(line.strip()) for line in self.main.split("\n"))

    @property
    def wrapper(self) -> bool:
        """Whether what is left of main without its head, comments and doc string only hands on the helper's result."""
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
        """Whether the text of a function holds the word `return`, be it in a doc string."""
        return bool(_RETURN.search(function))

    def runnable(self) -> list[str]:
        """The asserts that are whole statements; the others are tests that nothing passes."""
        good = []
        for line in self.asserts:
            try:
                ast.parse(line)
            except SyntaxError:
                continue
            good.append(line)
        return good

    def test(self) -> str:
        """A test of the asserts that can run."""
        return "def check(candidate):\n    pass\n" + "".join(f"    {line}\n" for line in self.runnable())


def read_released(prompt: str, test: str, entry_point: str, helper: str, main: str) -> ReleasedProgram:
    """Apply the rules."""
    helper_text = function_text(clean(helper[:MAX_CHARACTERS]), HELPER)
    main_text = function_text(clean(main[:MAX_CHARACTERS]), entry_point)
    imports = import_lines(prompt)
    program = "\n\n".join(part for part in ("\n".join(imports), helper_text, main_text) if part)
    return ReleasedProgram(helper_text, main_text, program, assert_lines(test))


def clean(text: str) -> str:
    """Keep blocks of lines that begin with a `def` and go on with deeper lines; drop the rest."""
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
    """The function `name` with the deeper lines that follow; directly repeated, the last one counts."""
    lines = text.split("\n")
    found: list[str] = []
    head = re.compile(rf"(\s*)def\s+{re.escape(name)}\s*\(")
    depth = 0
    for line in lines:
        begins = head.match(line)
        if begins:
            found, depth = [line.lstrip()], len(begins[1])
        elif found:
            if line.strip() and len(line) - len(line.lstrip()) <= depth:
                break
            found.append(line)
    return "\n".join(found).rstrip()


def import_lines(prompt: str) -> list[str]:
    """Lines of the problem that import something, each once."""
    lines = [line.strip() for line in prompt.split("\n")]
    return list(dict.fromkeys(line for line in lines if re.match(r"import\s+\S|from\s+\S+\s+import\s", line)))


def assert_lines(test: str) -> tuple[str, ...]:
    """Lines with an assert about the candidate in the body of `check`, each once."""
    body = _CHECK.search(test)
    lines = [line.strip() for line in body[1].split("\n")] if body else []
    return tuple(dict.fromkeys(line for line in lines if line.startswith("assert") and "candidate" in line))


def _without_doc_string(text: str) -> list[str]:
    """Stripped lines that are not blank, without triple-quoted ones."""
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
