"""Pictures of grids as SVG, from rectangles, lines and texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from collm.environments.canvas import escaped
from collm.environments.games.grid import Cell

TILE = 24
COLOURS = ("#1f6fb2", "#c2541b", "#3b8f3e", "#8a4fa3")  # of agents


def square(cell: Cell, fill: str, opacity: float = 1.0) -> str:
    """One cell of the grid, filled."""
    x, y = cell[0] * TILE + 1, cell[1] * TILE + 1
    side = TILE - 1
    return f'<rect x="{x}" y="{y}" width="{side}" height="{side}" fill="{fill}" fill-opacity="{opacity}"/>'


def label(cell: Cell, text: str, fill: str = "#222", size: int = 11) -> str:
    """A short text in the middle of a cell."""
    x, y = cell[0] * TILE + TILE / 2, cell[1] * TILE + TILE / 2 + size / 3
    return f'<text x="{x}" y="{y:.1f}" font-size="{size}" text-anchor="middle" fill="{fill}">{escaped(text)}</text>'


def line(cells: Sequence[Cell], stroke: str) -> str:
    """A line through the middles of cells, with a dot at its end."""
    points = [(x * TILE + TILE / 2, y * TILE + TILE / 2) for x, y in cells]
    drawn = " ".join(f"{x},{y}" for x, y in points)
    end_x, end_y = points[-1]
    return (
        f'<polyline points="{drawn}" fill="none" stroke="{stroke}" stroke-width="3"/>'
        f'<circle cx="{end_x}" cy="{end_y}" r="{TILE / 3}" fill="{stroke}"/>'
    )


def picture(width: int, height: int, shapes: Iterable[str], captions: Sequence[str]) -> str:
    """A grid of `width` by `height` cells with `shapes` in it and lines of text below."""
    bottom = height * TILE
    texts = (
        f'<text x="4" y="{bottom + 16 * (row + 1)}" font-size="12" fill="#222">{escaped(text)}</text>'
        for row, text in enumerate(captions)
    )
    grid = "".join(square((x, y), "#eceae4") for y in range(height) for x in range(width))
    total_width, total_height = width * TILE + 1, bottom + 16 * len(captions) + 8
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total_width} {total_height}" width="{total_width}" '
        f'height="{total_height}" font-family="sans-serif">{grid}{"".join(shapes)}{"".join(texts)}</svg>'
    )
