"""The rules of StrBuild as pure functions: commands, the score of a world and a best build."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from collm.environments.building.blocks import Cell, World, neighbours, texture
from collm.environments.building.lettering import Rows, area, targets
from collm.environments.building.state import Score


def command(cell: Cell, block: str) -> str:
    """A `/setblock` line."""
    return f"/setblock {cell[0]} {cell[1]} {cell[2]} {block}"


def score_build(rows: Rows, world: World, palettes: Sequence[Sequence[str]], form: str = "paper") -> Score:
    """Score of `world` against the picture `rows`, term by term.

    Args:
        rows: The picture, top row first.
        world: Blocks by cell, no air.
        palettes: Kinds of block of each agent without air; used by "released" only.
        form: "paper" or "released".
    """
    cells = set(targets(rows))
    covered = len(cells & set(world))
    extra = len(world) - covered
    background = area(rows) - len(cells)
    same, pairs = neighbours(world)
    unused = sum(not set(palette) <= set(world.values()) for palette in palettes)
    terms = {"coverage": 2.0 * covered / len(cells) if cells else 0.0}
    denominator = len(cells) if form == "paper" else background
    terms["extra"] = -1.5 * extra / denominator if extra and denominator else 0.0
    terms["adjacency"] = -same / pairs if same else 0.0
    if form == "released":
        terms["palette"] = -0.25 * unused if unused else 0.0
    counts = {
        "targets": len(cells),
        "covered": covered,
        "extra": extra,
        "background": background,
        "same_texture_pairs": same,
        "pairs": pairs,
        "unused_palettes": unused,
    }
    return Score(terms, counts)


def checkerboard(rows: Rows, blocks: Mapping[str, Sequence[str]]) -> dict[Cell, tuple[str, str]]:
    """A build of the picture, without adjacent equal textures if the palettes allow it: agent and block by cell."""
    agent_ids = list(blocks)
    plan: dict[Cell, tuple[str, str]] = {}
    turns = dict.fromkeys(agent_ids, 0)
    for x, y, z in targets(rows):
        owner = agent_ids[(x + y) % len(agent_ids)]
        palette = blocks[owner]
        start = turns[owner]
        around = {texture(plan[cell][1]) for cell in ((x - 1, y, z), (x, y + 1, z)) if cell in plan}
        order = [palette[(start + shift) % len(palette)] for shift in range(len(palette))]
        plan[x, y, z] = (owner, next((block for block in order if texture(block) not in around), order[0]))
        turns[owner] += 1
    return plan
