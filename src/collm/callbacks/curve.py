"""The return on held-out tasks over training as an image in the run's folder."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
from PIL import Image, ImageDraw

from collm.runtime.files import replacing

_WIDTH, _HEIGHT = 1000, 560
_LEFT, _RIGHT, _TOP, _BOTTOM = 90, 30, 50, 70  # margins
_INK, _GRID, _BAND, _LINE = "#1c2733", "#dde2e7", "#cfe2f3", "#0072b2"

Point = tuple[int, float, float, float]


class DrawCurve(L.Callback):
    """Writes `return.png`: the mean return of every evaluation of `fit`, with its 95 % bootstrap interval."""

    def __init__(self) -> None:
        self.points: list[Point] = []

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # a broadcast, so all ranks take part
        found = [trainer.callback_metrics.get(f"eval/return{end}") for end in ("", "_low", "_high")]
        if trainer.state.fn != "fit" or any(value is None for value in found):
            return
        mean, low, high = (float(value) for value in found if value is not None)
        if not all(map(math.isfinite, (mean, low, high))):  # the run ends, or the evaluation had no finished episode
            return
        self.points.append((pl_module.joint_samples, mean, low, high))
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            with replacing(folder / "return.png") as unfinished:
                draw_curve(self.points).save(unfinished, "PNG")

    def state_dict(self) -> dict[str, Any]:
        return {"points": self.points}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.points = [tuple(point) for point in state["points"]]


def draw_curve(points: list[Point]) -> Image.Image:
    """The curve through (joint samples, mean, low, high), with a band from low to high."""
    image = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    pen = ImageDraw.Draw(image)
    last = max(point[0] for point in points) or 1
    bottom, top = min(point[2] for point in points), max(point[3] for point in points)
    space = 0.1 * (top - bottom) or 0.5
    bottom, top = bottom - space, top + space

    def position(step: float, value: float) -> tuple[float, float]:
        across = (_WIDTH - _LEFT - _RIGHT) * step / last
        return _LEFT + across, _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * (value - bottom) / (top - bottom)

    pen.text((_LEFT, 14), "return on held-out tasks, mean and 95 % interval", fill=_INK, font_size=22)
    for index in range(5):
        value, step = bottom + (top - bottom) * index / 4, round(last * index / 4)
        _, y = position(0, value)
        pen.line((_LEFT, y, _WIDTH - _RIGHT, y), fill=_GRID, width=1)
        pen.text((_LEFT - 12, y), f"{value:.2f}", fill=_INK, font_size=18, anchor="rm")
        x, _ = position(step, bottom)
        pen.text((x, _HEIGHT - _BOTTOM + 12), f"{step:,}", fill=_INK, font_size=18, anchor="ma")
    pen.text((_WIDTH / 2, _HEIGHT - 32), "joint samples", fill=_INK, font_size=18, anchor="ma")
    lows = [position(step, low) for step, _, low, _ in points]
    highs = [position(step, high) for step, _, _, high in points]
    if len(points) > 1:
        pen.polygon([*lows, *reversed(highs)], fill=_BAND)
        pen.line([position(step, mean) for step, mean, _, _ in points], fill=_LINE, width=4)
    for (step, mean, _, _), low_end, high_end in zip(points, lows, highs, strict=True):
        x, y = position(step, mean)
        pen.line((*low_end, *high_end), fill=_LINE, width=2)
        pen.ellipse((x - 6, y - 6, x + 6, y + 6), fill=_LINE)
    return image
