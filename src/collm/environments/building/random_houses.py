"""Random houses: floor, walls and roof of a few materials, with more details at higher levels.

Level 1 has a floor, closed walls and a flat roof. Level 2 adds corner posts and a door. Level 3 adds windows, a band
around the walls and pitched roofs. Houses of a level also differ in the materials of their parts.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from collm.environments.building.arguments import check_numbers
from collm.environments.building.blocks import World
from collm.environments.building.blueprints import as_data
from collm.errors import ConfigurationError

Size = tuple[int, int, int]

LEVELS = (1, 2, 3)
MATERIALS = ("white_concrete", "obsidian", "stone_stairs", "stone_bricks", "oak_planks")
LEAST_SIDE = 3
# Number of samples per house after which no more different houses are expected.
_PATIENCE = 200


def house_data(
    num_houses: int, num_eval: int, size: Sequence[int], level: int, listed: Sequence[str], seed: int
) -> dict[str, dict[str, Any]]:
    """Blueprints of `num_houses + num_eval` random houses by task id, in the form that `read_blueprints` gives.

    Args:
        num_houses: Houses to train on.
        num_eval: Houses held out.
        size: Sides x, y (height) and z.
        level: How rich the houses are, 1 to 3.
        listed: Kinds of block of all agents, repetitions allowed; none for `MATERIALS`.
        seed: Seed of the houses.

    Raises:
        ConfigurationError: A side is out of its range, or there are not as many different houses.
    """
    width, height, depth = check_numbers("size", size, 3, LEAST_SIDE)
    sides = (width, height, depth)
    # an agent with all kinds can build whatever the others hold too
    materials = tuple(dict.fromkeys(listed)) or MATERIALS
    worlds = random_houses(num_houses + num_eval, sides, level, materials, random.Random(seed))
    return {f"house_{index}": as_data(world, sides) for index, world in enumerate(worlds)}


def random_houses(count: int, size: Size, level: int, materials: Sequence[str], rng: random.Random) -> list[World]:
    """`count` different houses that fill a box of `size` (x, y, z) from 0 0 0 on."""
    seen: set[frozenset] = set()
    houses: list[World] = []
    for _ in range(_PATIENCE * count):
        house = _draw(size, level, materials, rng)
        key = frozenset(house.items())
        if key not in seen:
            seen.add(key)
            houses.append(house)
        if len(houses) == count:
            return houses
    raise ConfigurationError(
        f"num_houses + num_eval: asked for {count} different houses, got only {len(houses)} of size {list(size)}, "
        f"level {level} and {len(materials)} materials; ask for fewer, or raise size, level or materials."
    )


def _draw(size: Size, level: int, materials: Sequence[str], rng: random.Random) -> World:
    width, height, depth = size
    floor, wall, roof = (rng.choice(materials) for _ in range(3))
    roof_layers = _roof(size, level, roof, rng.choice(materials), rng)
    top = height - len(roof_layers)
    house: World = {(x, 0, z): floor for x in range(width) for z in range(depth)}
    ring = [(x, z) for x in range(width) for z in range(depth) if x in (0, width - 1) or z in (0, depth - 1)]
    corners = [(x, z) for x in (0, width - 1) for z in (0, depth - 1)]
    house.update({(x, y, z): wall for y in range(1, top) for x, z in ring})
    sides = [column for column in ring if column not in corners]
    if level >= 3:
        band, y = rng.choice(materials), rng.randrange(1, top)
        house.update({(x, y, z): band for x, z in ring})
    if level >= 2:
        post = rng.choice(materials)
        house.update({(x, y, z): post for y in range(1, top) for x, z in corners})
    if level >= 3 and top > 2:
        for x, z in rng.sample(sides, rng.randint(0, min(3, len(sides) - 1))):
            del house[x, top - 1, z]
    if level >= 2:
        x, z = rng.choice(sides)
        for y in range(1, max(2, min(3, top - 1))):
            house.pop((x, y, z), None)
    for index, layer in enumerate(roof_layers):
        house.update({(x, top + index, z): block for (x, z), block in layer.items()})
    return house


def _roof(size: Size, level: int, edge: str, inner: str, rng: random.Random) -> list[dict[tuple[int, int], str]]:
    """Layers of the roof from bottom to top; those of a pitched roof shrink along x, along z or along both."""
    width, height, depth = size
    draw_x, draw_z = rng.choice(((0, 0), (0, 1), (1, 0), (1, 1))) if level >= 3 else (0, 0)
    # The walls have at least one layer, and the top layer at least one cell.
    rises = [(side - 1) // 2 for side, drawn in ((width, draw_x), (depth, draw_z)) if drawn]
    num_layers = 1 + min([height - 3, *rises]) if rises else 1
    layers = []
    for index in range(num_layers):
        xs = range(index * draw_x, width - index * draw_x)
        zs = range(index * draw_z, depth - index * draw_z)
        outline = {xs[0], xs[-1]} if draw_x else set(), {zs[0], zs[-1]} if draw_z else set()
        layers.append(
            {(x, z): edge if not rises or x in outline[0] or z in outline[1] else inner for x in xs for z in zs}
        )
    return layers
