"""Rows of a data set with all their fields: local files and folders, or a data set of the hub.

Values keep their types, except in .csv files, where all of them are texts. An error for a row names file and line.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from collm.environments.base import check_tasks
from collm.environments.sources import FILE_SUFFIX, HUB_NAME, csv_rows, json_rows, jsonl_rows, read_text
from collm.errors import ConfigurationError
from collm.runtime.hub import ask_hub
from collm.trajectory import Task

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


class Row(NamedTuple):
    """A row of a data set, with its location for error messages."""

    row_id: str
    location: str
    fields: dict[str, Any]


def load_rows(dataset: str, subset: str | None = None, split: str = "train", samples: str = "") -> list[Row]:
    """All rows of `dataset`.

    Args:
        dataset: "samples", a file or folder with .jsonl, .json, .csv or .parquet files, or a hub name.
        subset: Configuration of a hub data set, for those with several.
        split: Split of a hub data set.
        samples: Name of the file of samples in the package's assets; empty if there is none.

    Raises:
        ConfigurationError: There are no rows, or one of them cannot be read.
    """
    if not isinstance(dataset, str) or not dataset.strip():
        raise ConfigurationError(f"dataset {dataset!r}: give a path or a hub name like owner/name.")
    if dataset == "samples" and samples:
        return list(file_rows(Path(str(resources.files("collm") / "assets" / samples))))
    path = Path(os.path.expanduser(dataset))
    if os.path.exists(path):
        rows = list(folder_rows(path) if path.is_dir() else file_rows(path))
    elif HUB_NAME.fullmatch(dataset) and not FILE_SUFFIX.fullmatch(path.suffix):
        rows = list(hub_rows(dataset, subset, split))
    else:
        raise ConfigurationError(
            f"dataset {dataset!r}: there is no such file or folder (looked in {Path.cwd()}), and it is no hub name "
            "either; give an existing path, or a hub name like owner/name."
        )
    if not rows:
        raise ConfigurationError(f"dataset {dataset!r} holds no rows; write one object per row.")
    return rows


def folder_rows(path: Path) -> Iterator[Row]:
    """Rows of all row files in a folder, in order of their names."""
    files = sorted((entry for entry in path.iterdir() if entry.is_file()), key=lambda entry: entry.name)
    readable = [file for file in files if file.suffix in SUFFIXES]
    if not readable:
        names = ", ".join(file.name for file in files[:5]) or "no files"
        raise ConfigurationError(f"folder {path} has no {', '.join(SUFFIXES)} file (found: {names}); convert them.")
    for file in readable:
        yield from file_rows(file)


def file_rows(path: Path, suffix: str | None = None) -> Iterator[Row]:
    """Rows of a .jsonl, .json, .csv or .parquet file; `suffix` says which where the name does not."""
    suffix = suffix or path.suffix
    if suffix == ".parquet":
        found: Iterator[tuple[str, Any]] = parquet_rows(path)
    elif suffix in SUFFIXES:
        text = read_text(path)
        parse: Any = {".jsonl": jsonl_rows, ".json": json_rows, ".csv": csv_rows}[suffix]
        found = iter(()) if not text.strip() else parse(path, text, None if suffix == ".csv" else "field")
    else:
        raise ConfigurationError(
            f"{path}: cannot read a {suffix or 'suffixless'} file as rows; give one of {', '.join(SUFFIXES)}."
        )
    for position, fields in found:
        if not isinstance(fields, dict) or not all(isinstance(name, str) for name in fields):
            raise ConfigurationError(
                f"{path} {position}: expected one object with named fields, got {type(fields).__name__}."
            )
        yield Row(f"{path}:{position.split()[-1]}", f"{path} {position}", fields)


def parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Position and fields of each row of a .parquet file."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise ConfigurationError(
            f"{path}: reading .parquet needs an extra package: pip install 'collm[hub]'. Or convert it to .jsonl."
        ) from error
    try:
        table = parquet.read_table(path)
    except (ArrowException, OSError) as error:
        raise ConfigurationError(f"{path} is no readable .parquet file ({error}).") from error
    for number, fields in enumerate(table.to_pylist(), start=1):
        yield f"row {number}", fields


def hub_rows(name: str, subset: str | None, split: str) -> Iterator[Row]:
    """Rows of a split of a hub data set, without those that repeat an earlier one."""
    ask_hub()  # before the package reads whether it does
    try:
        import datasets
    except ImportError as error:
        raise ConfigurationError(
            f"dataset {name!r} looks like a hub name, and reading one needs an extra package: "
            "pip install 'collm[hub]'. Or give a local file."
        ) from error
    try:
        rows = datasets.load_dataset(name, *([subset] if subset else []), split=split)
    # The hub client has no common error type: a missing network, an unknown name and a broken cache all differ.
    except Exception as error:
        raise ConfigurationError(
            f"dataset {name!r} (subset {subset!r}, split {split!r}) could not be loaded from the hub "
            f"({type(error).__name__}: {error}). Without a network, write it with to_json('train.jsonl') on a machine "
            "with one, copy the file here and give its path."
        ) from error
    seen: set[str] = set()
    for index, fields in enumerate(rows):
        told = content(fields)
        if told not in seen:
            yield Row(f"{name}:{index}", f"{name} {split} row {index}", dict(fields))
        seen.add(told)


def named(rows: Sequence[Row], id_field: str | None) -> list[Row]:
    """`rows` with the values of `id_field` as their ids (file and line if it is None).

    Raises:
        ConfigurationError: An id is missing or repeated, or two rows are equal in all other fields.
    """
    ids: dict[str, str] = {}
    contents: dict[str, str] = {}
    kept = []
    for row in rows:
        row_id = row.row_id
        if id_field is not None:
            value = row.fields.get(id_field)
            if not isinstance(value, (str, int)) or not str(value).strip():
                raise ConfigurationError(
                    f"{row.location}: the field {id_field!r} must be an id, got {value!r:.60}; give every row one, or "
                    "leave id_field out."
                )
            row_id = str(value)
        told = content({name: value for name, value in row.fields.items() if name != id_field})
        for key, seen, what in ((row_id, ids, f"the id {row_id!r}"), (told, contents, "all fields")):
            if key in seen:
                raise ConfigurationError(
                    f"{row.location} repeats {what} of {seen[key]}; remove one of them, or the same row could be "
                    "trained on and evaluated."
                )
            seen[key] = row.location
        kept.append(row._replace(row_id=row_id))
    return kept


def content(fields: Mapping[str, Any]) -> str:
    """The fields as one text, which two rows share if they are equal."""
    return json.dumps(fields, sort_keys=True, default=str)


def split_rows(
    owner: str,
    load: Callable[[str], Sequence[Row]],
    dataset: str,
    eval_dataset: str | None,
    num_train: int | None,
    num_eval: int,
    seed: int | None,
) -> dict[str, list[Task]]:
    """Rows as tasks: the first `num_train` of `dataset` to train on, and the `num_eval` that follow to evaluate.

    Args:
        owner: Name of the environment, for messages.
        load: Returns the rows of a data set, checked.
        dataset: The data set.
        eval_dataset: Data set whose first rows are evaluated instead; None for the same one.
        num_train: Number of training rows; None for all that are left.
        num_eval: Number of held-out rows.
        seed: Seed of a shuffle before the split; None keeps the order.

    Raises:
        ConfigurationError: There are too few rows, or the splits share one.
    """
    rows = list(load(dataset))
    others = rows if eval_dataset is None else list(load(eval_dataset))
    for each in (rows,) if others is rows else (rows, others):
        if seed is not None:
            random.Random(seed).shuffle(each)
    if num_train is None:
        num_train = max(1, len(rows) - (num_eval if others is rows else 0))
    wanted = num_train + (num_eval if others is rows else 0)
    if wanted > len(rows) or num_eval > len(others):
        raise ConfigurationError(
            f"{owner}: num_train={num_train} and num_eval={num_eval} ask for more rows than there are ({len(rows)} in "
            f"{dataset!r}{'' if eval_dataset is None else f', {len(others)} in {eval_dataset!r}'}); lower one of them."
        )
    held_out = others[num_train:wanted] if others is rows else others[:num_eval]
    train, evaluation = ([Task(row.row_id, row.fields) for row in part] for part in (rows[:num_train], held_out))
    check_tasks(owner, train, evaluation)
    trained = {content(task.data): task.task_id for task in train}
    for task in evaluation:
        if content(task.data) in trained:
            raise ConfigurationError(
                f"{owner}: the held-out row {task.task_id!r} is the same as {trained[content(task.data)]!r}; drop one."
            )
    return {"train": train, "eval": evaluation}
