"""The texts of writing tasks.

All local rows are checked; the error for an invalid row names file and line. Blank and repeated rows of a hub data set,
which users cannot correct, are skipped.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from collm.environments.rows import HubRows, Row, open_rows
from collm.errors import ConfigurationError
from collm.runtime.checks import check_utf8
from collm.trajectory import Task


def load_texts(dataset: str, field: str, samples: str) -> Sequence[Row]:
    """The rows of `dataset`, whose texts are in `field`; a folder may also hold .txt files with one text each.

    Args:
        dataset: "samples", a path, or a hub name.
        field: Field of a row that holds the text.
        samples: Name of the file of samples in the package's assets.
    """
    rows = open_rows(dataset, samples=samples, text_field=field)
    if isinstance(rows, HubRows):
        if field not in rows[0].fields:
            raise ConfigurationError(
                f"dataset {dataset!r} has no column {field!r} (it has {sorted(rows[0].fields)}); choose another one."
            )
        return rows
    seen: dict[str, str] = {}
    for row in rows:
        key = " ".join(checked_text(row, field).split())
        if key in seen:
            raise ConfigurationError(
                f"{row.location} repeats {seen[key]}; remove one of them, or the same text could be trained on "
                "and evaluated."
            )
        seen[key] = row.location
    return [row._replace(row_id=Path(row.row_id).name) for row in rows]


def checked_text(row: Row, field: str) -> str:
    """The text of a row; raises `ConfigurationError` if there is none."""
    if field not in row.fields:
        raise ConfigurationError(f"{row.location}: no field {field!r} (it has {sorted(row.fields)}); add or rename it.")
    text = row.fields[field]
    if not isinstance(text, str) or not text.strip():
        raise ConfigurationError(
            f"{row.location}: the field {field!r} must be text that is not blank, got {text!r:.60}; correct or remove "
            "it."
        )
    return check_utf8(f"{row.location}, field {field!r}", text)


def split_texts(
    rows: Sequence[Row], field: str, num_train: int, num_eval: int, seed: int | None
) -> tuple[list[Task], list[Task]]:
    """The first `num_train` texts to train on and the next `num_eval` to evaluate, without blank and repeated ones.

    Args:
        rows: All rows.
        field: Field that holds the text.
        num_train: Number of training texts.
        num_eval: Number of held-out texts.
        seed: Seed of a shuffle before the split; None keeps the order.
    """
    wanted = num_train + num_eval
    order = list(range(len(rows)))
    if seed is not None:
        random.Random(seed).shuffle(order)
    chosen: dict[str, Task] = {}
    for index in order:
        if len(chosen) == wanted:
            break
        row = rows[index]
        text = row.fields[field]
        if isinstance(text, str) and text.strip():
            chosen.setdefault(" ".join(text.split()), Task(row.row_id, {"source": text}))
    if len(chosen) < wanted:
        raise ConfigurationError(
            f"num_train={num_train} and num_eval={num_eval} ask for {wanted} different rows, but there are "
            f"{len(chosen)}; lower one of them or add rows."
        )
    kept = list(chosen.values())
    return kept[:num_train], kept[num_train:]
