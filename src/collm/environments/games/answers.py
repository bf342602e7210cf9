"""Commands in answers, one per line: a verb and its arguments. Whatever cannot be read has no effect."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

# Longer answers are cut; both are far more than any turn can use.
MAX_CHARACTERS = 8_000
MAX_LINES = 100
# Length of a rejected line in transcripts.
MAX_REPORTED = 80

_MARKER = re.compile(r"(?:[-*/]+|\d+[.)])\s*")
_NUMBER = re.compile(r"-?[0-9]{1,4}")


@dataclass(frozen=True)
class Line:
    """One command.

    Args:
        verb: The first word, in lower case.
        arguments: The other words.
        text: The line as it was written, shortened.
        rest: What follows the verb, as it was written.
    """

    verb: str
    arguments: tuple[str, ...]
    text: str
    rest: str


def read_lines(answer: str) -> list[Line]:
    """The lines of an answer that are not empty, without list markers and code fences, in linear time."""
    readable = answer[:MAX_CHARACTERS].encode("utf-8", "replace").decode("utf-8")  # no lone surrogates
    lines = []
    for text in readable.splitlines()[:MAX_LINES]:
        text = text.strip()
        marker = _MARKER.match(text)
        text = text[marker.end() :] if marker else text
        if not text or text.startswith("```"):
            continue
        verb, _, rest = text.partition(" ")
        lines.append(Line(verb.lower(), tuple(rest.split()), text[:MAX_REPORTED], rest.strip()))
    return lines


def numbers(words: Sequence[str], count: int) -> tuple[int, ...] | None:
    """`words` as `count` whole numbers; None if they are anything else."""
    if len(words) != count or not all(_NUMBER.fullmatch(word) for word in words):
        return None
    return tuple(int(word) for word in words)
