"""The page of a gradient test: a table for each cell, and how the noise of every method goes from cell to cell.

Everything on it follows from `table.json`, which lies beside it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from collm.runtime.files import write_text
from collm.studies.gradients import NAMES
from collm.studies.plots import draw_lines, draw_table
from collm.studies.tables import Row, as_cell, write_csv

MEANING = """\
At policies that are held still. `noise_to_signal`: episodes an update needs until its noise is as large as its signal.
`cosine`, `kept`, `norm_ratio`: direction, share and length of the method's expected gradient against the reference.
`update_cosine`: that of an update of one rollout. Means over the seeds of the policies, with 95 % bootstrap intervals
over the tasks that were measured at each. The seeds themselves and the error of the reference are no part of them."""


def write_page(folder: Path, tables: Mapping[str, Sequence[Row]], figures: bool, note: str = "") -> str:
    """Write README.md, table.json, a CSV for each cell and, where asked for, figures; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [name for name in NAMES if any(name in row.cells for rows in tables.values() for row in rows)]
    lines = ["# Noise and bias of policy gradients", "", *([note, ""] if note else []), MEANING]
    for index, (title, rows) in enumerate(tables.items()):
        lines += ["", f"## {title}", "", f"| method | seeds | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
        for row in rows:
            cells = [as_cell(row.cells[name]) if name in row.cells else "-" for name in names]
            lines.append(f"| {row.label} | {row.num_runs} | {' | '.join(cells)} |")
        write_csv(folder / f"table_{index}.csv", list(rows))
        if figures:
            columns = {name: [row.cells[name] for row in rows] for name in names if name in rows[0].cells}
            draw_table(folder / f"table_{index}.png", [row.label for row in rows], columns)
            lines += ["", f"![{title}](table_{index}.png)"]
    if figures:
        noise: dict[str, dict] = {}
        for title, rows in tables.items():
            for row in rows:
                noise.setdefault(row.label, {})[title] = row.cells[NAMES[0]]
        draw_lines(folder / "noise_to_signal.png", list(tables), noise, NAMES[0])
        lines += ["", "![Noise to signal](noise_to_signal.png)"]
    lines += ["", "`python tools/report.py --raw table.json --out FOLDER` makes page and figures again."]
    text = "\n".join(lines) + "\n"
    write_text(folder / "README.md", text)
    document = {"gradients": {title: [vars(row) for row in rows] for title, rows in tables.items()}, "note": note}
    write_text(folder / "table.json", json.dumps(document, indent=2))
    return text


def from_record(document: Mapping[str, Sequence[Mapping]]) -> dict[str, list[Row]]:
    """The tables of a table.json."""
    return {
        title: [
            Row(row["label"], row["num_runs"], {name: tuple(cell) for name, cell in row["cells"].items()})
            for row in rows
        ]
        for title, rows in document.items()
    }
