"""Classes to complete: samples in the package, a local file, or the data set ClassEval from the hub.

A row has a `task_id`, the `skeleton` of a class, and `tests`: for each method to fill in a list of Python sources with
asserts about objects of the class. Rows of ClassEval have `test`, a module of unittest, and `methods_info` instead; its
tests also use what the class imports, which `import_statement` lists.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from collm.environments.coding.class_program import class_test, read_skeleton
from collm.environments.coding.unit_tests import test_functions
from collm.environments.rows import Row, load_rows
from collm.environments.splits import distinct
from collm.errors import ConfigurationError
from collm.runtime.checks import check_utf8

REPLACED = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "\u00a0": " ", "\u2013": "-"})


def load_classes(dataset: str) -> list[Row]:
    """All classes of `dataset`, checked; see this module.

    Returns:
        Rows with the fields `skeleton`, `solution` (a class, or None), `imports` of the tests, and `tests`, a list of
        pairs of a method's name and a test.
    """
    return distinct(map(check_class, load_rows(dataset, split="test", samples="class_samples.jsonl")))


def check_class(row: Row) -> Row:
    """The row in the form of `load_classes`; raises `ConfigurationError` with its location if it is invalid."""
    where, fields = row.location, row.fields
    for name in ("task_id", "skeleton"):
        if not isinstance(fields.get(name), str) or not fields[name].strip():
            raise ConfigurationError(
                f"{where}: the field {name!r} must be text that is not blank, got {fields.get(name)!r:.60}; correct or "
                "remove the row."
            )
    source = check_utf8(f"{where}, field 'skeleton'", fields["skeleton"].translate(REPLACED))
    try:
        skeleton = read_skeleton(source)
    except SyntaxError as error:
        raise ConfigurationError(f"{where}: the skeleton is no class to fill in ({error}).") from error
    try:
        imports, tests = tests_of(fields)
        unknown = sorted({name for name, _ in tests} - set(skeleton.stubs) - {""})
        if "methods_info" in fields:  # which also lists what is not to be filled in, such as a constructor
            tests = [("" if name in unknown else name, source) for name, source in tests]
        elif unknown:
            raise ConfigurationError(
                f"{where}: there are tests of {unknown}, but the methods to fill in are {list(skeleton.stubs)}."
            )
        class_test(skeleton.class_name, tests, imports)
    except (SyntaxError, ValueError) as error:
        if isinstance(error, ConfigurationError):
            raise
        raise ConfigurationError(f"{where}: the tests cannot be read ({error}).") from error
    solution = fields.get("solution") or fields.get("solution_code")
    data = {"skeleton": source, "solution": solution, "imports": imports, "tests": tests}
    return Row(fields["task_id"], where, data)


def tests_of(fields: Mapping[str, Any]) -> tuple[str, list[tuple[str, str]]]:
    """Import lines, and pairs of a method and a test; raises ValueError if there are none."""
    tests, module = fields.get("tests"), fields.get("test")
    if isinstance(tests, Mapping):
        pairs = [(str(name), source) for name, sources in tests.items() for source in sources]
        if not pairs or not all(isinstance(source, str) for _, source in pairs):
            raise ValueError("`tests` must hold a list of sources for each method")
        return "", pairs
    if not isinstance(module, str):
        raise ValueError("there is no field `tests`, and no field `test`")
    imported = fields.get("import_statement") or []
    if not isinstance(imported, (list, tuple)) or not all(isinstance(line, str) for line in imported):
        raise ValueError("`import_statement` must be a list of texts")
    imports, classes = test_functions("\n".join([*imported, module]).translate(REPLACED))
    methods = dict(tested_methods(fields.get("methods_info")))
    pairs = [(methods.get(name, ""), source) for name, sources in classes.items() for source in sources]
    if not pairs:
        raise ValueError("`test` has no test method")
    return imports, pairs


def tested_methods(information: Any) -> Iterator[tuple[str, str]]:
    """The method that each test class of ClassEval is about."""
    for each in information if isinstance(information, list) else []:
        if isinstance(each, Mapping) and isinstance(each.get("test_class"), str):
            yield each["test_class"], str(each.get("method_name", ""))
