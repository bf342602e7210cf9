"""A scripted team for BridgeBuild that probes, tells and then builds the lane that is left, and noisy demonstrators."""

from __future__ import annotations

import random

from collm.environments.games.bridge_maps import River
from collm.environments.games.bridge_rules import Rules, State, begin, resolve

# How often demonstrators probe, tell a result, and lay planks.
PROBES, TELLS, FILLS = 0.6, 0.5, 0.3


def lanes(state: State, index: int) -> dict[int, list[tuple[int, int]]]:
    """The pillars that agent `index` has seen, by column."""
    seen: dict[int, list[tuple[int, int]]] = {}
    for cell in sorted(state.river.pillars):
        if cell in state.agents[index].seen:
            seen.setdefault(cell[0], []).append(cell)
    return seen


def fill_lane(state: State, index: int, column: int) -> list[str]:
    """Commands of agent `index` for its half of a lane: the water in it that it has seen."""
    river = state.river
    middle = river.height // 2
    rows = range(1, middle + 1) if index == 0 else range(middle + 1, river.height - 1)
    cells = [(column, y) for y in rows if river.is_water((column, y)) and (column, y) not in state.planks]
    return [f"fill {x} {y}" for x, y in cells if (x, y) in state.agents[index].seen]


def expert(rules: Rules, state: State) -> dict[str, str]:
    """Probe the lanes in which no fake is known, tell the results, and build once one lane is left or time is short."""
    answers = {}
    for index, agent_id in enumerate(rules.agent_ids):
        builder = state.agents[index]
        columns = lanes(state, index)
        alive = [x for x in columns if not any(cell[0] == x and not sound for cell, sound in builder.known.items())]
        last = state.turn + 1 == rules.horizon
        lines = []
        if len(alive) == 1 or (alive and last):
            column = max(alive, key=lambda x: sum(cell[0] == x for cell in builder.known))
            lines += fill_lane(state, index, column)
        elif rules.max_probes:
            unknown = [cell for x in alive for cell in columns[x] if cell not in builder.known]
            lines += [f"probe {x} {y}" for x, y in unknown[: rules.max_probes]]
        if rules.communication == "facts":
            # fakes first, as one of them rules a lane out
            results = sorted((sound, cell) for cell, sound in builder.probed.items() if cell not in builder.reported)
            lines += [f"tell {x} {y}" for _, (x, y) in results[: rules.message_limit]]
        answers[agent_id] = "\n".join(lines)
    return answers


def solved_in(rules: Rules, river: River) -> int | None:
    """Number of turns in which the scripted team builds the crossing; None if it does not."""
    state = begin(rules, river)
    for turn in range(1, rules.horizon + 1):
        state, _, _ = resolve(rules, state, list(expert(rules, state).values()))
        if not river.gap(state.planks):
            return turn
    return None


def demonstration(rules: Rules, state: State, rng: random.Random) -> dict[str, str]:
    """Each agent probes some pillars, tells some results, and now and then builds its half of any lane."""
    answers = {}
    for index, agent_id in enumerate(rules.agent_ids):
        builder = state.agents[index]
        columns = lanes(state, index)
        pillars = [cell for cells in columns.values() for cell in cells if cell not in builder.probed]
        lines = [f"probe {x} {y}" for x, y in rng.sample(pillars, min(rules.max_probes, len(pillars)))
                 if rng.random() < PROBES]  # fmt: skip
        results = [cell for cell in builder.probed if cell not in builder.reported]
        lines += [f"tell {x} {y}" for x, y in results[: rules.message_limit] if rng.random() < TELLS]
        if columns and rng.random() < FILLS:
            lines += fill_lane(state, index, rng.choice(list(columns)))
        answers[agent_id] = "\n".join(lines)
    return answers
