"""Blueprints of HouseBuild: houses as layers of rows, from a file or plain data, and their division into cuboids.

A blueprint lists its layers from the ground up (y). Row i of a layer is z = i, character j of a row is x = j, both
counted from the corner of the box, and a legend gives each character its block.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collm.environments.building.blocks import AIR, Box, Cell, Command, World, is_air
from collm.errors import ConfigurationError


@dataclass(frozen=True)
class Blueprint:
    """A house to build.

    Args:
        box: Lowest and highest cell.
        world: Block of each solid cell of the house.
        kinds: Kinds of block in the legend, without air; some may have no cell.
    """

    box: Box
    world: World
    kinds: tuple[str, ...]

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Blueprint:
        """The blueprint of the plain data (`origin`, `legend`, `layers`) of a task."""
        left, ground, front = data["origin"]
        layers, legend = data["layers"], data["legend"]
        world = {
            (left + x, ground + y, front + z): legend[letter]
            for y, rows in enumerate(layers)
            for z, row in enumerate(rows)
            for x, letter in enumerate(row)
            if not is_air(legend[letter])
        }
        last = (left + len(layers[0][0]) - 1, ground + len(layers) - 1, front + len(layers[0]) - 1)
        kinds = dict.fromkeys(block for block in legend.values() if not is_air(block))
        return cls(((left, ground, front), last), world, tuple(kinds))

    @property
    def counts(self) -> dict[str, int]:
        """Number of cells of each kind of block."""
        return {**dict.fromkeys(self.kinds, 0), **Counter(self.world.values())}

    @property
    def size(self) -> int:
        """Number of cells of the box, empty ones included."""
        return Command("fill", *self.box).volume

    @property
    def layers(self) -> list[list[list[Cell]]]:
        """All cells of the box: by y, then z, then x."""
        (left, ground, front), (right, top, back) = self.box
        return [
            [[(x, y, z) for x in range(left, right + 1)] for z in range(front, back + 1)]
            for y in range(ground, top + 1)
        ]

    def rectangles(self, blocks: Mapping[Cell, str]) -> list[Command]:
        """Cover `blocks` with flat fills: runs along x, merged along z if their range and block are equal."""
        result: list[Command] = []
        for layer in self.layers:
            opened: dict[tuple[int, int, str], int] = {}
            y = layer[0][0][1]
            for row in layer:
                z = row[0][2]
                runs = _runs(row, blocks)
                result += [_fill(run, y, start, z - 1) for run, start in opened.items() if run not in runs]
                continued = {run: start for run, start in opened.items() if run in runs}
                opened = {**continued, **{run: z for run in runs if run not in continued}}
            result += [_fill(run, y, start, layer[-1][0][2]) for run, start in opened.items()]
        return result


def _runs(row: list[Cell], blocks: Mapping[Cell, str]) -> list[tuple[int, int, str]]:
    """Maximal runs of one block in a row of cells: first x, last x, block."""
    runs: list[tuple[int, int, str]] = []
    for cell in row:
        block, x = blocks.get(cell), cell[0]
        if block is None:
            continue
        if runs and runs[-1][1] == x - 1 and runs[-1][2] == block:
            runs[-1] = (runs[-1][0], x, block)
        else:
            runs.append((x, x, block))
    return runs


def _fill(run: tuple[int, int, str], y: int, front: int, back: int) -> Command:
    return Command("fill", (run[0], y, front), (run[1], y, back), run[2])


def halves(fill: Command) -> tuple[Command, Command]:
    """Cut a fill of more than one cell across its longest side."""
    low, high = zip(*(sorted(ends) for ends in zip(fill.start, fill.end, strict=True)), strict=True)
    axis = max(range(3), key=lambda side: high[side] - low[side])
    middle = (low[axis] + high[axis]) // 2
    below = (*high[:axis], middle, *high[axis + 1 :])
    above = (*low[:axis], middle + 1, *low[axis + 1 :])
    return Command("fill", low, below, fill.block), Command("fill", above, high, fill.block)


def as_data(world: Mapping[Cell, str], size: tuple[int, int, int]) -> dict[str, Any]:
    """Plain data of a house whose box begins at 0 0 0."""
    kinds = sorted(set(world.values()))
    letters = {block: chr(ord("B") + index) for index, block in enumerate(kinds)}
    width, height, depth = size
    layers = tuple(
        tuple("".join(letters.get(world.get((x, y, z), AIR), "A") for x in range(width)) for z in range(depth))
        for y in range(height)
    )
    legend = {"A": AIR, **{letter: block for block, letter in letters.items()}}
    return {"origin": (0, 0, 0), "legend": legend, "layers": layers}


def read_blueprints(path: str) -> dict[str, dict[str, Any]]:
    """Houses of a JSON file by task id: a list or a single one, in the format of the authors' released data."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigurationError(f"path: cannot read {path!r} ({error.strerror}); name a JSON file.") from error
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"path: {path!r} is not JSON in UTF-8 ({error}); correct it.") from error
    records = content if isinstance(content, list) else [content]
    if not records:
        raise ConfigurationError(f"path: {path!r} lists no house; add some.")
    houses: dict[str, dict[str, Any]] = {}
    for index, record in enumerate(records, 1):
        where = f"{path}, house {index}"
        if not isinstance(record, Mapping):
            raise ConfigurationError(f"{where}: expected an object with inventory and target_spec.")
        task_id = str(record.get("task_id") or f"house_build_{index:04d}")
        if task_id in houses:
            raise ConfigurationError(f"{where}: the task_id {task_id!r} is repeated; give every house another one.")
        houses[task_id] = blueprint_data(record, where)
    return houses


def blueprint_data(record: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Plain data of one record of such a file; `where` is its location for error messages."""
    legend = record.get("inventory")
    if not isinstance(legend, Mapping) or not legend:
        raise ConfigurationError(f"{where}: 'inventory' must be an object of block names with one-letter keys.")
    for letter, block in legend.items():
        if len(letter) != 1 or not isinstance(block, str) or len(block.split()) != 1:
            raise ConfigurationError(f"{where}: the inventory entry {letter!r}: {block!r} must be a letter and a word.")
    spec = record.get("target_spec")
    if not isinstance(spec, Mapping) or not spec.get("layers"):
        raise ConfigurationError(f"{where}: 'target_spec' must hold 'layers'.")
    layers = _layers(spec["layers"], where)
    heights = sorted(layers)
    width, depth = len(layers[heights[0]][0]), len(layers[heights[0]])
    shape = f"{depth} rows of {width} letters"
    for y, rows in layers.items():
        if len(rows) != depth or any(len(row) != width for row in rows):
            raise ConfigurationError(f"{where}: layer {y} is not {shape} as layer {heights[0]} is.")
        unknown = sorted({letter for row in rows for letter in row} - set(legend))
        if unknown:
            raise ConfigurationError(f"{where}: layer {y} uses {unknown}, which the inventory lacks; add them there.")
    origin, last = (0, heights[0], 0), (width - 1, heights[-1], depth - 1)
    if record.get("bbox") is not None:
        origin, last = _box(record["bbox"], where)
    size = tuple(high - low + 1 for low, high in zip(origin, last, strict=True))
    if heights != list(range(origin[1], last[1] + 1)) or size != (width, len(heights), depth):
        raise ConfigurationError(
            f"{where}: the layers y = {heights} of {shape} do not fill the box from "
            f"{list(origin)} to {list(last)}; make them agree."
        )
    declared = spec.get("size")
    if declared is not None and list(declared) != list(size):
        raise ConfigurationError(f"{where}: 'size' says {declared}, but the layers are {list(size)}; correct one.")
    data = {"origin": origin, "legend": dict(legend), "layers": tuple(tuple(layers[y]) for y in heights)}
    if not Blueprint.of(data).world:
        raise ConfigurationError(f"{where}: the house is all air, there is nothing to build; remove it.")
    return data


def _layers(layers: Any, where: str) -> dict[int, list[str]]:
    """Rows by height, from either an object or a list of objects with y and rows."""
    try:
        if isinstance(layers, Mapping):
            pairs = [(int(y), rows) for y, rows in layers.items()]
        else:
            pairs = [(int(layer["y"]), layer["rows"]) for layer in layers]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{where}: 'layers' must be a list of objects with y and rows, or an object of rows by height."
        ) from error
    for y, rows in pairs:
        if not isinstance(rows, list) or not rows or not all(isinstance(row, str) and row for row in rows):
            raise ConfigurationError(f"{where}: the rows of layer {y} must be a list of texts that are not empty.")
    if len(dict(pairs)) != len(pairs):
        raise ConfigurationError(f"{where}: a layer appears twice; keep one of each height.")
    return dict(pairs)


def _box(box: Any, where: str) -> Box:
    corners = [box.get(name) if isinstance(box, Mapping) else None for name in ("from", "to")]
    for corner in corners:
        if not isinstance(corner, list) or len(corner) != 3 or any(type(value) is not int for value in corner):
            raise ConfigurationError(f"{where}: 'bbox' must hold 'from' and 'to' with three whole numbers each.")
    return tuple(corners[0]), tuple(corners[1])  # type: ignore[arg-type]
