"""Rules of BridgeBuild: what a joint action does to a state, and the terms of the reward.

In a turn all agents walk, then probe; then messages are delivered, and planks are laid, the first agent's first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from collm.environments.games.answers import numbers
from collm.environments.games.bridge_maps import River
from collm.environments.games.grid import Cell, viewed
from collm.environments.games.grid_rules import REASONS as SHARED_REASONS
from collm.environments.games.grid_rules import (
    Answer,
    GridRules,
    GridState,
    Walker,
    after_messages,
    read_answer,
    read_cell,
    walked,
)

# Weights of the terms of the reward.
GAP, CONNECTED, FAKES, PLANKS = 5.0, 2.0, 12.0, 5.0

MAX_FILLS = 20  # of an agent in a turn

REASONS = SHARED_REASONS | {
    "not_seen": "you have not seen that far",
    "no_pillar": "there is no pillar to probe",
    "not_probed": "you have not probed that pillar",
    "no_water": "there is no water to lay planks on",
    "no_planks": "there are not enough planks left",
}


@dataclass(frozen=True, kw_only=True)
class Rules(GridRules):
    """The constants of a game; see `BridgeBuild`."""

    max_probes: int
    probe_cost: float
    planks: int


@dataclass(frozen=True)
class Builder(Walker):
    """One agent's part of a state; a fact is whether the pillar in a cell is sound.

    Args:
        probed: Whether a pillar is sound, by its own probes.
    """

    probed: Mapping[Cell, bool] = field(default_factory=dict)

    @property
    def known(self) -> dict[Cell, bool]:
        """Whether pillars are sound, as far as it knows."""
        return {**self.told, **self.probed}


@dataclass(frozen=True)
class State(GridState):
    """State of an episode.

    Args:
        river: The map.
        first_gap: Number of planks that the crossing needed at the beginning.
        planks: Cells with a plank.
    """

    river: River
    first_gap: int
    planks: frozenset[Cell] = frozenset()


def begin(rules: Rules, river: River) -> State:
    """The state before the first turn: the first agent on the upper bank, the second on the lower one."""
    starts = [(river.width // 2, y) for y in (0, river.height - 1)]
    builders = tuple(Builder((start,), viewed([start], rules.vision, river.width, river.height)) for start in starts)
    return State(river, river.gap(()), agents=builders)


def read(rules: Rules, text: str) -> Answer:
    """Parse an answer; never raises."""
    return read_answer(rules, text, read_cell, {"probe": (read_cell, rules.max_probes), "fill": (_corners, MAX_FILLS)})


def _corners(words: Sequence[str]) -> tuple[int, ...] | None:
    """Two corners of a rectangle; one cell is both."""
    return numbers(words, 4) or numbers((*words, *words), 4)


def touching(river: River, planks: frozenset[Cell]) -> int:
    """Number of fake pillars that share a side with a plank."""
    return sum(any(beside in planks for beside in ((x + 1, y), (x - 1, y), (x, y + 1), (x, y - 1)))
               for x, y in river.fakes)  # fmt: skip


def resolve(rules: Rules, state: State, texts: Sequence[str]) -> tuple[State, dict[str, float], dict[str, Any]]:
    """Play one turn; returns the next state, the terms of the reward, and counts for metrics."""
    answers = [read(rules, text) for text in texts]
    river = state.river
    planks, probes, messages, useful = state.planks, 0, 0, 0
    builders = []
    for old, answer in zip(state.agents, answers, strict=True):
        builder = walked(rules, old, answer, river.width, river.height)
        probed = dict(old.probed)
        for line, cell in answer.commands["probe"]:
            if cell not in builder.seen or cell not in river.pillars:
                answer.rejected.append((line.text, "not_seen" if cell not in builder.seen else "no_pillar"))
                continue
            probes += 1
            probed[cell] = river.pillars[cell]
        builders.append(replace(builder, probed=probed))
    told = [dict(builder.told) for builder in builders]
    reported: list[list[Cell]] = []
    for index, (old, answer) in enumerate(zip(state.agents, answers, strict=True)):
        accepted = []
        for line, cell in answer.commands["tell"]:
            if cell not in old.probed:
                answer.rejected.append((line.text, "not_probed"))
                continue
            accepted.append(cell)
            useful += cell not in builders[1 - index].known and cell not in told[1 - index]
            told[1 - index][cell] = old.probed[cell]
        messages += len(accepted) + bool(answer.says)
        reported.append(accepted)
    for builder, answer in zip(builders, answers, strict=True):
        for line, corners in answer.commands["fill"]:
            cells = _fillable(river, builder.seen, planks, corners)
            if isinstance(cells, str) or len(planks) + len(cells) > rules.planks:
                answer.rejected.append((line.text, cells if isinstance(cells, str) else "no_planks"))
                continue
            planks |= cells
    facts = [[f"{x} {y} {'sound' if builder.probed[x, y] else 'fake'}" for x, y in cells]
             for builder, cells in zip(builders, reported, strict=True)]  # fmt: skip
    agents = after_messages(rules, builders, answers, told, reported, facts)
    before, after = river.gap(state.planks), river.gap(planks)
    new_fakes = touching(river, planks) - touching(river, state.planks)
    new_planks = len(planks) - len(state.planks)
    terms = {
        "gap": GAP * (before - after) / state.first_gap,
        "connected": CONNECTED * (after == 0 < before),
        "fakes": -FAKES * new_fakes / len(river.fakes) if river.fakes else 0.0,
        "planks": -PLANKS * new_planks / river.water,
        "probes": -rules.probe_cost * probes,
    }
    counts = {"probes": probes, "planks": new_planks, "fakes": new_fakes, "messages": messages}
    counts["useful_messages"] = useful
    total = state.total + sum(terms.values())
    return replace(state, agents=agents, planks=planks, turn=state.turn + 1, total=total), terms, counts


def _fillable(
    river: River, seen: frozenset[Cell], planks: frozenset[Cell], corners: tuple[int, ...]
) -> frozenset[Cell] | str:
    """The cells of a rectangle that get a plank, or the reason why it is rejected; others of its cells stay."""
    (left, right), (top, bottom) = sorted((corners[0], corners[2])), sorted((corners[1], corners[3]))
    if left < 0 or top < 0 or right >= river.width or bottom >= river.height:
        return "no_water"
    cells = [(x, y) for x in range(left, right + 1) for y in range(top, bottom + 1)]
    if not all(cell in seen for cell in cells):
        return "not_seen"
    filled = frozenset(cell for cell in cells if river.is_water(cell) and cell not in planks)
    return filled or "no_water"
