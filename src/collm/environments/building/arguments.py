"""Checks of the constructor arguments of building games."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from collm.environments.building.blocks import AIR, is_air
from collm.errors import ConfigurationError
from collm.runtime.checks import Range, check_number


def check_blocks(blocks: Mapping[str, Sequence[str]], empty_palettes: bool = False) -> dict[str, tuple[str, ...]]:
    """The palettes without air; raises `ConfigurationError` for invalid ones."""
    if not isinstance(blocks, Mapping) or not blocks:
        raise ConfigurationError(f"blocks is {blocks!r}; give at least one agent id with a list of block names.")
    palettes: dict[str, tuple[str, ...]] = {}
    for agent_id, names in blocks.items():
        if not isinstance(agent_id, str) or not agent_id.strip():
            raise ConfigurationError(f"blocks: {agent_id!r} is no agent id; use a name such as builder_1.")
        if isinstance(names, str) or not isinstance(names, Sequence):
            raise ConfigurationError(f"blocks: {agent_id} has {names!r}; give a list of block names.")
        for name in names:
            if not isinstance(name, str) or not name or len(name.split()) != 1 or name.startswith("minecraft:"):
                raise ConfigurationError(
                    f"blocks: {agent_id} has the block {name!r}; use single words without the prefix minecraft:, "
                    "such as oak_planks."
                )
            if is_air(name) and name != AIR:
                raise ConfigurationError(f"blocks: {agent_id} has {name!r}, which counts as air; write air or drop it.")
        palette = tuple(name for name in names if name != AIR)
        if not palette and not (empty_palettes and not names):
            raise ConfigurationError(f"blocks: {agent_id} has no block to build with; list one other than air.")
        if len(set(palette)) != len(palette):
            raise ConfigurationError(f"blocks: {agent_id} lists a block twice in {list(palette)}; list each once.")
        palettes[agent_id] = palette
    return palettes


def check_numbers(name: str, values: Any, count: int, least: int) -> tuple[int, ...]:
    """Raise `ConfigurationError` unless `values` are `count` integers of at least `least`."""
    if not isinstance(values, (list, tuple)) or len(values) != count:
        raise ConfigurationError(f"{name} is {values!r}; give {count} whole numbers of at least {least}.")
    return tuple(int(check_number(name, value, Range(least, 1_000_000, whole=True))) for value in values)
