"""The page of the ResourceGathering study: its verdicts follow the rule, and its numbers are those of the game."""

from __future__ import annotations

from typing import Any

import pytest

from collm.environments.games.resource_gathering import ResourceGathering
from collm.studies.silence import page, silent_bound, silent_expert, verdicts


def cells(success: tuple[float, float, float], useful: tuple[float, float, float]) -> dict[str, Any]:
    return {"success": success, "return": (1, 0, 2), "messages": (2, 1, 3), "useful_messages": useful}


BEFORE = cells((0.1, 0.05, 0.2), (1.0, 0.8, 1.2))
LEARNED = cells((0.6, 0.5, 0.7), (2.5, 2.2, 2.8))
SILENT = cells((0.1, 0.05, 0.15), (0.0, 0.0, 0.0))


@pytest.mark.parametrize(
    ("after", "silent", "bound", "expected"),
    [
        (LEARNED, SILENT, 0.3, [True, True, True]),
        (LEARNED, SILENT, 0.5, [True, False, True]),  # the interval begins at the bound
        (LEARNED, cells((0.25, 0.2, 0.31), (0, 0, 0)), 0.3, [True, False, True]),
        (cells((0.3, 0.2, 0.4), (1.3, 1.2, 1.4)), SILENT, 0.19, [False, True, False]),
    ],
)
def test_the_rule(after: dict, silent: dict, bound: float, expected: list[bool]) -> None:
    rows = {"facts, before": BEFORE, "facts": after, "none, before": BEFORE, "none": silent}
    assert [holds for _, holds in verdicts(rows, bound)] == expected


def test_the_page_shows_every_row_and_verdict() -> None:
    rows = {"facts, before": BEFORE, "facts": LEARNED, "none, before": SILENT, "none": SILENT}
    table = [{"label": label, "cells": row} for label, row in rows.items()]
    text = page({"table": table, "tasks": ["x"] * 64, "episodes_per_task": 4, "date": "2026-11-26T"}, 0.28, 0.12, 1.0)
    assert "| facts, after training | 0.60 [0.50, 0.70] | 1.00 [0.00, 2.00] |" in text
    assert "| any team without messages, at most | 0.28 |" in text
    assert text.count("**yes**") == 3


def test_a_silent_team_stays_below_the_bound_and_a_small_map_needs_no_words() -> None:
    options = {"tools": {"a": ["wood"], "b": ["stone"]}, "goals": {"wood": 1, "stone": 1}, "size": 9, "level": 1}
    game = ResourceGathering(**options, distance=5, steps=2, num_maps=2, num_eval=40)
    bound = silent_bound(game, {"distance": 5, "level": 1})
    silent = silent_expert(game, bound)
    assert 0 < silent <= bound.value() < 1
