"""Rules of ResourceGathering: what a joint action does to a state, and the terms of the reward.

A turn has three parts, each for all agents at once: they walk, they take resources, and messages are delivered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from collm.environments.games.gathering_maps import Map
from collm.environments.games.grid import Cell, distance, viewed
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
PROGRESS, COMPLETE, USEFUL, APPROACH, ARRIVE, WASTE = 8.0, 7.0, 0.1, 0.05, 0.15, 0.1

REASONS = SHARED_REASONS | {
    "outside": "the cell lies outside the map",
    "out_of_reach": "the cell is too far away",
    "nothing_there": "your tools find nothing there",
    "not_seen": "you have not seen that cell",
    "not_so": "the cell does not hold this",
}
Fact = tuple[Cell, str]


@dataclass(frozen=True, kw_only=True)
class Rules(GridRules):
    """The constants of a game; see `ResourceGathering`."""

    tools: Mapping[str, tuple[str, ...]]
    goals: Mapping[str, int]
    reach: int
    max_takes: int


@dataclass(frozen=True)
class Gatherer(Walker):
    """One agent's part of a state; a fact is the amount of a kind in a cell.

    Args:
        arrived: Whether it has been where its tools are of use.
    """

    arrived: bool = False


@dataclass(frozen=True)
class State(GridState):
    """State of an episode.

    Args:
        map: The map as it was at the beginning.
        amounts: Amount of each kind that is left, by cell.
        gathered: Amount of each kind that the team has taken.
    """

    map: Map
    amounts: Mapping[Cell, Mapping[str, int]]
    gathered: Mapping[str, int]


def begin(rules: Rules, place: Map) -> State:
    """The state before the first turn."""
    gatherers = tuple(
        Gatherer((start,), viewed([start], rules.vision, place.size, place.size)) for start in place.starts
    )
    return State(place, place.cells, dict.fromkeys(rules.goals, 0), agents=gatherers)


def read(rules: Rules, text: str) -> Answer:
    """Parse an answer; never raises."""
    return read_answer(rules, text, _fact, {"take": (read_cell, rules.max_takes)})


def _fact(words: Sequence[str]) -> Fact | None:
    """A kind and a cell."""
    cell = read_cell(words[1:3])
    return (cell, words[0].lower()) if cell else None


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
    gatherer = state.agents[index]
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
    for index, (old, answer) in enumerate(zip(state.agents, answers, strict=True)):
        gatherer = walked(rules, old, answer, size, size)
        before, after = (work_distance(rules, state, index, cell) for cell in (old.position, gatherer.position))
        approached += max(0, before - after)
        arrived = not after and bool(set(rules.tools[rules.agent_ids[index]]) & set(missing(rules, state.gathered)))
        arrivals += arrived and not old.arrived
        for line, cell in answer.commands["take"]:
            reason = _take(rules, index, gatherer.position, cell, size, amounts, gathered)
            if reason:
                answer.rejected.append((line.text, reason))
                wasted += 1
        gatherers.append(replace(gatherer, arrived=old.arrived or arrived))
    after_taking = replace(state, amounts=amounts, gathered=gathered, agents=tuple(gatherers), turn=state.turn + 1)
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
    told = [dict(gatherer.told) for gatherer in state.agents]
    needed = missing(rules, state.gathered)
    owners = {kind: index for index, kinds in enumerate(rules.tools.values()) for kind in kinds}
    counts, worth = {"messages": 0, "useful_messages": 0}, 0.0
    reported, facts = [], []
    for gatherer, answer in zip(before.agents, answers, strict=True):
        tried, accepted, own_worth = [], [], 0.0
        for line, (cell, kind) in answer.commands["tell"]:
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
            is_news = cell not in state.agents[owner].seen and (cell, kind) not in told[owner]
            if is_news and kind in needed:
                counts["useful_messages"] += 1
                own_worth += min(1.0, amount / needed[kind])
            told[owner][cell, kind] = amount
        worth += min(1.0, own_worth)
        counts["messages"] += bool(answer.says)
        reported.append(tried)
        facts.append([f"{kind} {x} {y}" for (x, y), kind in accepted])
    return replace(state, agents=after_messages(rules, state.agents, answers, told, reported, facts)), counts, worth
