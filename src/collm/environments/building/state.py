"""What an episode of a building game consists of: its state and the score of a world."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from collm.environments.building.blocks import Cell, Reading, World, is_air
from collm.trajectory import Task


@dataclass(frozen=True)
class Score:
    """Score of a world.

    Args:
        terms: Weighted terms; their sum is the score.
        counts: Integer counts from which the terms are computed.
    """

    terms: dict[str, float]
    counts: dict[str, int]

    @property
    def total(self) -> float:
        """Sum of the terms."""
        return sum(self.terms.values())


@dataclass(frozen=True)
class BuildState:
    """State of an episode.

    Args:
        task: The task.
        turn: Number of turns played.
        world: Blocks at the beginning of the next turn; empty unless the game is persistent.
        terms: Terms of the last score, from which the next improvement is computed.
        attacks: Damage of each spider; empty in games without spiders.
        killed: Whether the spiders are dead at the beginning of the next turn; never unless the game is persistent.
        killed_last: Whether they were dead at the end of the last turn; equal to `killed` if the game is persistent.
        used: Number of cells filled so far, by agent and block; empty unless the game is persistent.
        built: Blocks at the end of the last turn; equal to `world` if the game is persistent.
        builders: Index of the agent that placed each block of `built`, for pictures.
    """

    task: Task
    turn: int = 0
    world: World = field(default_factory=dict)
    terms: Mapping[str, float] = field(default_factory=dict)
    attacks: tuple[int, ...] = ()
    killed: bool = False
    killed_last: bool = False
    used: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    built: World = field(default_factory=dict)
    builders: Mapping[Cell, int] = field(default_factory=dict)


def builders_of(before: Mapping[Cell, int], readings: Iterable[Reading], world: World) -> dict[Cell, int]:
    """Index of the agent that placed each block of `world`.

    Args:
        before: The same before this turn.
        readings: What every agent does in this turn, in the order of the agents.
        world: Blocks after the turn.
    """
    builders = dict(before)
    for index, reading in enumerate(readings):
        fills = [command for command in reading.accepted if not is_air(command.block)]
        builders.update((cell, index) for command in fills for cell in command.cells)
    return {cell: builders[cell] for cell in world}
