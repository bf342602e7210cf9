"""Text from models and servers on its way to a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """`text` with what a terminal might obey, such as escape sequences, replaced; it keeps its lines."""
    return "".join(letter if letter in "\n\t" or letter.isprintable() else "\ufffd" for letter in text)
