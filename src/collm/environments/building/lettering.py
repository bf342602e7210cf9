"""Flat pictures for StrBuild: words in a 5 x 5 font, and random connected figures of the same size.

A picture is a tuple of rows, the top row first, with `#` at target cells and `.` at background cells. It lies in the
plane z = 0 with its lower left cell at 0 0 0.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from pathlib import Path

from collm.environments.building.blocks import Box, Cell
from collm.environments.rows import file_rows
from collm.errors import ConfigurationError

Rows = tuple[str, ...]

SIZE = 5
TARGET, BACKGROUND = "#", "."

_FONT = {
    "A": "01110 10001 11111 10001 10001",
    "B": "11110 10001 11110 10001 11110",
    "C": "01111 10000 10000 10000 01111",
    "D": "11110 10001 10001 10001 11110",
    "E": "11111 10000 11110 10000 11111",
    "F": "11111 10000 11110 10000 10000",
    "G": "01111 10000 10111 10001 01110",
    "H": "10001 10001 11111 10001 10001",
    "I": "11111 00100 00100 00100 11111",
    "J": "00111 00010 00010 10010 01100",
    "K": "10001 10010 11100 10010 10001",
    "L": "10000 10000 10000 10000 11111",
    "M": "10001 11011 10101 10001 10001",
    "N": "10001 11001 10101 10011 10001",
    "O": "01110 10001 10001 10001 01110",
    "P": "11110 10001 11110 10000 10000",
    "Q": "01110 10001 10001 10011 01111",
    "R": "11110 10001 11110 10010 10001",
    "S": "01111 10000 01110 00001 11110",
    "T": "11111 00100 00100 00100 00100",
    "U": "10001 10001 10001 10001 01110",
    "V": "10001 10001 10001 01010 00100",
    "W": "10001 10001 10101 11011 10001",
    "X": "10001 01010 00100 01010 10001",
    "Y": "10001 01010 00100 00100 00100",
    "Z": "11111 00010 00100 01000 11111",
    " ": "00000 00000 00000 00000 00000",
}
GLYPHS: dict[str, Rows] = {
    letter: tuple(bits.replace("1", TARGET).replace("0", BACKGROUND).split()) for letter, bits in _FONT.items()
}
DEFAULT_EVAL_WORDS = tuple("EHOSUY")
DEFAULT_WORDS = tuple(letter for letter in GLYPHS if letter not in (" ", *DEFAULT_EVAL_WORDS))


def normalise(word: str, where: str) -> str:
    """`word` without outer whitespace and in capitals; `where` is its origin for error messages."""
    if not isinstance(word, str):
        raise ConfigurationError(f"{where}: {word!r} is not text; put words in quotes.")
    text = word.strip().upper()
    unknown = sorted({letter for letter in text if letter not in GLYPHS})
    if unknown:
        raise ConfigurationError(f"{where}: {word!r} has {unknown}, which the font lacks; use the letters A to Z.")
    if not text:
        raise ConfigurationError(f"{where}: {word!r} is empty, there is nothing to build; give at least one letter.")
    return text


def draw_word(text: str, spacing: int) -> Rows:
    """The letters of `text` in a row, with `spacing` empty columns between them."""
    gap = BACKGROUND * spacing
    return tuple(gap.join(GLYPHS[letter][row] for letter in text) for row in range(SIZE))


def grid_cells(rows: Rows) -> list[Cell]:
    """All cells of a picture in reading order."""
    return [(x, len(rows) - 1 - index, 0) for index, row in enumerate(rows) for x in range(len(row))]


def targets(rows: Rows) -> list[Cell]:
    """The cells of a picture that need a block, in reading order."""
    return [(x, y, z) for x, y, z in grid_cells(rows) if rows[len(rows) - 1 - y][x] == TARGET]


def bounding_box(rows: Rows) -> Box:
    """The box of a picture: its lower left and its upper right cell."""
    return (0, 0, 0), (len(rows[0]) - 1, len(rows) - 1, 0)


def compare(rows: Rows, world: Collection[Cell]) -> Rows:
    """The picture with `+` at covered targets and `x` at blocks on the background."""
    marks = {"#": "+", ".": "x"}
    height = len(rows)
    return tuple(
        "".join(marks[mark] if (x, height - 1 - index, 0) in world else mark for x, mark in enumerate(row))
        for index, row in enumerate(rows)
    )


def numbered(rows: Rows) -> Rows:
    """The picture as agents are shown it: each row begins with its y."""
    return tuple(f"{len(rows) - 1 - index} {row}" for index, row in enumerate(rows))


def area(rows: Rows) -> int:
    """Number of cells of a picture."""
    return len(rows) * len(rows[0])


def random_figures(count: int, rng: random.Random) -> list[Rows]:
    """`count` different connected figures of 7 to 15 cells, none of which is a letter."""
    seen = set(GLYPHS.values())
    figures: list[Rows] = []
    while len(figures) < count:
        figure = _grow(rng.randint(7, 15), rng)
        if figure not in seen:
            seen.add(figure)
            figures.append(figure)
    return figures


def _grow(num_cells: int, rng: random.Random) -> Rows:
    cells = {(rng.randrange(SIZE), rng.randrange(SIZE))}
    while len(cells) < num_cells:
        row, column = rng.choice(sorted(cells))
        down, right = rng.choice(((0, 1), (1, 0), (0, -1), (-1, 0)))
        if 0 <= row + down < SIZE and 0 <= column + right < SIZE:
            cells.add((row + down, column + right))
    return tuple(
        "".join(TARGET if (row, column) in cells else BACKGROUND for column in range(SIZE)) for row in range(SIZE)
    )


def choose_words(
    words: list[str] | None, eval_words: list[str] | None, path: str | None, num_eval: int
) -> tuple[list[str], list[str]]:
    """Training and held-out words, from lists, from a file, or by default from the alphabet."""
    if path is not None:
        if words is not None or eval_words is not None:
            raise ConfigurationError(
                f"path is {path!r}, but words or eval_words are set too; give either path or words."
            )
        return read_words(path, num_eval)
    for name, value in (("words", words), ("eval_words", eval_words)):
        if value is not None and (isinstance(value, str) or not value):
            raise ConfigurationError(f"{name} is {value!r}; give a list of at least one word, or leave it out.")
    evaluation = None if eval_words is None else without_repeats(eval_words, "eval_words")
    if words is None:
        train = [letter for letter in DEFAULT_WORDS if letter not in (evaluation or ())]
    else:
        train = without_repeats(words, "words")
    if evaluation is None:
        evaluation = [letter for letter in DEFAULT_EVAL_WORDS if letter not in train]
    return train, evaluation


def read_words(path: str, num_eval: int) -> tuple[list[str], list[str]]:
    """Words in the column `string` of a CSV file: all but the last `num_eval` for training, and the last ones."""
    words: list[str] = []
    for row in file_rows(Path(path), ".csv"):
        fields = {name.strip(): text for name, text in row.fields.items()}
        if "string" not in fields:
            raise ConfigurationError(
                f"{row.location}: there is no column 'string' among {[*fields]}; the header must be string,difficulty."
            )
        if not (fields["string"] or "").strip():
            continue
        word = normalise(fields["string"], row.location)
        if word in words:
            raise ConfigurationError(f"{row.location}: {word!r} is listed twice; remove one.")
        words.append(word)
    if len(words) <= num_eval:
        raise ConfigurationError(
            f"path: {path!r} holds {len(words)} words, of which num_eval = {num_eval} are held out, so none is left to "
            "train on; add rows or lower num_eval."
        )
    return words[: len(words) - num_eval], words[len(words) - num_eval :]


def without_repeats(words: Collection[str], name: str) -> list[str]:
    """`words` normalised; raises `ConfigurationError` for a repeated one."""
    result: list[str] = []
    for word in words:
        text = normalise(word, name)
        if text in result:
            raise ConfigurationError(f"{name}: {text!r} is listed twice; remove one.")
        result.append(text)
    return result
