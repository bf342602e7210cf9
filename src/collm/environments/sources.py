"""Texts for writing tasks: samples in the package, local files and folders, or a data set of the hub.

All local rows are checked; the error for an invalid row names file and line. Blank and repeated rows of a hub data set,
which users cannot correct, are skipped.
"""

from __future__ import annotations

import csv
import io
import json
import os
import random
import re
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from collm.errors import ConfigurationError
from collm.runtime.checks import check_utf8
from collm.runtime.hub import ask_hub


class Source(NamedTuple):
    """A text of a data set, with its location for error messages."""

    task_id: str
    location: str
    text: str


HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
FILE_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]*")  # "org/set-v1.5" is a name, "data/set.jsonl" a file
ROW_SUFFIXES = (".jsonl", ".json", ".csv")


def load_sources(dataset: str, field: str, sample_file: str) -> Sequence[Source]:
    """The sources of `dataset`: samples in the package, a local file or folder, or a data set of the hub.

    Args:
        dataset: "samples", a path, or a hub name.
        field: Field of a row that holds the text.
        sample_file: Name of the file of samples in the package's assets.
    """
    if not isinstance(dataset, str) or not dataset.strip():
        raise ConfigurationError(f"dataset {dataset!r}: give 'samples', a path or a hub name like owner/name.")
    if dataset == "samples":
        return local_sources(Path(str(resources.files("collm") / "assets" / sample_file)), field)
    path = Path(os.path.expanduser(dataset))
    if os.path.exists(path):  # unlike Path.exists, it accepts names that are too long
        return local_sources(path, field)
    if HUB_NAME.fullmatch(dataset) and not FILE_SUFFIX.fullmatch(path.suffix):
        return HubSources(dataset, field)
    raise ConfigurationError(
        f"dataset {dataset!r}: there is no such file or folder (looked in {Path.cwd()}), and it is no hub name either; "
        "give 'samples', an existing path, or a hub name like owner/name."
    )


def local_sources(path: Path, field: str) -> list[Source]:
    """All sources of a file or folder; raises `ConfigurationError` for repeated texts."""
    sources = list(read_folder(path, field) if path.is_dir() else read_file(path, field))
    if not sources:
        raise ConfigurationError(f"{path} holds no rows; write one row with the field {field!r} per source.")
    seen: dict[str, str] = {}
    for source in sources:
        key = " ".join(source.text.split())
        if key in seen:
            raise ConfigurationError(
                f"{source.location} repeats {seen[key]}; remove one of them, or the same text could be trained on "
                "and evaluated."
            )
        seen[key] = source.location
    return sources


def read_folder(path: Path, field: str) -> Iterator[Source]:
    """Sources of the row files in a folder, and its .txt files as one source each, in order of their names."""
    files = sorted((entry for entry in path.iterdir() if entry.is_file()), key=lambda entry: entry.name)
    readable = [file for file in files if file.suffix in (*ROW_SUFFIXES, ".txt")]
    if not readable:
        names = ", ".join(file.name for file in files[:5]) or "no files"
        raise ConfigurationError(
            f"folder {path} has no .jsonl, .json, .csv or .txt file (found: {names}); convert the files, for "
            "example with the to_json method of the package datasets."
        )
    for file in readable:
        if file.suffix == ".txt":
            yield checked(file, file.name, "", {field: read_text(file)}, field)
        else:
            yield from read_file(file, field)


def read_file(path: Path, field: str) -> Iterator[Source]:
    """Sources of a .jsonl file (an object per line), a .json file (a list of objects) or a .csv file with a header."""
    suffix = path.suffix
    if suffix not in ROW_SUFFIXES:
        raise ConfigurationError(
            f"{path}: cannot read a {suffix or 'suffixless'} file as rows; give .jsonl, .json or .csv, or a folder "
            "with one .txt file per source."
        )
    text = read_text(path)
    if not text.strip():
        raise ConfigurationError(f"{path} is empty; write one row with the field {field!r} per source.")
    rows = {".jsonl": jsonl_rows, ".json": json_rows, ".csv": csv_rows}[suffix](path, text, field)
    for position, row in rows:
        yield checked(path, f"{path.name}:{position.split()[-1]}", position, row, field)


def read_text(path: Path) -> str:
    """The text of a file, which must be UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read ({error}); give a readable file in UTF-8.") from error


def jsonl_rows(path: Path, text: str, field: str) -> Iterator[tuple[str, Any]]:
    """Line number and value of each line that is not blank."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield f"line {number}", json.loads(line)
        except (ValueError, RecursionError) as error:  # not JSON, a number with thousands of digits, or deep nesting
            raise ConfigurationError(
                f"{path} line {number} is not JSON ({reason(error)}); write one object like "
                f'{{"{field}": "..."}} per line.'
            ) from error


def reason(error: Exception) -> str:
    """A short description of the error of a JSON parser."""
    return getattr(error, "msg", None) or str(error).partition(";")[0]


def json_rows(path: Path, text: str, field: str) -> Iterator[tuple[str, Any]]:
    """Position and value of each entry of the list."""
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = f" line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise ConfigurationError(
            f"{path}{line} is not JSON ({reason(error)}); a .json file holds one list of objects, a .jsonl file one "
            "object per line."
        ) from error
    if not isinstance(rows, list):
        raise ConfigurationError(f"{path} line 1: expected a list of objects with the field {field!r}.")
    for number, row in enumerate(rows, start=1):
        yield f"entry {number}", row


def csv_rows(path: Path, text: str, field: str | None) -> Iterator[tuple[str, Any]]:
    """Line number (where the row ends) and fields of each row below the header, which must hold `field` if given."""
    csv_reader = csv.DictReader(io.StringIO(text))
    try:
        if field is not None and field not in (csv_reader.fieldnames or ()):
            raise ConfigurationError(
                f"{path} line 1: the header has no column {field!r} (it has {csv_reader.fieldnames}); rename the "
                "column that holds the text."
            )
        for row in csv_reader:
            yield f"line {csv_reader.line_num}", row
    except csv.Error as error:
        # line_num counts the lines before this one
        raise ConfigurationError(f"{path} line {csv_reader.line_num + 1}: {error}; correct the row.") from error


def checked(path: Path, task_id: str, position: str, row: Any, field: str) -> Source:
    """The source of a row, which must be an object with text in `field`."""
    location = f"{path} {position}".strip()
    if not isinstance(row, dict):
        raise ConfigurationError(f'{location}: expected an object like {{"{field}": "..."}}, got {type(row).__name__}.')
    if field not in row:
        raise ConfigurationError(f"{location}: no field {field!r} (it has {sorted(map(str, row))}); add or rename it.")
    text = row[field]
    if not isinstance(text, str) or not text.strip():
        raise ConfigurationError(
            f"{location}: the field {field!r} must be text that is not blank, got {text!r:.60}; correct or remove it."
        )
    check_utf8(f"{location}, field {field!r}", text)
    return Source(task_id, location, text)


class HubSources(Sequence[Source]):
    """Rows of the train split of a hub data set, loaded one by one when they are used.

    Args:
        name: Hub name, owner/name.
        field: Column that holds the text.
    """

    def __init__(self, name: str, field: str) -> None:
        ask_hub()  # before the package reads whether it does
        try:
            import datasets
        except ImportError as error:
            raise ConfigurationError(
                f"dataset {name!r} looks like a hub name, and reading one needs an extra package: "
                "pip install 'collm[hub]'. Or give a local file, or 'samples'."
            ) from error
        try:
            self.rows = datasets.load_dataset(name, split="train")
        # The hub client has no common error type: a missing network, an unknown name and a broken cache all differ.
        except Exception as error:
            raise ConfigurationError(
                f"dataset {name!r} could not be loaded from the hub ({type(error).__name__}: {error}). Without a "
                f"network, run load_dataset({name!r}, split='train').to_json('train.jsonl') on a machine with "
                "one, copy the file here and give its path or that of its folder."
            ) from error
        if field not in self.rows.column_names:
            raise ConfigurationError(
                f"dataset {name!r} has no column {field!r} (it has {self.rows.column_names}); choose another one."
            )
        self.name = name
        self.field = field

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Source:  # type: ignore[override]  # rows are read one by one
        text = self.rows[index][self.field]
        return Source(f"{self.name}:{index}", f"{self.name} row {index}", text)


def split_sources(
    sources: Sequence[Source], num_train: int, num_eval: int, seed: int | None
) -> tuple[list[Source], list[Source]]:
    """The first `num_train` sources to train on and the next `num_eval` to evaluate.

    Blank and repeated texts are skipped; local files with such texts were rejected before.

    Args:
        sources: All sources.
        num_train: Number of training sources.
        num_eval: Number of held-out sources.
        seed: Seed of a shuffle before the split; None keeps the order.
    """
    wanted = num_train + num_eval
    order = list(range(len(sources)))
    if seed is not None:
        random.Random(seed).shuffle(order)
    chosen: dict[str, Source] = {}
    for index in order:
        if len(chosen) == wanted:
            break
        source = sources[index]
        if isinstance(source.text, str) and source.text.strip():
            chosen.setdefault(" ".join(source.text.split()), source)
    if len(chosen) < wanted:
        raise ConfigurationError(
            f"num_train={num_train} and num_eval={num_eval} ask for {wanted} different rows, but there are "
            f"{len(chosen)}; lower one of them or add rows."
        )
    kept = list(chosen.values())
    return kept[:num_train], kept[num_train:]
