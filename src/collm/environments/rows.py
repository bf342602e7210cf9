"""Rows of a data set with all their fields: local files and folders, or a data set of the hub.

Values keep their types, except in .csv files, where all of them are texts. An error for a row names file and line.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from collm.errors import ConfigurationError
from collm.runtime.hub import ask_hub

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
FILE_SUFFIX = re.compile(r"\.[A-Za-z][A-Za-z0-9]*")  # "org/set-v1.5" is a name, "data/set.jsonl" a file
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")  # and .gz after them


class Row(NamedTuple):
    """A row of a data set, with its location for error messages."""

    row_id: str
    location: str
    fields: dict[str, Any]


def load_rows(dataset: str, subset: str | None = None, split: str | None = "train", samples: str = "") -> list[Row]:
    """All rows of `dataset`, without those of the hub that repeat an earlier one; see `open_rows`."""
    rows = open_rows(dataset, subset, split, samples)
    if isinstance(rows, list):
        return rows
    kept: dict[str, Row] = {}
    for row in rows:
        kept.setdefault(content(row.fields), row)
    return list(kept.values())


def open_rows(
    dataset: str,
    subset: str | None = None,
    split: str | None = "train",
    samples: str = "",
    text_field: str | None = None,
) -> list[Row] | HubRows:
    """All rows of `dataset`; those of the hub are read when they are used.

    Args:
        dataset: "samples", a file or folder with .jsonl, .json, .csv or .parquet files, or a hub name.
        subset: Configuration of a hub data set, for those with several.
        split: Split of a hub data set; None for `test`, or its only one.
        samples: Name of the file of samples in the package's assets; empty if there is none.
        text_field: A .txt file is a row with this field; None if such files are no rows.

    Raises:
        ConfigurationError: There are no rows, or one of them cannot be read.
    """
    give = "give 'samples', an" if samples else "give an"
    if not isinstance(dataset, str) or not dataset.strip():
        raise ConfigurationError(f"dataset {dataset!r}: {give} existing path, or a hub name like owner/name.")
    path = Path(os.path.expanduser(dataset))
    if dataset == "samples" and samples:
        path = Path(str(resources.files("collm") / "assets" / samples))
    rows: list[Row] | HubRows
    if os.path.exists(path):  # unlike Path.exists, it accepts names that are too long
        rows = list(folder_rows(path, text_field) if path.is_dir() else file_rows(path, text_field=text_field))
    elif HUB_NAME.fullmatch(dataset) and not FILE_SUFFIX.fullmatch(path.suffix):
        rows = HubRows(dataset, subset, split)
    else:
        raise ConfigurationError(
            f"dataset {dataset!r}: there is no such file or folder (looked in {Path.cwd()}), and it is no hub name "
            f"either; {give} existing path, or a hub name like owner/name."
        )
    if not rows:
        fields = f" with the field {text_field!r}" if text_field else ""
        raise ConfigurationError(f"dataset {dataset!r} holds no rows; write one object{fields} per row.")
    return rows


def folder_rows(path: Path, text_field: str | None = None) -> Iterator[Row]:
    """Rows of all row files in a folder, in order of their names."""
    suffixes = SUFFIXES if text_field is None else (*SUFFIXES, ".txt")
    files = sorted((entry for entry in path.iterdir() if entry.is_file()), key=lambda entry: entry.name)
    readable = [file for file in files if suffix_of(file) in suffixes]
    if not readable:
        names = ", ".join(file.name for file in files[:5]) or "no files"
        raise ConfigurationError(f"folder {path} has no {', '.join(suffixes)} file (found: {names}); convert them.")
    for file in readable:
        yield from file_rows(file, text_field=text_field)


def suffix_of(path: Path) -> str:
    """The ending that tells how a file is to be read, compressed or not."""
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def file_rows(path: Path, suffix: str = "", text_field: str | None = None) -> Iterator[Row]:
    """Rows of a .jsonl, .json, .csv or .parquet file; `suffix` says which where the name does not."""
    suffix = suffix or suffix_of(path)
    if suffix == ".txt" and text_field is not None:
        yield Row(str(path), str(path), {text_field: read_text(path)})
        return
    if suffix == ".parquet":
        found: Iterator[tuple[str, Any]] = parquet_rows(path)
    elif suffix in SUFFIXES:
        parse = {".jsonl": jsonl_rows, ".json": json_rows, ".csv": csv_rows}[suffix]
        text = read_text(path)
        found = parse(path, text) if text.strip() else iter(())
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


def read_text(path: Path) -> str:
    """The text of a file, which must be UTF-8, compressed or not."""
    try:
        content = path.read_bytes()
        return (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read ({error}); give a readable file in UTF-8.") from error


def jsonl_rows(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    """Line number and value of each line that is not blank."""
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield f"line {number}", json.loads(line)
        except (ValueError, RecursionError) as error:  # not JSON, a number with thousands of digits, or deep nesting
            raise ConfigurationError(
                f"{path} line {number} is not JSON ({reason(error)}); write one object with named fields per line."
            ) from error


def reason(error: Exception) -> str:
    """A short description of the error of a JSON parser."""
    return getattr(error, "msg", None) or str(error).partition(";")[0]


def json_rows(path: Path, text: str) -> Iterator[tuple[str, Any]]:
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
        raise ConfigurationError(f"{path} line 1: expected a list of objects.")
    for number, row in enumerate(rows, start=1):
        yield f"entry {number}", row


def csv_rows(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    """Line number (where the row ends) and fields of each row below the header."""
    csv_reader = csv.DictReader(io.StringIO(text))
    try:
        for row in csv_reader:
            if None in row:  # where the reader puts the values that no column is left for
                names = csv_reader.fieldnames or ()
                raise ConfigurationError(
                    f"{path} line {csv_reader.line_num} has {len(names) + len(row[None])} values for {len(names)} "
                    "columns; quote values that hold commas, or name all columns in the first line."
                )
            yield f"line {csv_reader.line_num}", row
    except csv.Error as error:
        # line_num counts the lines before this one
        raise ConfigurationError(f"{path} line {csv_reader.line_num + 1}: {error}; correct the row.") from error


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


class HubRows(Sequence[Row]):
    """Rows of a split of a hub data set, which are read when they are used.

    Args:
        name: Hub name, owner/name.
        subset: Configuration of the data set.
        split: Its split; None for `test`, or the only one.
    """

    def __init__(self, name: str, subset: str | None, split: str | None) -> None:
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
                f"dataset {name!r} could not be loaded from the hub (subset {subset!r}, split {split!r}; "
                f"{type(error).__name__}: {error}). Without a network, write it with to_json('train.jsonl') on a "
                "machine with one, copy the file here and give its path."
            ) from error
        if split is None:
            split = "test" if "test" in rows else next(iter(rows))
            rows = rows[split]
        self.name, self.split, self.rows = name, split, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Row:  # type: ignore[override]  # rows are read one by one
        return Row(f"{self.name}:{index}", f"{self.name} {self.split} row {index}", dict(self.rows[index]))


def content(fields: Mapping[str, Any]) -> str:
    """The fields as one text, which two rows share if they are equal."""
    return json.dumps(fields, sort_keys=True, default=str)
