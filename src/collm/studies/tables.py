"""Tables of methods with a mean and its interval in every cell, for terminals and files."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from collm.runtime.files import replacing

RENAMED = {
    "seconds": "time (s)",
    "turn_seconds": "time of a turn (s)",
    "idle_share": "idle share",
    "tokens_per_second": "tokens/s",
    "cost": "cost (tokens)",
    "message_tokens": "tokens/message",
    "wire_bytes": "bytes on the wire",
    "dropped": "dropped episodes",
}

Cell = tuple[float, float, float]


@dataclass
class Row:
    """A row of a table: its label, its number of runs, and mean and interval by column."""

    label: str
    num_runs: int
    cells: dict[str, Cell]


def names_of(rows: Sequence[Row]) -> list[str]:
    """Columns of all rows, in order of appearance."""
    return list({name: None for row in rows for name in row.cells})


def as_text(rows: Sequence[Row]) -> str:
    """The table for the terminal; wide tables are split into several blocks of columns."""
    width = shutil.get_terminal_size((120, 40)).columns
    first = ["method", *(f"{row.label} ({row.num_runs})" for row in rows)]
    columns = [
        [RENAMED.get(name, name), *(as_cell(row.cells[name]) if name in row.cells else "-" for row in rows)]
        for name in names_of(rows)
    ]
    blocks = [[first]]
    for column in columns:
        if len(blocks[-1]) > 1 and sum(max(map(len, cells)) + 2 for cells in [*blocks[-1], column]) > width:
            blocks.append([first])
        blocks[-1].append(column)
    text = []
    for block in blocks:
        sizes = [max(map(len, column)) for column in block]
        for cells in zip(*block, strict=True):
            text.append("  ".join(cell.ljust(size) for cell, size in zip(cells, sizes, strict=True)).rstrip())
        text.append("")
    return "\n".join(text)


def as_cell(cell: Cell) -> str:
    """`mean [low, high]` with three significant digits, or as integers from 1000 on."""
    mean, low, high = (f"{number:,.0f}" if abs(number) >= 999.5 else f"{number:#.3g}".rstrip(".") for number in cell)
    return mean if mean == low == high else f"{mean} [{low}, {high}]"


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write one line per label, with three fields (mean, low, high) per column."""
    names = names_of(rows)
    with replacing(path) as unfinished, unfinished.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "runs", *(f"{name}{end}" for name in names for end in ("", "_low", "_high"))])
        for row in rows:
            cells = [row.cells.get(name, ("", "", "")) for name in names]
            writer.writerow([row.label, row.num_runs, *(number for cell in cells for number in cell)])
