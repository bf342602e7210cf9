"""Grids whose cells are pairs (x, y), x to the right and y downwards from the top left: distances, walks and views."""

from __future__ import annotations

from collections.abc import Iterable

Cell = tuple[int, int]


def distance(first: Cell, second: Cell) -> int:
    """Number of steps between two cells, straight or diagonal ones (Chebyshev distance)."""
    return max(abs(first[0] - second[0]), abs(first[1] - second[1]))


def around(cell: Cell, radius: int) -> list[Cell]:
    """The cells within `radius` of `cell`, itself included, row by row; also those outside a grid."""
    x, y = cell
    return [(x + dx, y + dy) for dy in range(-radius, radius + 1) for dx in range(-radius, radius + 1)]


def walk(start: Cell, goal: Cell, steps: int) -> tuple[Cell, ...]:
    """The way from `start` towards `goal`, diagonally as long as that helps: `start` and at most `steps` more cells."""
    way = [start]
    while way[-1] != goal and len(way) <= steps:
        (x, y), (goal_x, goal_y) = way[-1], goal
        way.append((x + (goal_x > x) - (goal_x < x), y + (goal_y > y) - (goal_y < y)))
    return tuple(way)


def viewed(way: Iterable[Cell], radius: int, width: int, height: int) -> frozenset[Cell]:
    """The cells of the grid within `radius` of any cell of `way`."""
    return frozenset(
        (x, y)
        for left, top in way
        for x in range(max(0, left - radius), min(width, left + radius + 1))
        for y in range(max(0, top - radius), min(height, top + radius + 1))
    )
