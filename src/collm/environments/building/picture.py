"""A build drawn over its target: what is right, wrong, extra and missing can be told apart without colours.

right     the colour and the hatching of the agent that placed the block
wrong     the same, with a white bar across: another kind of block belongs here
extra     the same, with a cross: the cell should be empty
missing   empty, with a dashed frame
target    the thick line is its outline
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from collm.environments.building.blocks import Cell, World
from collm.environments.canvas import INK, Canvas, Style, flowing

SIDE, MARGIN, TITLE = 28, 10, 16  # of a cell, around a panel, above a panel, in units of the drawing
SMALL_SIDE = 18  # of a cell where there are several panels
LEGEND_WIDTH = 200
MAX_WIDTH = 640  # panels go on in the next row beyond this

_GROUND, _GRID = Style("#edf0f2"), Style("#ffffff", 2.0)
_MISSING = Style(INK, 1.6, 3.0)
_CROSS_EDGE, _CROSS = Style("#ffffff", 5.0, layer=3), Style(INK, 2.6, layer=4)
_BAR = Style("#ffffff", 5.5, layer=3)
_OUTLINE = Style(INK, 2.4, layer=5)
# Colours of Okabe and Ito, from dark to light in turns; then they repeat with other hatchings.
_COLOURS = ("#0072b2", "#e69f00", "#7a3b69", "#56b4e9", "#00694e", "#f0e442")
_HATCHES = ("rising", "level", "upright", "falling", "dotted")

Layer = Sequence[Sequence[Cell]]


def draw_builds(
    layers: Sequence[tuple[str, Layer]],
    target: World,
    world: World,
    builders: Mapping[Cell, int],
    agent_ids: Sequence[str],
    kinds_count: bool,
) -> Canvas:
    """Draw a build over its target.

    Args:
        layers: Title of each panel and its cells, row by row from the top.
        target: Blocks of the target, by cell.
        world: Blocks of the build, by cell.
        builders: Index of the agent that placed each block; agent 0 where it is not known.
        agent_ids: The agents.
        kinds_count: Whether a block of another kind than the target's is marked as wrong.
    """
    side = SIDE if len(layers) == 1 else SMALL_SIDE
    width = side * max(len(rows[0]) for _, rows in layers)
    height = side * max(len(rows) for _, rows in layers)
    labels = {**{str(i): name[:24] for i, name in enumerate(agent_ids)}, "missing": "missing", "extra": "extra"}
    if kinds_count:
        labels["wrong"] = "wrong kind"
    per_row = max(1, min(len(layers), int((MAX_WIDTH - MARGIN) // (width + MARGIN))))
    num_rows = -(-len(layers) // per_row)
    panel_height = TITLE + height + MARGIN
    bottom = num_rows * panel_height + 4
    all_panels = max(MARGIN + per_row * (width + MARGIN), LEGEND_WIDTH)
    corners, end = flowing(labels, MARGIN, bottom, all_panels)
    canvas = Canvas(all_panels, end + 6)
    for index, (title, rows) in enumerate(layers):
        left, top = MARGIN + index % per_row * (width + MARGIN), TITLE + index // per_row * panel_height
        if title:
            canvas.text(left, top - 4, title)
        _draw_ground(canvas, left, top, len(rows[0]), len(rows), side)
        for row, line in enumerate(rows):
            for column, cell in enumerate(line):
                _draw_cell(
                    canvas,
                    (left + column * side, top + row * side),
                    target.get(cell),
                    world.get(cell),
                    builders.get(cell, 0),
                    kinds_count,
                    side,
                )
        _draw_outline(canvas, rows, target, left, top, side)
    for key, corner in corners.items():
        if key == "missing":
            _draw_cell(canvas, corner, "block", None, 0, False, 18)
        elif key in ("extra", "wrong"):
            _draw_cell(canvas, corner, None if key == "extra" else "other", "block", 0, True, 18)
        else:
            _draw_cell(canvas, corner, "block", "block", int(key), False, 18)
        canvas.text(corner[0] + 22, corner[1] + 13, labels[key])
    return canvas


def _draw_ground(canvas: Canvas, left: float, top: float, columns: int, rows: int, side: float) -> None:
    canvas.rectangle(_GROUND, left, top, columns * side, rows * side)
    for column in range(1, columns):
        canvas.line(_GRID, left + column * side, top, left + column * side, top + rows * side)
    for row in range(1, rows):
        canvas.line(_GRID, left, top + row * side, left + columns * side, top + row * side)


def _draw_cell(
    canvas: Canvas,
    corner: tuple[float, float],
    wanted: str | None,
    built: str | None,
    builder: int,
    kinds_count: bool,
    side: float,
) -> None:
    x, y, inner = corner[0] + 1, corner[1] + 1, side - 2
    if built is None:
        if wanted is not None:
            canvas.frame(_MISSING, x + inner / 6, y + inner / 6, inner * 2 / 3)
        return
    canvas.rectangle(Style(_COLOURS[builder % len(_COLOURS)], layer=1), x, y, inner, inner)
    _hatch(canvas, builder, x, y, inner)
    if wanted is None:
        for style in (_CROSS_EDGE, _CROSS):
            canvas.line(style, x + 3, y + 3, x + inner - 3, y + inner - 3)
            canvas.line(style, x + inner - 3, y + 3, x + 3, y + inner - 3)
    elif kinds_count and wanted != built:
        canvas.line(_BAR, x, y + inner / 2, x + inner, y + inner / 2)


def _hatch(canvas: Canvas, builder: int, x: float, y: float, side: float) -> None:
    """White lines over a cell; dark ones on light colours, which have odd numbers."""
    style = Style(INK if builder % len(_COLOURS) % 2 else "#ffffff", 1.1, layer=2)
    kind = _HATCHES[builder % len(_HATCHES)]
    half = side / 2
    for step in (side / 4, side / 2, 3 * side / 4):
        if kind == "level":
            canvas.line(style, x, y + step, x + side, y + step)
        elif kind == "upright":
            canvas.line(style, x + step, y, x + step, y + side)
        elif kind == "dotted":
            for other in (side / 4, side / 2, 3 * side / 4):
                canvas.line(style, x + step - 1, y + other, x + step + 1, y + other)
    for start, end in (((0, half), (half, 0)), ((0, side), (side, 0)), ((half, side), (side, half))):
        if kind == "rising":
            canvas.line(style, x + start[0], y + start[1], x + end[0], y + end[1])
        elif kind == "falling":
            canvas.line(style, x + side - start[0], y + start[1], x + side - end[0], y + end[1])


def _draw_outline(canvas: Canvas, rows: Layer, target: World, left: float, top: float, side: float) -> None:
    """The border between cells of the target and others."""
    inside = [[cell in target for cell in line] for line in rows]
    for row in range(len(rows) + 1):
        for column in range(len(rows[0]) + 1):
            here = row < len(rows) and column < len(rows[0]) and inside[row][column]
            above = row > 0 and column < len(rows[0]) and inside[row - 1][column]
            before = column > 0 and row < len(rows) and inside[row][column - 1]
            x, y = left + column * side, top + row * side
            if here != above:
                canvas.line(_OUTLINE, x, y, x + side, y)
            if here != before:
                canvas.line(_OUTLINE, x, y, x, y + side)
