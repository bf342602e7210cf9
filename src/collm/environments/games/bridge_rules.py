"""Rules of BridgeBuild: what a joint action does to a state, and the terms of the reward.

In a turn all agents walk, then probe; then messages are delivered, and planks are laid, the first agent's first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from collm.environments.games.answers import Line, numbers, read_lines
from collm.environments.games.bridge_maps import River
from collm.environments.games.grid import Cell, viewed, walk

# Weights of the terms of the reward.
GAP, CONNECTED, FAKES, PLANKS = 5.0, 2.0, 12.0, 5.0

MAX_FILLS = 20  # of an agent in a turn

REASONS = {
    "unknown_command": "this is not one of the commands",
    "bad_numbers": "the command needs other numbers",
    "over_limit": "you have used up this command for the turn",
    "not_seen": "you have not seen that far",
    "no_pillar": "there is no pillar to probe",
    "not_probed": "you have not probed that pillar",
    "no_water": "there is no water to lay planks on",
    "no_planks": "there are not enough planks left",
}


@dataclass(frozen=True)
class Rules:
    """The constants of a game; see `BridgeBuild`."""

    agent_ids: tuple[str, ...]
    vision: int
    steps: int
    max_probes: int
    probe_cost: float
    planks: int
    horizon: int
    communication: str
    message_limit: int
    max_characters: int


@dataclass(frozen=True)
class Builder:
    """One agent's part of a state.

    Args:
        way: The cells of its last walk; it stands on the last one.
        seen: Cells that it has seen so far.
        probed: Whether a pillar is sound, by its own probes.
        told: Whether a pillar is sound, by messages.
        reported: Results that it has told.
        heard: Texts that reached it after the last turn, with their senders.
        sent: What it sent in the last turn, for pictures.
        rejected: Lines of its last answer without effect, each with the reason.
    """

    way: tuple[Cell, ...]
    seen: frozenset[Cell]
    probed: Mapping[Cell, bool] = field(default_factory=dict)
    told: Mapping[Cell, bool] = field(default_factory=dict)
    reported: frozenset[Cell] = frozenset()
    heard: tuple[tuple[str, str], ...] = ()
    sent: tuple[str, ...] = ()
    rejected: tuple[tuple[str, str], ...] = ()

    @property
    def position(self) -> Cell:
        """Where it stands."""
        return self.way[-1]

    @property
    def known(self) -> dict[Cell, bool]:
        """Whether pillars are sound, as far as it knows."""
        return {**self.told, **self.probed}


@dataclass(frozen=True)
class State:
    """State of an episode.

    Args:
        river: The map.
        builders: The agents, in their order.
        first_gap: Number of planks that the crossing needed at the beginning.
        planks: Cells with a plank.
        turn: Number of turns played.
        total: Sum of the rewards so far, as if every turn were paid.
    """

    river: River
    builders: tuple[Builder, ...]
    first_gap: int
    planks: frozenset[Cell] = frozenset()
    turn: int = 0
    total: float = 0.0


@dataclass
class Answer:
    """What an agent wants to do in a turn."""

    go: Cell | None = None
    probes: list[tuple[Line, Cell]] = field(default_factory=list)
    fills: list[tuple[Line, tuple[int, ...]]] = field(default_factory=list)
    tells: list[tuple[Line, Cell]] = field(default_factory=list)
    says: str = ""
    rejected: list[tuple[str, str]] = field(default_factory=list)


def begin(rules: Rules, river: River) -> State:
    """The state before the first turn: the first agent on the upper bank, the second on the lower one."""
    starts = [(river.width // 2, y) for y in (0, river.height - 1)]
    builders = tuple(Builder((start,), viewed([start], rules.vision, river.width, river.height)) for start in starts)
    return State(river, builders, river.gap(()))


def read(rules: Rules, text: str) -> Answer:
    """Parse an answer; never raises."""
    answer = Answer()
    for line in read_lines(text):
        reason = _read_line(rules, line, answer)
        if reason:
            answer.rejected.append((line.text, reason))
    return answer


def _read_line(rules: Rules, line: Line, answer: Answer) -> str | None:
    """Add the command of `line` to `answer`; returns the reason if it is rejected."""
    if line.verb == "say" and rules.communication == "text":
        if answer.says or not line.rest:
            return "over_limit" if answer.says else "unknown_command"
        answer.says = line.rest[: rules.max_characters]
        return None
    if line.verb == "fill":
        corners = numbers(line.arguments, 4) or numbers(line.arguments * 2, 4)
        if corners is None:
            return "bad_numbers"
        if len(answer.fills) >= MAX_FILLS:
            return "over_limit"
        answer.fills.append((line, corners))
        return None
    if line.verb not in ("go", "probe") and not (line.verb == "tell" and rules.communication == "facts"):
        return "unknown_command"
    cell = numbers(line.arguments, 2)
    if cell is None:
        return "bad_numbers"
    if line.verb == "go":
        if answer.go is not None:
            return "over_limit"
        answer.go = (cell[0], cell[1])
        return None
    listed, most = (answer.probes, rules.max_probes) if line.verb == "probe" else (answer.tells, rules.message_limit)
    if len(listed) >= most:
        return "over_limit"
    listed.append((line, (cell[0], cell[1])))
    return None


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
    for old, answer in zip(state.builders, answers, strict=True):
        goal = old.position
        if answer.go is not None:
            goal = (min(max(answer.go[0], 0), river.width - 1), min(max(answer.go[1], 0), river.height - 1))
        way = walk(old.position, goal, rules.steps)
        seen = old.seen | viewed(way, rules.vision, river.width, river.height)
        probed = dict(old.probed)
        for line, cell in answer.probes:
            if cell not in seen or cell not in river.pillars:
                answer.rejected.append((line.text, "not_seen" if cell not in seen else "no_pillar"))
                continue
            probes += 1
            probed[cell] = river.pillars[cell]
        builders.append(replace(old, way=way, seen=seen, probed=probed))
    told = [dict(builder.told) for builder in builders]
    reported, sent = [], []
    for index, (old, answer) in enumerate(zip(state.builders, answers, strict=True)):
        accepted = []
        for line, cell in answer.tells:
            if cell not in old.probed:
                answer.rejected.append((line.text, "not_probed"))
                continue
            accepted.append(cell)
            useful += cell not in builders[1 - index].known and cell not in told[1 - index]
            told[1 - index][cell] = old.probed[cell]
        messages += len(accepted) + bool(answer.says)
        reported.append(old.reported | set(accepted))
        words = [f"{x} {y} {'sound' if old.probed[x, y] else 'fake'}" for x, y in accepted]
        sent.append((*words, *([answer.says] if answer.says else [])))
    for builder, answer in zip(builders, answers, strict=True):
        for line, corners in answer.fills:
            cells = _fillable(river, builder.seen, planks, corners)
            if isinstance(cells, str) or len(planks) + len(cells) > rules.planks:
                answer.rejected.append((line.text, cells if isinstance(cells, str) else "no_planks"))
                continue
            planks |= cells
    builders = [
        replace(
            builder,
            told=told[index],
            reported=reported[index],
            heard=((rules.agent_ids[1 - index], answers[1 - index].says),) if answers[1 - index].says else (),
            sent=sent[index],
            rejected=tuple(answers[index].rejected),
        )
        for index, builder in enumerate(builders)
    ]
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
    return replace(state, builders=tuple(builders), planks=planks, turn=state.turn + 1, total=total), terms, counts


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
