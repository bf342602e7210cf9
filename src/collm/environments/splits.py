"""Which rows of a data set are trained on and which are held out."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from collm.environments.base import check_tasks
from collm.environments.rows import Row, content
from collm.errors import ConfigurationError
from collm.trajectory import Task


def distinct(rows: Iterable[Row]) -> list[Row]:
    """The rows; raises `ConfigurationError` where an id is repeated."""
    found: dict[str, Row] = {}
    for row in rows:
        if row.row_id in found:
            raise ConfigurationError(
                f"{row.location} repeats the id {row.row_id!r} of {found[row.row_id].location}; give it another one."
            )
        found[row.row_id] = row
    return list(found.values())


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


def split_rows(
    owner: str,
    load: Callable[[str], Sequence[Row]],
    dataset: str,
    eval_dataset: str | None,
    num_train: int | None,
    num_eval: int,
    seed: int | None,
    same: Callable[[Mapping[str, Any]], str] = content,
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
        same: What no row of one split may share with one of the other.

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
    trained = {same(task.data): task.task_id for task in train}
    for task in evaluation:
        if same(task.data) in trained:
            raise ConfigurationError(
                f"{owner}: the held-out row {task.task_id!r} is the same as {trained[same(task.data)]!r}; drop one."
            )
    return {"train": train, "eval": evaluation}
