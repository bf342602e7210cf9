"""Figures of comparisons. Matplotlib, an optional dependency (extra `plots`), is imported only when needed."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from collm.errors import ConfigurationError
from collm.runtime.files import replacing
from collm.studies.runs import Curve, band

LABEL_WIDTH = 60
STYLES = ("-", "--", ":")
AXES = {"samples": "joint samples", "seconds": "seconds of training (rollouts and updates)"}


def pyplot() -> Any:
    """Matplotlib's pyplot, with a backend that only writes files."""
    try:
        import matplotlib
    except ImportError as error:
        raise ConfigurationError(
            "figures need matplotlib, which is not installed; pip install 'collm[plots]', or turn figures off."
        ) from error
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def save(figure: Any, path: str | Path) -> None:
    """Write a figure as PNG."""
    with replacing(path) as unfinished:
        figure.savefig(unfinished, dpi=150, format="png")


def draw_table(path: Path, labels: Sequence[str], columns: Mapping[str, Sequence[tuple[float, float, float]]]) -> None:
    """One panel for each column: the mean of every label and its interval.

    Args:
        path: Image to write.
        labels: Rows.
        columns: For each column (mean, low, high) of every row, in the order of `labels`; NaN for a missing value.
    """
    plt = pyplot()
    width = min(4, len(columns))
    height = -(-len(columns) // width)
    labels = [textwrap.fill(label, LABEL_WIDTH) for label in labels]
    rows = [label.split("\n") for label in labels]
    longest, lines = max(len(line) for row in rows for line in row), max(map(len, rows))
    size = (3.2 * width + 0.08 * longest, ((0.1 + 0.18 * lines) * len(labels) + 0.9) * height)
    figure, panels = plt.subplots(height, width, figsize=size, squeeze=False, sharey=True, layout="constrained")
    for panel in panels.flat[len(columns) :]:
        panel.set_visible(False)
    for panel, (name, cells) in zip(panels.flat, columns.items(), strict=False):
        for row, (mean, low, high) in enumerate(cells):
            panel.plot([low, high], [row, row], color="0.6", linewidth=2, solid_capstyle="butt")
            panel.plot([mean], [row], "o", color=f"C{row % 10}")
        panel.set_title(name, fontsize=10)
        panel.set_yticks(range(len(labels)), labels)
        panel.set_ylim(len(labels) - 0.5, -0.5)
        panel.grid(axis="x", alpha=0.3)
    save(figure, path)
    plt.close(figure)


def draw_lines(
    path: Path,
    ticks: Sequence[str],
    lines: Mapping[str, Mapping[str, tuple[float, float, float]]],
    name: str,
) -> None:
    """`name` on a logarithmic axis against the categories `ticks`, with a line and intervals for every label."""
    plt = pyplot()
    figure, panel = plt.subplots(figsize=(8, 4), layout="constrained")
    for index, (label, cells) in enumerate(lines.items()):
        positions = [position for position, tick in enumerate(ticks) if tick in cells]
        means, lows, highs = zip(*(cells[ticks[position]] for position in positions), strict=True)
        panel.plot(positions, means, "o-", color=f"C{index % 10}", label=label)
        panel.vlines(positions, lows, highs, color=f"C{index % 10}", alpha=0.5, linewidth=3)
    panel.set_yscale("log")
    panel.set_xticks(range(len(ticks)), [textwrap.fill(tick, 12) for tick in ticks])
    panel.set_ylabel(name)
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    save(figure, path)
    plt.close(figure)


def draw_curves(
    path: Path, curves: Mapping[str, Sequence[Curve]], name: str, threshold: float | None = None, title: str = ""
) -> None:
    """`name` against joint samples and against time, mean and interval over the runs of every label."""
    plt = pyplot()
    figure, panels = plt.subplots(1, len(AXES), figsize=(13, 4), sharey=True, layout="constrained")
    for panel, (axis, axis_label) in zip(panels, AXES.items(), strict=True):
        for index, (label, runs) in enumerate(curves.items()):
            mean_curve = band(runs, axis)
            color = f"C{index % 10}"  # there are ten
            text = f"{label} ({len(runs)} run{'s' if len(runs) > 1 else ''})"
            panel.plot(mean_curve.axis, mean_curve.mean, STYLES[index // 10 % 3], color=color, label=text)
            if len(runs) > 1:
                panel.fill_between(
                    mean_curve.axis, mean_curve.low, mean_curve.high, color=color, alpha=0.2, linewidth=0
                )
        panel.set_xlabel(axis_label)
        panel.grid(alpha=0.3)
        if threshold is not None:
            panel.axhline(threshold, color="0.4", linestyle=":", linewidth=1)
    figure.suptitle(title)
    panels[0].set_ylabel(name)
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize=8, loc="outside right upper")
    save(figure, path)
    plt.close(figure)
