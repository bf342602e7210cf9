"""Maps of ResourceGathering: camps on an empty plain, each with what the agent of another camp needs.

Every agent starts in the middle of a camp, a square as wide as its view. Camp i holds all that the next agent's tools
are for; so an agent sees from the beginning where another one has to go, and nothing of what it needs itself. Camps
lie anywhere, at least `distance` steps apart, each arrangement equally likely: what an agent sees at the start tells
nothing about the place of its own resources except that it is far.

Levels: 1, all of a kind in one cell; 2, in two cells, and a cell of rubble; 3, in three cells, and two of rubble. No
tool is for rubble.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collm.environments.games.grid import Cell, around, distance
from collm.environments.games.grid_rules import different_maps
from collm.environments.rows import file_rows
from collm.errors import ConfigurationError
from collm.runtime.checks import shown

LEVELS = (1, 2, 3)
RUBBLE = "rubble"
# Number of samples after which no arrangement of camps is expected.
_ARRANGEMENTS = 20_000


@dataclass(frozen=True)
class Map:
    """One map.

    Args:
        size: Width and height.
        starts: Where the agents begin, in their order.
        cells: Amount of each kind by cell; other cells are empty.
    """

    size: int
    starts: tuple[Cell, ...]
    cells: Mapping[Cell, Mapping[str, int]]

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Map:
        """The map of the plain data of a task."""
        cells: dict[Cell, dict[str, int]] = {}
        for x, y, kind, amount in data["cells"]:
            cells.setdefault((x, y), {})[kind] = amount
        return cls(data["size"], tuple((x, y) for x, y in data["starts"]), cells)

    @property
    def data(self) -> dict[str, Any]:
        """The map as plain data: `size`, `starts` as [x, y] and `cells` as [x, y, kind, amount]."""
        cells = [[*cell, kind, amount] for cell, held in sorted(self.cells.items()) for kind, amount in held.items()]
        return {"size": self.size, "starts": [list(start) for start in self.starts], "cells": cells}


def portions(goal: int, level: int) -> list[int]:
    """The amounts in the cells that hold `goal` units of a kind together, the largest first."""
    count = min(level, goal)
    return [goal // count + (index < goal % count) for index in range(count)]


def random_maps(
    count: int,
    tools: Mapping[str, Sequence[str]],
    goals: Mapping[str, int],
    size: int,
    vision: int,
    distance: int,
    level: int,
    seed: int,
) -> list[Map]:
    """`count` different maps; for the arguments see `ResourceGathering`.

    Raises:
        ConfigurationError: A camp is too small for its resources, the plain for its camps, or there are fewer maps.
    """
    parts = []
    for kinds in tools.values():
        part = [(kind, amount) for kind in kinds for amount in portions(goals[kind], level)]
        parts.append(part + [(RUBBLE, 1)] * (level - 1))
    parts = parts[1:] + parts[:1]  # camp i holds what the next agent needs
    room = (2 * vision + 1) ** 2 - 1
    if (most := max(map(len, parts))) > room:
        raise ConfigurationError(
            f"a camp needs {most} cells for its resources and rubble, but it has {room} around its middle; lower "
            f"level or goals, or raise vision."
        )
    rng = random.Random(f"maps {seed}")
    return different_maps(count, lambda: _draw(parts, size, vision, distance, rng), "raise size")


def _draw(parts: Sequence[Sequence[tuple[str, int]]], size: int, vision: int, apart: int, rng: random.Random) -> Map:
    for _ in range(_ARRANGEMENTS):
        starts = [(rng.randrange(vision, size - vision), rng.randrange(vision, size - vision)) for _ in parts]
        if all(distance(one, other) >= apart for i, one in enumerate(starts) for other in starts[:i]):
            break
    else:
        raise ConfigurationError(
            f"no place was found for {len(parts)} camps that lie {apart} steps apart on a map of size {size}; lower "
            "distance or raise size."
        )
    cells: dict[Cell, dict[str, int]] = {}
    for start, part in zip(starts, parts, strict=True):
        places = [cell for cell in around(start, vision) if cell != start]
        cells.update({cell: {kind: n} for cell, (kind, n) in zip(rng.sample(places, len(part)), part, strict=True)})
    return Map(size, tuple(starts), cells)


def read_maps(path: str, num_agents: int, goals: Mapping[str, int], most_cells: int = 10_000) -> list[Map]:
    """The maps of a file of JSON lines, each in the form of `Map.data`.

    Raises:
        ConfigurationError: Names the line and what is wrong with it.
    """
    maps = []
    for _, where, data in file_rows(Path(path), ".jsonl"):
        try:
            size, starts, cells = data["size"], data["starts"], data["cells"]
            places = [(x, y) for x, y in starts] + [(x, y) for x, y, _, _ in cells]
            amounts = [amount for _, _, _, amount in cells]
            whole = all(type(n) is int for n in [size, *amounts, *(n for place in places for n in place)])
            names = {kind for _, _, kind, _ in cells}
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigurationError(
                f"{where}: {shown(data)} is no map; give an object with size, starts [[x, y], ...] and cells "
                "[[x, y, kind, amount], ...]."
            ) from error
        if not whole or not 3 <= size <= 1000 or len(cells) > most_cells or min(amounts, default=0) < 1:
            raise ConfigurationError(f"{where}: sizes (3 to 1000), places and amounts (from 1 on) are whole numbers.")
        if not all(0 <= x < size and 0 <= y < size for x, y in places):
            raise ConfigurationError(f"{where}: a start or a cell lies outside of 0 to {size - 1}.")
        if len(starts) != num_agents:
            raise ConfigurationError(f"{where}: it has {len(starts)} starts for {num_agents} agents; give one each.")
        if unknown := names - {*goals, RUBBLE}:
            raise ConfigurationError(f"{where}: no goal names {sorted(map(str, unknown))[0]!r}; there are {[*goals]}.")
        maps.append(Map.of(data))
    return maps
