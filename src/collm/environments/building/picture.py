"""An image of the target beside the final build, one tile per cell."""

from __future__ import annotations

import colorsys
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

Tiles = Sequence[Sequence[str | None]]

TARGET_BLOCK = "target"

TILE, MARGIN, HEADER = 14, 10, 14

_BACKDROP = (245, 245, 242)
_EMPTY = (226, 226, 220)
_INK = (60, 60, 60)
_COLOURS = {
    TARGET_BLOCK: (120, 144, 176),
    "oak_planks": (181, 143, 86),
    "planks": (181, 143, 86),
    "stone": (125, 125, 125),
    "stone_bricks": (122, 121, 122),
    "stone_stairs": (150, 140, 128),
    "cobblestone": (104, 104, 104),
    "white_concrete": (207, 213, 214),
    "obsidian": (38, 24, 58),
}


def colour(block: str) -> tuple[int, int, int]:
    """The colour of a block: from a table, or else a hash of its name."""
    if block in _COLOURS:
        return _COLOURS[block]
    hue = zlib.crc32(block.encode()) % 360 / 360
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.55, 0.75)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw(panels: Sequence[tuple[str, Tiles, Tiles]]) -> np.ndarray:
    """Draw target and build of each panel next to each other, panels from top to bottom.

    Args:
        panels: Title, target and build; both as rows of block names, None where a cell is empty.

    Returns:
        Picture, [height, width, 3] uint8.
    """
    columns = max(len(target[0]) for _, target, _ in panels)
    width = 3 * MARGIN + 2 * columns * TILE
    height = MARGIN + sum(HEADER + len(target) * TILE + MARGIN for _, target, _ in panels)
    image = Image.new("RGB", (width, height), _BACKDROP)
    pen = ImageDraw.Draw(image)
    top = MARGIN
    for title, target, built in panels:
        for side, (name, tiles) in enumerate((("target", target), ("build", built))):
            left = MARGIN + side * (columns * TILE + MARGIN)
            pen.text((left, top), f"{title} {name}".strip(), fill=_INK)
            _draw_tiles(pen, tiles, left, top + HEADER)
        top += HEADER + len(target) * TILE + MARGIN
    return np.asarray(image)


def _draw_tiles(pen: ImageDraw.ImageDraw, tiles: Tiles, left: int, top: int) -> None:
    for row, line in enumerate(tiles):
        for column, block in enumerate(line):
            x, y = left + column * TILE, top + row * TILE
            fill = _EMPTY if block is None else colour(block)
            pen.rectangle((x, y, x + TILE - 2, y + TILE - 2), fill=fill)
