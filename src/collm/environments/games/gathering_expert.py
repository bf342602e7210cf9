"""A scripted team for ResourceGathering that uses what its agents know, and noisy demonstrators for cloning."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from itertools import islice

from collm.environments.games.gathering_maps import Map
from collm.environments.games.gathering_rules import Fact, Rules, State, begin, known, missing, resolve
from collm.environments.games.grid import Cell, around, distance, walk

# How often demonstrators do the sensible thing: tell anything at all, walk to what they know, take it.
TELLS, WALKS, TAKES = 0.6, 0.6, 0.8


def reportable(rules: Rules, state: State, index: int) -> list[Fact]:
    """What agent `index` has seen, could report and has not yet: the resources of others as they were at first."""
    gatherer = state.agents[index]
    own = rules.tools[rules.agent_ids[index]]
    held = sorted((cell, kind, n) for cell, kinds in state.map.cells.items() for kind, n in kinds.items())
    facts = [(cell, kind, n) for cell, kind, n in held if cell in gatherer.seen and kind not in own]
    facts.sort(key=lambda fact: -fact[2])
    return [(cell, kind) for cell, kind, _ in facts if (cell, kind) not in gatherer.reported]


def expert(rules: Rules, state: State, search: Sequence[Cell] | None = None) -> dict[str, str]:
    """A sensible joint action: report the largest amount, walk to the nearest known resources, take what is in reach.

    Args:
        rules: The rules; with communication other than "facts" nothing is reported.
        state: The state, of which each agent uses what it knows.
        search: Where each agent that knows nothing walks to; by default all go to the middle of the map.
    """
    answers = {}
    for index, agent_id in enumerate(rules.agent_ids):
        gatherer = state.agents[index]
        targets = list(dict.fromkeys(cell for cell, _ in known(rules, state, index)))
        middle = (state.map.size // 2, state.map.size // 2)
        goal, lines = search[index] if search else middle, []
        if targets:
            goal = _best_place(rules, gatherer.position, targets, state.map.size)
        place = walk(gatherer.position, goal, rules.steps)[-1]
        lines.append(f"go {goal[0]} {goal[1]}")
        within = (cell for cell in targets if distance(place, cell) <= rules.reach)
        lines += [f"take {x} {y}" for x, y in islice(within, rules.max_takes)]
        if rules.communication == "facts":
            facts = [fact for fact in reportable(rules, state, index) if fact[1] in rules.goals]
            lines += [f"tell {kind} {x} {y}" for (x, y), kind in facts[: rules.message_limit]]
        answers[agent_id] = "\n".join(lines)
    return answers


def _best_place(rules: Rules, position: Cell, targets: Sequence[Cell], size: int) -> Cell:
    """The place within a turn's walk that reaches most of `targets`, the nearest of those; else the nearest target."""
    reached = Counter(place for cell in targets for place in around(cell, rules.reach))
    places = [
        (-min(count, rules.max_takes), distance(position, (x, y)), (x, y))
        for (x, y), count in reached.items()
        if distance(position, (x, y)) <= rules.steps and 0 <= x < size and 0 <= y < size
    ]
    return min(places)[2] if places else targets[0]


def solved_in(rules: Rules, place: Map) -> int | None:
    """Number of turns in which the scripted team gathers everything; None if the horizon is too short."""
    state = begin(rules, place)
    for turn in range(1, rules.horizon + 1):
        state, _, _ = resolve(rules, state, list(expert(rules, state).values()))
        if not missing(rules, state.gathered):
            return turn
    return None


def demonstration(rules: Rules, state: State, rng: random.Random) -> dict[str, str]:
    """Each agent walks to a resource that it knows or anywhere, tries to take it, and reports anything or nothing."""
    answers = {}
    for index, agent_id in enumerate(rules.agent_ids):
        targets = list(dict.fromkeys(cell for cell, _ in known(rules, state, index)))
        goal = (rng.randrange(state.map.size), rng.randrange(state.map.size))
        if targets and rng.random() < WALKS:
            goal = targets[0]
        lines = [f"go {goal[0]} {goal[1]}"]
        if targets and rng.random() < TAKES:
            lines += [f"take {x} {y}" for x, y in targets[: rules.max_takes]]
        facts = reportable(rules, state, index)
        if facts and rng.random() < TELLS:
            (x, y), kind = rng.choice(facts)
            lines.append(f"tell {kind} {x} {y}")
        answers[agent_id] = "\n".join(lines)
    return answers
