"""Requests that need several function calls: samples in the package, BFCL from the package bfcl-eval, or a file."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from collm.environments.rows import Row, file_rows, load_rows
from collm.environments.splits import distinct
from collm.errors import ConfigurationError
from collm.runtime.checks import check_utf8

CATEGORIES = ("parallel", "parallel_multiple", "live_parallel", "live_parallel_multiple")
FIELDS = ("id", "question", "function", "ground_truth")


def load_requests(dataset: str, categories: Sequence[str]) -> list[Row]:
    """All requests of `dataset`: "samples", "bfcl", or a .jsonl file with the fields of BFCL and `ground_truth`.

    Returns:
        Rows whose fields are `request`, a text; `functions`, the schemas; and `expected`, a list of
        `{name: {argument: [accepted values]}}`.
    """
    rows = bfcl_rows(categories) if dataset == "bfcl" else load_rows(dataset, samples="function_calling_samples.jsonl")
    return distinct(map(check_request, rows))


def bfcl_rows(categories: Sequence[str]) -> Iterator[Row]:
    """The rows of `categories` of the package bfcl-eval, whose code is not imported."""
    package = importlib.util.find_spec("bfcl_eval")
    if package is None or not package.submodule_search_locations:
        raise ConfigurationError(
            "dataset 'bfcl' comes with a package that is not installed: pip install --no-deps bfcl-eval (its data are "
            "read, its code and what that needs are not)."
        )
    folder = Path(next(iter(package.submodule_search_locations))) / "data"
    for category in categories:
        if category not in CATEGORIES:
            raise ConfigurationError(f"categories: {category!r} is unknown; choose from {', '.join(CATEGORIES)}.")
        files = sorted(folder.glob(f"BFCL_v*_{category}.json"))
        if not files:
            raise ConfigurationError(f"{folder} has no file of {category!r}; reinstall the package bfcl-eval.")
        # an object per line, although the names end in .json
        questions = list(file_rows(files[-1], ".jsonl"))
        answers = list(file_rows(folder / "possible_answer" / files[-1].name, ".jsonl"))
        truths = {row.fields.get("id"): row.fields.get("ground_truth") for row in answers}
        for row in questions:
            yield row._replace(fields={**row.fields, "ground_truth": truths.get(row.fields.get("id"))})


def check_request(row: Row) -> Row:
    """The row with its fields in the form of `load_requests`; raises `ConfigurationError` if it is invalid."""
    where, fields = row.location, row.fields
    for name in FIELDS:
        if not fields.get(name):
            raise ConfigurationError(f"{where}: the field {name!r} is missing or empty; write {', '.join(FIELDS)}.")
    question = fields["question"]
    messages = question[0] if isinstance(question, list) and len(question) == 1 else None
    if isinstance(question, str):
        messages = [{"content": question}]
    if not isinstance(messages, list) or not all(
        isinstance(message, dict) and isinstance(message.get("content"), str) for message in messages
    ):
        raise ConfigurationError(f"{where}: the question must be a text or one list of messages with a `content`.")
    functions = fields["function"]
    if not isinstance(functions, list) or not all(
        isinstance(each, dict) and isinstance(each.get("name"), str) for each in functions
    ):
        raise ConfigurationError(f"{where}: `function` must be a list of schemas with a `name`.")
    names = {each["name"] for each in functions}
    truth = fields["ground_truth"]
    if not isinstance(truth, list) or not all(is_expected(each, names) for each in truth):
        raise ConfigurationError(
            f"{where}: `ground_truth` must be a list of {{name: {{argument: [accepted values]}}}} with the names "
            f"{sorted(names)}."
        )
    request = check_utf8(f"{where}, question", "\n".join(message["content"] for message in messages))
    return Row(str(fields["id"]), where, {"request": request, "functions": functions, "expected": truth})


def is_expected(value: Any, names: set[str]) -> bool:
    """Whether `value` is one expected call of one of `names`."""
    if not isinstance(value, Mapping) or len(value) != 1:
        return False
    ((name, arguments),) = value.items()
    return (
        name in names
        and isinstance(arguments, Mapping)
        and all(isinstance(values, list) and values for values in arguments.values())
    )
