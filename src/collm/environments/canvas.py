"""A drawing of filled rectangles, lines and words that becomes SVG text or an array of pixels.

Each mark has a style, and all marks of one style become one SVG path, so that a picture of some hundred cells takes a
few kilobytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape

import numpy as np
from PIL import Image, ImageDraw

Segment = tuple[float, float, float, float]


@dataclass(frozen=True)
class Style:
    """How marks look.

    Args:
        colour: "#rrggbb".
        width: Width of lines in units of the drawing; 0 fills rectangles.
        dash: Length of dashes and gaps; 0 for whole lines.
        layer: Marks of higher layers lie above those of lower ones.
    """

    colour: str
    width: float = 0.0
    dash: float = 0.0
    layer: int = 0


@dataclass
class Canvas:
    """A drawing; the unit is one pixel of the SVG.

    Args:
        width: Width of the drawing.
        height: Height of the drawing.
    """

    width: float
    height: float
    marks: dict[Style, list[Segment]] = field(default_factory=dict)
    frames: dict[Style, list[tuple[float, float, float]]] = field(default_factory=dict)
    words: list[tuple[float, float, str]] = field(default_factory=list)

    def rectangle(self, style: Style, x: float, y: float, width: float, height: float) -> None:
        """Fill a rectangle."""
        self.marks.setdefault(style, []).append((x, y, width, height))

    def line(self, style: Style, x: float, y: float, to_x: float, to_y: float) -> None:
        """Draw a line."""
        self.marks.setdefault(style, []).append((x, y, to_x, to_y))

    def frame(self, style: Style, x: float, y: float, side: float) -> None:
        """Draw the outline of a square, above all other marks."""
        self.frames.setdefault(style, []).append((x, y, side))

    def text(self, x: float, y: float, words: str) -> None:
        """Write words with their baseline at y."""
        self.words.append((x, y, words))

    def in_order(self) -> list[tuple[Style, list[Segment]]]:
        """All marks by style, those of the lowest layer first."""
        return sorted(self.marks.items(), key=lambda item: item[0].layer)

    def svg(self) -> str:
        """The drawing as the text of an SVG image."""
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_short(self.width)} {_short(self.height)}" '
            f'width="{_short(self.width)}" height="{_short(self.height)}">'
            '<rect width="100%" height="100%" fill="#fff"/>'
        ]
        for style, segments in self.in_order():
            if style.width:
                path = "".join(f"M{_short(x)} {_short(y)}L{_short(a)} {_short(b)}" for x, y, a, b in segments)
                parts.append(_stroke(path, style))
            else:
                path = "".join(
                    f"M{_short(x)} {_short(y)}h{_short(w)}v{_short(h)}h{_short(-w)}z" for x, y, w, h in segments
                )
                parts.append(f'<path d="{path}" fill="{style.colour}"/>')
        for style, squares in self.frames.items():
            path = "".join(f"M{_short(x)} {_short(y)}h{_short(a)}v{_short(a)}h{_short(-a)}z" for x, y, a in squares)
            parts.append(_stroke(path, style))
        for x, y, words in self.words:
            parts.append(
                f'<text x="{_short(x)}" y="{_short(y)}" font-family="system-ui,sans-serif" font-size="11" '
                f'fill="{INK}">{escaped(words)}</text>'
            )
        return "".join([*parts, "</svg>"])

    def pixels(self, scale: int = 2) -> np.ndarray:
        """The drawing as an image with `scale` pixels per unit, [height, width, 3] uint8."""
        image = Image.new("RGB", (round(self.width * scale), round(self.height * scale)), "white")
        pen = ImageDraw.Draw(image)
        for style, segments in self.in_order():
            for x, y, a, b in segments:
                if not style.width:
                    box = (x * scale, y * scale, (x + a) * scale - 1, (y + b) * scale - 1)
                    pen.rectangle(box, fill=style.colour)
                    continue
                _draw(pen, style, (x, y, a, b), scale)
        for style, squares in self.frames.items():
            for x, y, a in squares:
                for side in ((x, y, x + a, y), (x + a, y, x + a, y + a), (x + a, y + a, x, y + a), (x, y + a, x, y)):
                    _draw(pen, style, side, scale)
        for x, y, words in self.words:
            pen.text((x * scale, (y - 9) * scale), words, fill=INK, font_size=11 * scale)
        return np.asarray(image)


INK = "#1c2733"


def escaped(words: str) -> str:
    """Words as the text of an XML element; `?` in place of characters that XML may not hold."""
    return escape("".join(c if c.isprintable() else "?" for c in words))


def _stroke(path: str, style: Style) -> str:
    dash = f' stroke-dasharray="{_short(style.dash)}"' if style.dash else ""
    return f'<path d="{path}" fill="none" stroke="{style.colour}" stroke-width="{_short(style.width)}"{dash}/>'


def _draw(pen: ImageDraw.ImageDraw, style: Style, segment: Segment, scale: int) -> None:
    for start, end in _dashes(segment, style.dash):
        line = tuple(value * scale for value in (*start, *end))
        pen.line(line, fill=style.colour, width=max(1, round(style.width * scale)))


def _short(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")


def _dashes(segment: Segment, length: float) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """The visible parts of a line, each `length` long with equal gaps; the whole line if `length` is 0."""
    x, y, to_x, to_y = segment
    if not length:
        return [((x, y), (to_x, to_y))]
    count = max(1, round(((to_x - x) ** 2 + (to_y - y) ** 2) ** 0.5 / length))
    points = [(x + (to_x - x) * i / count, y + (to_y - y) * i / count) for i in range(count + 1)]
    return list(zip(points, points[1:], strict=False))[::2]


def flowing(
    labels: Mapping[str, str], left: float, top: float, right: float
) -> tuple[dict[str, tuple[float, float]], float]:
    """Upper left corners of a legend's entries, 24 high, in rows from `left` to `right`, and the end of the last."""
    corners: dict[str, tuple[float, float]] = {}
    x, y = left, top
    for key, label in labels.items():
        width = 34 + 6.2 * len(label)
        if corners and x + width > right + 8:
            x, y = left, y + 24
        corners[key] = (x, y)
        x += width
    return corners, y + 24
