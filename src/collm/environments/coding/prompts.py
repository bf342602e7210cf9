"""Observations of agents in coding tasks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from collm.environments.coding.program import HELPER
from collm.environments.coding.reward import CodingScore

# An assert can be very long; feedback should leave room for the history.
_MAX_ASSERT = 200
_MAX_DETAIL = 160

_CODE_ONLY = "Answer with Python code only: no explanations, no examples, no tests."


def first_helper(problem: Mapping[str, Any]) -> str:
    """The task of the helper's author."""
    return (
        f"Another programmer writes the function `{problem['entry_point']}` for the problem below. Help with a part of "
        f"it: write one function named `{HELPER}` that returns something useful for the solution, and choose its "
        f"parameters yourself. Do not write `{problem['entry_point']}`; its author may call `{HELPER}(...)`, but does "
        f"not see your code, nor you theirs. {_CODE_ONLY}\n\nProblem:\n{problem['prompt'].strip()}\n"
    )


def first_main(problem: Mapping[str, Any]) -> str:
    """The task of the entry point's author."""
    return (
        f"Write the function `{problem['entry_point']}` of the problem below. Another programmer writes a function "
        f"`{HELPER}` that returns something useful for it; call `{HELPER}(...)` where it helps and make something of "
        f"what it returns, but do not define it yourself. You do not see each other's code. {_CODE_ONLY}\n\n"
        f"Problem:\n{problem['prompt'].strip()}\n"
    )


def first_alone(problem: Mapping[str, Any]) -> str:
    """The task of an agent that works alone."""
    return (
        f"Write the function `{problem['entry_point']}` of the problem below. {_CODE_ONLY}\n\n"
        f"Problem:\n{problem['prompt'].strip()}\n"
    )


def feedback_text(mode: str, agent_id: str, entry_point: str, score: CodingScore, alone: bool) -> str:
    """The observation of an agent after a turn.

    Args:
        mode: Kind of feedback: "none", "passed", "level" or "full".
        agent_id: The agent.
        entry_point: Name of the function of the problem.
        score: Score of the turn.
        alone: Whether one agent works without a helper.
    """
    function = HELPER if agent_id == "helper" else entry_point
    lines = []
    if mode == "passed":
        lines.append("All tests passed." if score.correct else "The tests did not all pass.")
    elif mode in ("level", "full"):
        lines += _levels(entry_point, score, alone)
        if agent_id == "main" and not alone and score.has_main:
            lines += _cooperation(entry_point, score)
        if mode == "full":
            lines += _failures(entry_point, score)
    lines.append(f"Write the function `{function}` again, improved. {_CODE_ONLY}")
    return "\n".join(lines)


def _levels(entry_point: str, score: CodingScore, alone: bool) -> list[str]:
    def definition(name: str, defined: bool) -> str:
        return f"- `{name}`: " + ("defined" if defined else "no such function that returns something was found")

    lines = ["What came of your code:"]
    lines += [] if alone else [definition(HELPER, score.has_helper)]
    lines.append(definition(entry_point, score.has_main))
    if not score.has_main:
        return lines
    if not score.parses:
        return [*lines, f"- syntax: {score.error[:_MAX_DETAIL]}"]
    lines += ["- syntax: correct", f"- tests passed: {score.passed} of {score.total}"]
    if score.error:
        lines.append(f"- it ended with {score.error[:_MAX_DETAIL]}")
    return lines


def _cooperation(entry_point: str, score: CodingScore) -> list[str]:
    use = score.use
    if not use.called:
        return [f"- `{entry_point}` does not call `{HELPER}`"]
    lines = [] if use.used else [f"- `{entry_point}` calls `{HELPER}` but does nothing with what it returns"]
    if use.wrapper:
        lines.append(f"- `{entry_point}` only hands on what `{HELPER}` returns; let it do a part of the work")
    return lines or [f"- `{entry_point}` uses `{HELPER}`"]


def _failures(entry_point: str, score: CodingScore) -> list[str]:
    failed = [unit for unit in score.shown if not unit.passed]
    lines = ["Tests that failed:"] if failed else []
    for unit in failed:
        text = " ".join(unit.text.split()).replace("candidate", entry_point)
        text = text if len(text) <= _MAX_ASSERT else text[:_MAX_ASSERT] + "..."
        lines.append(f"- {text}  ({unit.detail[:_MAX_DETAIL]})")
    return lines
