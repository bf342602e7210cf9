"""Recorded turns of the building games: validation and reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from collm.environments.building.blocks import Reading, Rules, World, build, command_shares, iou, is_air, read_commands
from collm.environments.building.blueprints import Blueprint, blueprint_data
from collm.environments.building.house_rules import block_limits, score_house
from collm.environments.building.lettering import targets
from collm.environments.building.state import Score
from collm.environments.building.str_rules import score_build
from collm.errors import ConfigurationError

Result = dict[str, Any]
DEFAULT_HEALTH = 5


class CaseError(ValueError):
    """A case that cannot be scored; says what is missing or wrong."""


def score_str_build(task: Mapping[str, Any], completions: Sequence[str], form: str) -> Result:
    """One turn of StrBuild."""
    rows = tuple(texts(task, "target_rows_topdown"))
    low, high = cell(task, "bbox_from"), cell(task, "bbox_to")
    sides = tuple(last - first + 1 for first, last in zip(low, high, strict=True))
    if not rows or len({len(row) for row in rows}) != 1 or sides != (len(rows[0]), len(rows), 1):
        raise CaseError("target_rows_topdown and the box from bbox_from to bbox_to do not agree")
    palettes = palettes_of(task, completions)
    readings, world = play({"setblock"}, (low, high), palettes, completions, task, None)
    moved = {(x - low[0], y - low[1], z - low[2]): block for (x, y, z), block in world.items()}
    score = score_build(rows, moved, palettes, form)
    return game_result(score, readings, iou(targets(rows), moved))


def score_house_build(task: Mapping[str, Any], completions: Sequence[str], form: str) -> Result:
    """One turn of HouseBuild."""
    record = {"inventory": task.get("inventory"), "target_spec": {"layers": task.get("layers")}}
    if "bbox_from" in task:
        record["bbox"] = {"from": list(cell(task, "bbox_from")), "to": list(cell(task, "bbox_to"))}
    try:
        house = Blueprint.of(blueprint_data(record, "task"))
    except ConfigurationError as error:
        raise CaseError(str(error)) from None
    # An empty palette stands for all block kinds of the house.
    palettes = [palette or list(house.kinds) for palette in palettes_of(task, completions)]
    named = {str(index): palette for index, palette in enumerate(palettes)}
    limits = list(block_limits(house, named).values()) if task.get("limited_resource", True) else None
    readings, world = play({"fill", "kill"}, house.box, palettes, completions, task, limits)
    killed = any(command.verb == "kill" for reading in readings for command in reading.accepted)
    attacks = task.get("spider_attacks", [])
    if not isinstance(attacks, list) or not all(isinstance(damage, int) for damage in attacks):
        raise CaseError("spider_attacks must be a list of integers")
    health = get(task, "player_hp", int, DEFAULT_HEALTH)
    if health < 1:
        raise CaseError("player_hp must be at least 1")
    score = score_house(house, world, sum(attacks), health, killed, len(completions), form)
    return game_result(score, readings, iou(house.world, world))


def play(
    verbs: set[str],
    box: Any,
    palettes: Sequence[Sequence[str]],
    completions: Sequence[str],
    task: Mapping[str, Any],
    limits: Sequence[Mapping[str, int]] | None,
) -> tuple[list[Reading], World]:
    """Read the commands of all agents and build."""
    total = get(task, "max_commands_total", int)
    if total < 1:
        raise CaseError("max_commands_total must be at least 1")
    shares = command_shares(total, len(completions))
    readings = [
        read_commands(text, Rules(verbs, palettes[i], box, shares[i], limits[i] if limits else {}))
        for i, text in enumerate(completions)
    ]
    return readings, build({}, [command for reading in readings for command in reading.accepted])


def game_result(score: Score, readings: Sequence[Reading], overlap: float) -> Result:
    """Reward and terms of a turn, with the accepted and rejected commands of each agent."""
    agents = [
        {
            "accepted": len(reading.accepted),
            "rejected": [{"line": line, "reason": reason} for line, reason in reading.rejected],
        }
        for reading in readings
    ]
    return {"reward": score.total, "terms": score.terms, "agents": agents, "iou": overlap}


def get(data: Any, name: str, kind: type, default: Any = None) -> Any:
    """The field `name` of `data`, checked for its type; it may be missing if there is a default."""
    if not isinstance(data, Mapping):
        raise CaseError(f"expected an object with {name!r}, got {type(data).__name__}")
    value = data.get(name, default)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise CaseError(f"{name!r} must be {kind.__name__}, got {value!r:.60}")
    return value


def texts(data: Mapping[str, Any], name: str) -> list[str]:
    """The field `name` of `data`, checked to be a list of at least one text."""
    values = get(data, name, list)
    if not values or not all(isinstance(value, str) for value in values):
        raise CaseError(f"{name!r} must be a list of texts, at least one")
    return values


def cell(data: Mapping[str, Any], name: str) -> tuple[int, int, int]:
    """The field `name` of `data`, checked to be the three integers of a position."""
    values = get(data, name, list)
    if len(values) != 3 or not all(isinstance(value, int) for value in values):
        raise CaseError(f"{name!r} must be three integers")
    return (values[0], values[1], values[2])


def palettes_of(task: Mapping[str, Any], completions: Sequence[str]) -> list[list[str]]:
    """The block kinds of each agent, without air."""
    palettes = get(task, "blocks_per_agent", list)
    if len(palettes) != len(completions):
        raise CaseError(f"there are {len(completions)} completions and {len(palettes)} palettes in blocks_per_agent")
    for palette in palettes:
        if not isinstance(palette, list) or not all(isinstance(block, str) for block in palette):
            raise CaseError("blocks_per_agent must hold a list of block names for each agent")
    return [[block for block in palette if not is_air(block)] for palette in palettes]
