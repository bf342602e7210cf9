"""The rules of HouseBuild as pure functions: block limits, score, comparison and division of work."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence

from collm.environments.building.blocks import AIR, Cell, Command, World, is_air
from collm.environments.building.blueprints import Blueprint, halves
from collm.environments.building.state import Score

# Scripted demonstrations: the probability of filling a missing cuboid or killing the spiders, and that of filling a
# random cell in place of a cuboid.
DEMONSTRATION_COVERAGE = 0.3
DEMONSTRATION_SLIPS = 0.3


def block_limits(blueprint: Blueprint, palettes: Mapping[str, Sequence[str]]) -> dict[str, dict[str, int]]:
    """Number of cells that each agent may fill, by agent and kind of block: 1.5 times its share of the house.

    For c cells of a kind, each of the n agents with that kind gets ceil(c / n) + floor(c / 2n).
    """
    holders = {kind: sum(kind in palette for palette in palettes.values()) for kind in blueprint.kinds}
    shares = {
        kind: -(-blueprint.counts[kind] // n) + blueprint.counts[kind] // (2 * n) for kind, n in holders.items() if n
    }
    return {
        agent_id: {kind: shares[kind] for kind in blueprint.kinds if kind in palette}
        for agent_id, palette in palettes.items()
    }


def score_house(
    blueprint: Blueprint, world: World, damage: int, health: int, killed: bool, num_agents: int, form: str = "paper"
) -> Score:
    """Score of `world` against `blueprint`, term by term.

    Args:
        blueprint: The house.
        world: Blocks by cell, no air.
        damage: Total damage of the spiders while they live.
        health: Damage with the full penalty.
        killed: Whether the spiders are dead.
        num_agents: Number of agents; in the form "released", a single agent has no penalty.
        form: "paper" or "released".
    """
    house = blueprint.world
    covered = len(house.keys() & world.keys())
    extra = len(world) - covered
    exact = sum(world.get(cell) == block for cell, block in house.items())
    matching = blueprint.size - len(house.keys() | world.keys()) + exact
    harm = 0.0 if killed else min(1.0, damage / health)
    if form == "paper":
        terms = {
            "coverage": 2.0 * covered / len(house),
            "redundancy": -1.5 * extra / len(house) if extra else 0.0,
            "spiders": -0.2 * harm if harm else 0.0,
        }
    else:
        terms = {
            "match": matching / blueprint.size,
            "spiders": -0.1 * harm if harm and num_agents > 1 else 0.0,
        }
    counts = {
        "solid": len(house),
        "covered": covered,
        "exact": exact,
        "extra": extra,
        "matching": matching,
        "cells": blueprint.size,
        "damage": damage,
        "killed": int(killed),
    }
    return Score(terms, counts)


def house_features(
    blueprint: Blueprint,
    world: World,
    counts: Mapping[str, int],
    used: Mapping[str, Mapping[str, int]],
    kinds: Sequence[str],
) -> dict[str, float]:
    """Numeric features of a build: cells, spiders, and blocks by kind (used by each agent, missing, and in total).

    Args:
        blueprint: The house.
        world: Blocks by cell, no air.
        counts: Counts of `score_house`.
        used: Number of cells filled so far, by agent and kind.
        kinds: Kinds of block of all houses, so that every house has the same features.
    """
    due = Counter(kind for cell, kind in blueprint.world.items() if world.get(cell) != kind)
    solid = counts["solid"]
    return {
        "solid_cells": solid,
        "covered_share": counts["covered"] / solid,
        "missing": solid - counts["covered"],
        "extra": counts["extra"],
        "extra_share": counts["extra"] / solid,
        "exact_share": counts["exact"] / solid,
        "damage": counts["damage"],
        "spiders_killed": counts["killed"],
        **{f"used/{agent_id}/{kind}": filled.get(kind, 0) for agent_id, filled in used.items() for kind in kinds},
        **{f"due/{kind}": due[kind] for kind in kinds},
        **{f"blueprint/{kind}": blueprint.counts.get(kind, 0) for kind in kinds},
    }


def house_counts(counts: Mapping[str, int], health: int, are_back: bool = False) -> list[str]:
    """Lines with the counts of `score_house`, and the damage of the spiders if there are any.

    Args:
        counts: Counts of `score_house`.
        health: Damage with the full penalty.
        are_back: Whether spiders that were killed live again in the next turn.
    """
    lines = [f"covered {counts['covered']} of {counts['solid']}, exact {counts['exact']}, extra {counts['extra']}"]
    if counts["damage"]:
        living = f"spiders {counts['damage']} of {health}"
        dead = f"{living}, killed in the last turn" if are_back else "spiders dead"
        lines.append(dead if counts["killed"] else living)
    return lines


def corrections(blueprint: Blueprint, world: Mapping[Cell, str]) -> World:
    """The correct block of each wrong cell of `world`; air for cells that should be empty."""
    wrong = {cell: block for cell, block in blueprint.world.items() if world.get(cell) != block}
    return {**wrong, **{cell: AIR for cell in sorted(world.keys() - blueprint.world.keys())}}


def compare(blueprint: Blueprint, world: Mapping[Cell, str]) -> list[str]:
    """The build, layer by layer, each row after its z.

    `+` is right, `!` the wrong kind, `#` missing, `x` should be empty, `.` is empty.
    """
    lines = []
    for layer in blueprint.layers:
        lines.append(f"y {layer[0][0][1]}")
        for row in layer:
            marks = "".join(_mark(blueprint.world.get(cell), world.get(cell)) for cell in row)
            lines.append(f"{row[0][2]} {marks}")
    return lines


def _mark(target: str | None, block: str | None) -> str:
    if target is None:
        return "." if block is None else "x"
    if block is None:
        return "#"
    return "+" if block == target else "!"


def divide_fills(
    fills: Iterable[Command], palettes: Mapping[str, Sequence[str]], left: Mapping[str, Mapping[str, int]]
) -> dict[str, list[Command]]:
    """Divide `fills` among the agents within their block limits, splitting fills that are too large for every agent.

    A fill goes to the agent with the fewest fills among those with enough blocks. Cells for which no agent has a block
    left are dropped.

    Args:
        fills: Disjoint fills.
        palettes: Kinds of block of each agent.
        left: Number of blocks left, by agent and kind; a kind without an entry has no limit.
    """
    remaining = {agent_id: dict(left.get(agent_id, {})) for agent_id in palettes}
    shares: dict[str, list[Command]] = {agent_id: [] for agent_id in palettes}
    queue = deque(fills)
    while queue:
        fill = queue.popleft()
        holders = [agent_id for agent_id in palettes if is_air(fill.block) or fill.block in palettes[agent_id]]
        able = [agent_id for agent_id in holders if remaining[agent_id].get(fill.block, fill.volume) >= fill.volume]
        if able:
            agent_id = min(able, key=lambda candidate: len(shares[candidate]))
            shares[agent_id].append(fill)
            if fill.block in remaining[agent_id]:
                remaining[agent_id][fill.block] -= fill.volume
        elif holders and fill.volume > 1:
            queue.extendleft(reversed(halves(fill)))
    return shares


def random_fills(
    fills: Iterable[Command], cells: Sequence[Cell], left: Mapping[str, int], rng: random.Random
) -> list[Command]:
    """A random part of `fills`, split to fit the blocks `left`; some are replaced by a random cell of `cells`."""
    left = dict(left)
    chosen = []
    for fill in fills:
        if rng.random() >= DEMONSTRATION_COVERAGE:
            continue
        if rng.random() < DEMONSTRATION_SLIPS:
            cell = rng.choice(cells)
            fill = Command("fill", cell, cell, fill.block)
        room = left.get(fill.block, fill.volume)
        if room < 1:
            continue
        while fill.volume > room:
            fill = rng.choice(halves(fill))
        chosen.append(fill)
        if fill.block in left:
            left[fill.block] -= fill.volume
    return chosen


def cuboid_text(fill: Command) -> str:
    """A fill in the syntax of commands, without its verb."""
    return f"{cell_text(fill.start)} {cell_text(fill.end)} {fill.block}"


def cell_text(cell: Cell) -> str:
    """A cell in the syntax of commands."""
    return " ".join(map(str, cell))


def layers_text(house: Blueprint) -> list[str]:
    """The cuboids of the house, one line per layer."""
    lines: dict[int, list[str]] = {}
    for fill in house.rectangles(house.world):
        lines.setdefault(fill.start[1], []).append(cuboid_text(fill))
    return [f"y = {y}: {'; '.join(cuboids)}" for y, cuboids in lines.items()]
