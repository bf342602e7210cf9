"""The houses of a game: those of a file or random ones, divided into those to train on and those held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from collm.environments.base import check_tasks
from collm.environments.building.blueprints import Blueprint, read_blueprints
from collm.environments.building.random_houses import house_data
from collm.errors import ConfigurationError
from collm.trajectory import Task


def house_tasks(
    path: str | None,
    num_eval: int,
    num_houses: int,
    size: tuple[int, int, int],
    level: int,
    blocks: Mapping[str, Sequence[str]],
    seed: int,
) -> dict[str, tuple[Task, ...]]:
    """Tasks to train on (`train`) and held-out ones (`eval`), the last `num_eval` of them; see `HouseBuild`.

    Raises:
        ConfigurationError: A side is out of range, no house is left to train on, the team has no blocks for a
            house, or a held-out house is trained on.
    """
    kinds = [kind for palette in blocks.values() for kind in palette]
    houses = house_data(num_houses, num_eval, size, level, kinds, seed) if path is None else read_blueprints(path)
    if len(houses) <= num_eval:
        raise ConfigurationError(
            f"path: {path!r} holds {len(houses)} houses, of which num_eval = {num_eval} are held out, so none "
            "is left to train on; add houses or lower num_eval."
        )
    tasks = tuple(Task(task_id, data) for task_id, data in houses.items())
    check_tasks("HouseBuild", tasks[:-num_eval], tasks[-num_eval:])
    _check_houses({task.task_id: Blueprint.of(task.data) for task in tasks}, blocks, list(houses)[-num_eval:])
    return {"train": tasks[:-num_eval], "eval": tasks[-num_eval:]}


def _check_houses(
    houses: Mapping[str, Blueprint], blocks: Mapping[str, Sequence[str]], held_out: Sequence[str]
) -> None:
    for task_id, house in houses.items():
        available = {kind for palette in blocks.values() for kind in palette or house.kinds}
        lacking = sorted(set(house.world.values()) - available)
        if lacking:
            raise ConfigurationError(
                f"blocks: house {task_id!r} needs {lacking}, which no agent has; give them to an agent, or give an "
                "agent an empty list for all kinds."
            )
    trained = {frozenset(house.world.items()): task_id for task_id, house in houses.items() if task_id not in held_out}
    for task_id in held_out:
        twin = trained.get(frozenset(houses[task_id].world.items()))
        if twin is not None:
            raise ConfigurationError(
                f"path: the held-out house {task_id!r} is the same as {twin!r}, which is trained on; change num_eval "
                "or remove one of them."
            )
