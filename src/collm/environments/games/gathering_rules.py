"""Rules of ResourceGathering: what a joint action does to a state, and the terms of the reward.

A turn has three parts, each for all agents at once: they walk, they take resources, and messages are delivered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from collm.environments.games.answers import Line, numbers, read_lines
from collm.environments.games.gathering_maps import Map
from collm.environments.games.grid import Cell, distance, viewed, walk

# Weights of the terms of the reward.
PROGRESS, COMPLETE, USEFUL, APPROACH, ARRIVE, WASTE = 8.0, 7.0, 0.1, 0.05, 0.15, 0.1

REASONS = {
    "unknown_command": "this is not one of the commands",
    "bad_numbers": "the command needs other numbers",
    "over_limit": "you have used up this command for the turn",
    "outside": "the cell lies outside the map",
    "out_of_reach": "the cell is too far away",
    "nothing_there": "your tools find nothing there",
    "not_seen": "you have not seen that cell",
    "not_so": "the cell does not hold this",
}
WASTED = ("outside", "out_of_reach", "nothing_there")
Fact = tuple[Cell, str]


@dataclass(frozen=True)
class Rules:
    """The constants of a game; see `ResourceGathering`."""

    tools: Mapping[str, tuple[str, ...]]
    goals: Mapping[str, int]
    vision: int
    steps: int
    reach: int
    max_takes: int
    horizon: int
    communication: str
    message_limit: int
    max_characters: int

    @property
    def agent_ids(self) -> tuple[str, ...]:
        """Names of the agents."""
        return tuple(self.tools)


@dataclass(frozen=True)
class Gatherer:
    """One agent's part of a state.

    Args:
        way: The cells of its last walk; it stands on the last one.
        seen: Cells that it has seen so far.
        told: Amounts that others reported to it, by cell and kind.
        reported: What it has reported so far, also where it was wrong about a cell that it had seen.
        heard: Texts that reached it after the last turn, with their senders.
        sent: What it sent in the last turn, for pictures.
        arrived: Whether it has been where its tools are of use.
        rejected: Lines of its last answer without effect, each with the reason.
    """

    way: tuple[Cell, ...]
    seen: frozenset[Cell]
    told: Mapping[Fact, int] = field(default_factory=dict)
    reported: frozenset[Fact] = frozenset()
    heard: tuple[tuple[str, str], ...] = ()
    sent: tuple[str, ...] = ()
    arrived: bool = False
    rejected: tuple[tuple[str, str], ...] = ()

    @property
    def position(self) -> Cell:
        """Where it stands."""
        return self.way[-1]


@dataclass(frozen=True)
class State:
    """State of an episode.

    Args:
        map: The map as it was at the beginning.
        amounts: Amount of each kind that is left, by cell.
        gathered: Amount of each kind that the team has taken.
        gatherers: The agents, in their order.
        turn: Number of turns played.
        total: Sum of the rewards so far, as if every turn were paid.
    """

    map: Map
    amounts: Mapping[Cell, Mapping[str, int]]
    gathered: Mapping[str, int]
    gatherers: tuple[Gatherer, ...]
    turn: int = 0
    total: float = 0.0


@dataclass
class Answer:
    """What an agent wants to do in a turn."""

    go: Cell | None = None
    takes: list[tuple[Line, Cell]] = field(default_factory=list)
    facts: list[tuple[Line, Fact]] = field(default_factory=list)
    says: str = ""
    rejected: list[tuple[str, str]] = field(default_factory=list)


def begin(rules: Rules, place: Map) -> State:
    """The state before the first turn."""
    gatherers = tuple(
        Gatherer((start,), viewed([start], rules.vision, place.size, place.size)) for start in place.starts
    )
    return State(place, place.cells, dict.fromkeys(rules.goals, 0), gatherers)


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
    if line.verb == "tell" and rules.communication == "facts":
        cell = numbers(line.arguments[1:3], 2)
        if cell is None:
            return "bad_numbers"
        if len(answer.facts) >= rules.message_limit:
            return "over_limit"
        answer.facts.append((line, ((cell[0], cell[1]), line.arguments[0].lower())))
        return None
    if line.verb not in ("go", "take"):
        return "unknown_command"
    cell = numbers(line.arguments, 2)
    if cell is None:
        return "bad_numbers"
    if line.verb == "go":
        if answer.go is not None:
            return "over_limit"
        answer.go = (cell[0], cell[1])
        return None
    if len(answer.takes) >= rules.max_takes:
        return "over_limit"
    answer.takes.append((line, (cell[0], cell[1])))
    return None


def missing(rules: Rules, gathered: Mapping[str, int]) -> dict[str, int]:
    """How much of each kind the team still needs, without kinds of which it has enough."""
    return {kind: goal - gathered[kind] for kind, goal in rules.goals.items() if gathered[kind] < goal}


def progress(rules: Rules, gathered: Mapping[str, int]) -> float:
    """Share of the goal that the team has, the mean over the kinds."""
    return sum(min(1.0, gathered[kind] / goal) for kind, goal in rules.goals.items()) / len(rules.goals)


def work_distance(rules: Rules, state: State, index: int, position: Cell) -> int:
    """Steps from `position` to where agent `index` can reach a resource of its that is still needed; 0 without one."""
    kinds = set(rules.tools[rules.agent_ids[index]]) & set(missing(rules, state.gathered))
    cells = [cell for cell, held in state.amounts.items() if any(held.get(kind) for kind in kinds)]
    return min((max(0, distance(position, cell) - rules.reach) for cell in cells), default=0)


def known(rules: Rules, state: State, index: int) -> dict[Fact, int]:
    """What agent `index` can take, as far as it knows: from sight, or else from reports; the nearest first."""
    gatherer = state.gatherers[index]
    kinds = rules.tools[rules.agent_ids[index]]
    found = {
        (cell, kind): held[kind]
        for cell, held in state.amounts.items()
        for kind in kinds
        if held.get(kind) and cell in gatherer.seen
    }
    found.update({fact: amount for fact, amount in gatherer.told.items() if fact[0] not in gatherer.seen})
    return dict(sorted(found.items(), key=lambda item: (distance(gatherer.position, item[0][0]), item[0])))


def resolve(rules: Rules, state: State, texts: Sequence[str]) -> tuple[State, dict[str, float], dict[str, Any]]:
    """Play one turn; returns the next state, the terms of the reward, and counts for metrics."""
    answers = [read(rules, text) for text in texts]
    size = state.map.size
    amounts = {cell: dict(held) for cell, held in state.amounts.items()}
    gathered = dict(state.gathered)
    gatherers = []
    approached, arrivals, wasted = 0, 0, 0
    for index, (old, answer) in enumerate(zip(state.gatherers, answers, strict=True)):
        goal = old.position
        if answer.go is not None:
            goal = (min(max(answer.go[0], 0), size - 1), min(max(answer.go[1], 0), size - 1))
        way = walk(old.position, goal, rules.steps)
        before, after = (work_distance(rules, state, index, cell) for cell in (old.position, way[-1]))
        approached += max(0, before - after)
        arrived = not after and bool(set(rules.tools[rules.agent_ids[index]]) & set(missing(rules, state.gathered)))
        arrivals += arrived and not old.arrived
        for line, cell in answer.takes:
            reason = _take(rules, index, way[-1], cell, size, amounts, gathered)
            if reason:
                answer.rejected.append((line.text, reason))
                wasted += 1
        seen = old.seen | viewed(way, rules.vision, size, size)
        gatherers.append(replace(old, way=way, seen=seen, arrived=old.arrived or arrived))
    after_taking = replace(state, amounts=amounts, gathered=gathered, gatherers=tuple(gatherers), turn=state.turn + 1)
    delivered, counts, worth = _deliver(rules, state, after_taking, answers)
    gained = progress(rules, gathered) - progress(rules, state.gathered)
    completed = not missing(rules, gathered) and bool(missing(rules, state.gathered))
    terms = {
        "progress": PROGRESS * gained,
        "complete": COMPLETE * completed,
        "useful": USEFUL * worth,
        "approach": APPROACH * approached,
        "arrive": ARRIVE * arrivals,
        "waste": -WASTE * wasted,
    }
    return replace(delivered, total=state.total + sum(terms.values())), terms, {**counts, "wasted": wasted}


def _take(
    rules: Rules,
    index: int,
    position: Cell,
    cell: Cell,
    size: int,
    amounts: dict[Cell, dict[str, int]],
    gathered: dict[str, int],
) -> str | None:
    """Take all that the agent's tools are for from a cell; returns the reason if that is nothing."""
    if not all(0 <= value < size for value in cell):
        return "outside"
    if distance(position, cell) > rules.reach:
        return "out_of_reach"
    held = amounts.get(cell, {})
    taken = {kind: held[kind] for kind in rules.tools[rules.agent_ids[index]] if held.get(kind)}
    for kind, amount in taken.items():
        held[kind] = 0
        gathered[kind] += amount
    return None if taken else "nothing_there"


def _deliver(
    rules: Rules, before: State, state: State, answers: Sequence[Answer]
) -> tuple[State, dict[str, int], float]:
    """Deliver the messages of a turn; returns the state, counts of messages, and the worth of the useful ones.

    A fact must be about a cell that its sender had seen when it wrote, and true after the turn's harvest; the amount is
    the true one. It reaches the agent with the tool for its kind. It is useful if that agent neither sees the cell nor
    was told before, and the team still needs the kind; then its worth is the amount divided by what is missing, and
    that of all facts of a sender at most 1.
    """
    told = [dict(gatherer.told) for gatherer in state.gatherers]
    needed = missing(rules, state.gathered)
    owners = {kind: index for index, kinds in enumerate(rules.tools.values()) for kind in kinds}
    counts, worth = {"messages": 0, "useful_messages": 0}, 0.0
    reported, sent = [], []
    for gatherer, answer in zip(before.gatherers, answers, strict=True):
        tried, accepted, own_worth = [], [], 0.0
        for line, (cell, kind) in answer.facts:
            amount = state.amounts.get(cell, {}).get(kind, 0)
            if cell not in gatherer.seen:
                answer.rejected.append((line.text, "not_seen"))
                continue
            tried.append((cell, kind))
            if not amount:
                answer.rejected.append((line.text, "not_so"))
                continue
            accepted.append((cell, kind))
            counts["messages"] += 1
            owner = owners.get(kind)
            if owner is None:
                continue
            is_news = cell not in state.gatherers[owner].seen and (cell, kind) not in told[owner]
            if is_news and kind in needed:
                counts["useful_messages"] += 1
                own_worth += min(1.0, amount / needed[kind])
            told[owner][cell, kind] = amount
        worth += min(1.0, own_worth)
        counts["messages"] += bool(answer.says)
        reported.append(gatherer.reported | set(tried))
        sent.append(tuple(f"{kind} {x} {y}" for (x, y), kind in accepted) + ((answer.says,) if answer.says else ()))
    said = [(name, answer.says) for name, answer in zip(rules.agent_ids, answers, strict=True)]
    gatherers = tuple(
        replace(
            gatherer,
            told=told[index],
            reported=reported[index],
            heard=tuple((name, text) for name, text in said if text and name != rules.agent_ids[index]),
            sent=sent[index],
            rejected=tuple(answers[index].rejected),
        )
        for index, gatherer in enumerate(state.gatherers)
    )
    return replace(state, gatherers=gatherers), counts, worth
