"""Pictures of a state for the replay: lines of text, or an image that an environment drew itself."""

from __future__ import annotations

import base64
import io
import textwrap

import numpy as np
from PIL import Image

from collm.environments.canvas import Canvas

MOST_LINES = 40
COLUMNS = 84
LINE = 16
MAX_CHARACTERS = 150_000


def lines_as_svg(text: str) -> str:
    """The first lines of a text as SVG, long ones broken."""
    lines = [piece for line in text.splitlines() for piece in textwrap.wrap(line[:2000], COLUMNS) or [""]]
    lines = lines[:MOST_LINES] + (["..."] if len(lines) > MOST_LINES else [])
    canvas = Canvas(560, LINE * (len(lines) + 1))
    for number, line in enumerate(lines, start=1):
        canvas.text(10, LINE * number, line)
    return canvas.svg()


def image_as_svg(pixels: np.ndarray) -> str | None:
    """An image [height, width, 3] uint8 as SVG; None if it is too large for a transcript."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    height, width = pixels.shape[:2]
    data = base64.b64encode(file.getvalue()).decode()
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">'
        f'<image width="{width}" height="{height}" href="data:image/png;base64,{data}"/></svg>'
        if len(data) < MAX_CHARACTERS
        else None
    )
