"""What agents are shown in BridgeBuild."""

from __future__ import annotations

from collm.environments.games.bridge_rules import REASONS, Rules, State
from collm.environments.games.grid import Cell
from collm.environments.games.grid_game import command_lines, turn_lines


def observation(rules: Rules, state: State, index: int, before: State | None, prompt: str) -> str:
    """What agent `index` is shown in `state`; `before` is the state of the turn before, None at the beginning."""
    builder = state.agents[index]
    x, y = builder.position
    old = before.agents[index] if before else None
    news = [cell for cell in sorted(state.river.pillars) if cell in builder.seen and not (old and cell in old.seen)]
    results = {cell: sound for cell, sound in builder.known.items() if not old or cell not in old.known}
    planks = sorted(cell for cell in state.planks if cell in builder.seen)
    if prompt == "compact":
        lines = [f"agent {index + 1} planks {rules.planks}"] if before is None else []
        lines.append(f"turn {state.turn + 1} at {x} {y}")
        lines += [f"pillar {cell[0]} {cell[1]}" for cell in news]
        lines += [f"know {cell[0]} {cell[1]} {_kind(sound)}" for cell, sound in results.items()]
        lines += [f"planks {cell[0]} {cell[1]}" for cell in planks]
        return "\n".join([*lines, *(f"{name}: {text}" for name, text in builder.heard)])
    lines = [*introduction(rules, state, index), ""] if before is None else []
    lines += turn_lines(rules, state.turn, builder, REASONS)
    if news:
        lines.append(f"Pillars that came into your view: {_listed(news)}.")
    told = {cell for cell in results if cell not in builder.probed}
    lines += [
        f"The pillar at {cell[0]} {cell[1]} is {_kind(sound)}{' (you were told)' if cell in told else ''}."
        for cell, sound in results.items()
    ]
    if planks:
        lines.append(f"Planks in your view: {_listed(planks)}.")
    return "\n".join([*lines, "Answer with commands only."])


def introduction(rules: Rules, state: State, index: int) -> list[str]:
    """The rules, for instruction-tuned models."""
    last_x, last_y = state.river.width - 1, state.river.height - 1
    told = [
        f"You are {rules.agent_ids[index]}, one of two who build a crossing over a river. The map has the cells 0 0 "
        f"(top left) to {last_x} {last_y}; a cell is named x y. The rows 0 and {last_y} are the banks, between them is "
        "water.",
        "You begin on the bank at the top, the other one at the bottom; you act at the same time."
        if index == 0
        else "You begin on the bank at the bottom, the other one at the top; you act at the same time.",
        f"The crossing has to lead from bank to bank over planks and sound pillars that share sides, after at most "
        f"{rules.horizon} turns. The two of you have {rules.planks} planks together.",
        "Pillars stand in lanes across the river. In one lane all are sound; in every other lane one pillar is a fake, "
        "which bears nothing and looks like the others. Planks beside a fake are lost effort and cost points.",
        f"You see {rules.vision} cells far in each direction from where you walk.",
    ]
    commands = [
        f"- probe x y: find out whether a pillar in your view is sound, at a cost of {rules.probe_cost:g} points; you "
        f"alone learn the result. At most {rules.max_probes} in a turn.",
        "- fill x y, or fill x1 y1 x2 y2: lay planks on the water of a cell, or of a rectangle, in your view.",
    ]
    tell = "x y: let the other one know what you found out about a pillar in an earlier turn."
    return told + command_lines(rules, commands, tell, "the other one")


def _listed(cells: list[Cell]) -> str:
    return ", ".join(f"{x} {y}" for x, y in cells)


def _kind(sound: bool) -> str:
    return "sound" if sound else "fake"
