"""What agents are shown in ResourceGathering."""

from __future__ import annotations

from collm.environments.games.gathering_expert import reportable
from collm.environments.games.gathering_rules import REASONS, Rules, State, known
from collm.environments.games.grid_game import command_lines, turn_lines


def observation(rules: Rules, state: State, index: int, before: State | None, prompt: str) -> str:
    """What agent `index` is shown in `state`; `before` is the state of the turn before, None at the beginning.

    It depends on what the agent saw and did itself and on messages, on nothing else that others did. The prompt
    "compact" shows what an agent knows as the commands that would use it: what it could take, what it could tell.
    """
    gatherer = state.agents[index]
    agent_id = rules.agent_ids[index]
    x, y = gatherer.position
    known_now = [(kind, cell, amount) for (cell, kind), amount in known(rules, state, index).items()]
    news = [(cell, kind) for cell, kind in reportable_view(rules, state, index, before)]
    if prompt == "compact":
        tools = " ".join(f"{kind} {rules.goals[kind]}" for kind in rules.tools[agent_id])
        lines = [f"agent {index + 1}: {tools}"] if before is None else []
        lines.append(f"turn {state.turn + 1} at {x} {y}")
        for _, cell, _ in known_now:
            lines += [f"go {cell[0]} {cell[1]}", f"take {cell[0]} {cell[1]}"]
        lines += [f"tell {kind} {cell[0]} {cell[1]}" for cell, kind in news]
        lines += [f"{name}: {text}" for name, text in gatherer.heard]
        return "\n".join(lines)
    lines = [*introduction(rules, state, index), ""] if before is None else []
    lines += turn_lines(rules, state.turn, gatherer, REASONS)
    lines.append("Resources for your tools that you know of:" if known_now else "You know of nothing for your tools.")
    lines += [f"- {amount} {kind} at {cell[0]} {cell[1]}" for kind, cell, amount in known_now]
    if news:
        lines.append("New in your view, for other tools than yours:")
        lines += [f"- {state.map.cells[cell][kind]} {kind} at {cell[0]} {cell[1]}" for cell, kind in news]
    return "\n".join([*lines, "Answer with commands only."])


def reportable_view(rules: Rules, state: State, index: int, before: State | None) -> list[tuple[tuple[int, int], str]]:
    """Cells and kinds for the tools of others that the agent sees for the first time, in reading order."""
    old = before.agents[index].seen if before else frozenset()
    return sorted(
        (fact for fact in reportable(rules, state, index) if fact[0] not in old), key=lambda fact: fact[0][::-1]
    )


def introduction(rules: Rules, state: State, index: int) -> list[str]:
    """The rules, for instruction-tuned models."""
    agent_id = rules.agent_ids[index]
    last = state.map.size - 1
    team = len(rules.tools)
    goals = ", ".join(f"{goal} {kind}" for kind, goal in rules.goals.items())
    told = [
        f"You are {agent_id}, one of {team} gatherers on a map of {last + 1} by {last + 1} cells. A cell is named x y: "
        f"x from 0 (left) to {last}, y from 0 (top) to {last}.",
        f"Together you need {goals}, within {rules.horizon} turns. Everybody acts at the same time.",
        f"Your tools take {' and '.join(rules.tools[agent_id])}; the others' tools take the rest.",
        f"You see cells up to {rules.vision} steps from where you walk; a step is straight or diagonal.",
    ]
    commands = [
        f"- take x y: take all that your tools are for from a cell at most {rules.reach} steps from where you stand "
        f"then. At most {rules.max_takes} in a turn.",
    ]
    tell = "kind x y: let the agent with the tool for it know of a resource that you have seen."
    return told + command_lines(rules, commands, tell, "all others")
