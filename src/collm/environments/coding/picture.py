"""What the programs of a turn came to, as a picture: one line per fact, one box per test."""

from __future__ import annotations

from collm.environments.canvas import INK, Canvas, Style
from collm.environments.coding.reward import CodingScore

WIDTH, LINE, BOX, MOST_BOXES = 420, 22, 16, 60
MOST_CHARACTERS = 64  # of an error message, which a model's program can write

_GOOD, _BAD = Style("#0072b2"), Style("#edf0f2")
_TICK, _CROSS = Style("#ffffff", 2.2, layer=1), Style(INK, 2.2, layer=1)


def draw_results(score: CodingScore, single_agent: bool) -> Canvas:
    """The facts that the reward of a turn is made of."""
    facts = {"entry point defined": score.has_main, "program parses": score.parses}
    if not single_agent:
        used = score.use.used and score.has_main
        facts = {"helper defined": score.has_helper, **facts, "helper used": used}
        facts["more than a wrapper"] = used and not score.use.wrapper
    shown = min(score.total, MOST_BOXES)
    per_row = (WIDTH - 20) // (BOX + 4)
    rows = -(-shown // per_row)
    canvas = Canvas(WIDTH, LINE * (len(facts) + 2 + bool(score.error)) + rows * (BOX + 4) + 6)
    for index, (words, holds) in enumerate(facts.items()):
        _box(canvas, 10, 8 + index * LINE, holds)
        canvas.text(34, 20 + index * LINE, words)
    top = 8 + len(facts) * LINE
    timeouts = f", {score.timeouts} out of time" if score.timeouts else ""
    canvas.text(10, top + 14, f"{score.passed} of {score.total} tests pass{timeouts}")
    passed = score.passed * shown // score.total if score.total else 0
    for index in range(shown):
        x, y = 10 + index % per_row * (BOX + 4), top + LINE + index // per_row * (BOX + 4)
        _box(canvas, x, y, index < passed)
    if score.error:
        (line, *_) = score.error.strip().splitlines() or [""]
        canvas.text(10, top + LINE + rows * (BOX + 4) + 14, line[:MOST_CHARACTERS])
    return canvas


def _box(canvas: Canvas, x: float, y: float, good: bool) -> None:
    """A dark box with a white tick, or a pale one with a dark cross."""
    canvas.rectangle(_GOOD if good else _BAD, x, y, BOX, BOX)
    if good:
        canvas.line(_TICK, x + 3, y + 8, x + 7, y + 12)
        canvas.line(_TICK, x + 7, y + 12, x + 13, y + 4)
    else:
        canvas.line(_CROSS, x + 4, y + 4, x + 12, y + 12)
        canvas.line(_CROSS, x + 12, y + 4, x + 4, y + 12)
