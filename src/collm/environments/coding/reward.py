"""Reward of coding tasks, for a helper and a main function together.

In both forms the reward is the sum of these terms, at most 4: 0.4 and 0.6 for a definition of the helper and of the
entry point that returns something; 0.5 if the program parses; the share of the test's asserts that hold; and, if at
least one does, 0.5 if the entry point calls the helper, 1.0 if it is no thin wrapper around it, and -0.5 if it discards
the helper's result. Without an entry point, or if the program does not parse, the terms after that are 0. A single
agent has no helper; its largest reward is 2.1.

The form "paper" uses syntax trees and counts every assert of the test. The helper counts as called if the entry point
has a reachable call of it, and the helper ran during the test. The form "released" follows the line-based rules of the
authors' released code; see `coding.released`.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from collm.environments.coding.helper_use import HelperUse, helper_use
from collm.environments.coding.program import (
    HELPER,
    Source,
    assemble,
    read_source,
    surroundings,
)
from collm.environments.coding.released import ReleasedProgram, import_lines, read_released
from collm.sandbox.case import Case, UnitResult, Verdict

MAXIMUM = 4.0
SINGLE_MAXIMUM = 2.1


@dataclass(frozen=True)
class CodingScore:
    """Score of a joint action.

    Args:
        terms: Terms of the reward; their sum is the score.
        passed: Number of scored asserts that hold.
        total: Number of scored asserts.
        correct: The complete test ran and nothing failed, including asserts shown as feedback.
        use: How the entry point uses the helper.
        has_helper: A helper was defined.
        has_main: The entry point was defined.
        parses: The program is valid.
        error: Why the program does not parse, does not load, or its test did not end; else empty.
        timeouts: Number of calls that ran out of time.
        shown: Asserts that feedback may show.
    """

    terms: Mapping[str, float]
    passed: int = 0
    total: int = 0
    correct: bool = False
    use: HelperUse = HelperUse(False, False, False)
    has_helper: bool = False
    has_main: bool = False
    parses: bool = False
    error: str = ""
    timeouts: int = 0
    shown: tuple[UnitResult, ...] = field(default=())

    @property
    def total_reward(self) -> float:
        """Sum of the terms."""
        return sum(self.terms.values())


class PaperReading:
    """A joint action, parsed and scored by the rules of the paper.

    Args:
        problem: Prompt, test and entry point.
        helper: Response of the helper's author; None if there is none.
        main: Response of the entry point's author.
        num_shown: Number of asserts, from the beginning of the test, that feedback may show.
        disjoint: Leave those out of the score; at least one assert is always scored.
    """

    def __init__(
        self, problem: Mapping[str, Any], helper: str | None, main: str, num_shown: int = 0, disjoint: bool = False
    ):
        self.problem = problem
        self.entry_point = problem["entry_point"]
        self.helper = None if helper is None else read_source(helper)
        self.main = read_source(main)
        self.num_shown = num_shown
        self.disjoint = disjoint
        self.has_helper = self.helper is not None and self.helper.attempts(HELPER)
        self.has_main = self.main.attempts(self.entry_point)
        self.error = self._syntax_error()

    def _syntax_error(self) -> str:
        helper = Source() if self.helper is None else self.helper
        return helper.broken(HELPER) or self.main.broken(self.entry_point)

    def case(self) -> Case | None:
        """What has to be judged; None if the score does not depend on it."""
        if not self.has_main or self.error:
            return None
        prompt = self.problem["prompt"]
        program = assemble(prompt, self.entry_point, self.helper, self.main)
        counted = "" if self.helper is None else HELPER
        return Case(program, self.entry_point, self.problem["test"], surroundings(prompt, self.entry_point), counted)

    def score(self, verdict: Verdict | None) -> CodingScore:
        """The score, given the verdict on `case`."""
        terms = {"main": 0.6 if self.has_main else 0.0}
        if self.helper is not None:
            terms = {"helper": 0.4 if self.has_helper else 0.0, **terms}
        use = helper_use(self.main, self.entry_point)
        facts: dict[str, Any] = {"use": use, "has_helper": self.has_helper, "has_main": self.has_main}
        if verdict is None:
            return CodingScore(terms, error=self.error, **facts)
        if verdict.passed and not verdict.counted:
            # The apparent call did not run the helper: dead code, or another binding of the name.
            use = facts["use"] = HelperUse(False, False, use.wrapper)
        num_shown = min(self.num_shown, verdict.total)
        shown = verdict.units[:num_shown]
        scored = verdict.units[min(num_shown, verdict.total - 1) :] if self.disjoint else verdict.units
        passed = sum(unit.passed for unit in scored)
        terms |= {"syntax": 0.5, "tests": passed / len(scored) if scored else 0.0}
        if self.helper is not None and self.helper.definition(HELPER) is not None and passed:
            terms |= {
                "uses_helper": 0.5 if use.called else 0.0,
                "no_wrapper": 1.0 if use.called and not use.wrapper else 0.0,
                "ignores_helper": -0.5 if use.called and not use.used else 0.0,
            }
        correct = verdict.correct
        return CodingScore(
            terms, passed, len(scored), correct, parses=True, error=verdict.error, timeouts=verdict.timeouts,
            shown=shown, **facts,
        )  # fmt: skip


class ReleasedReading:
    """A joint action, parsed and scored by the rules of the authors' released code; see `PaperReading`."""

    def __init__(
        self, problem: Mapping[str, Any], helper: str | None, main: str, num_shown: int = 0, disjoint: bool = False
    ):
        self.problem = problem
        self.alone = helper is None
        self.num_shown = num_shown
        self.disjoint = disjoint
        self.read: ReleasedProgram = read_released(
            problem["prompt"], problem["test"], problem["entry_point"], helper or "", main
        )
        self.has_helper = bool(self.read.helper) and self.read.returns(self.read.helper)
        self.has_main = bool(self.read.main) and self.read.returns(self.read.main)

    def case(self) -> Case | None:
        """What has to be judged; None if the score does not depend on it."""
        if not self.has_main or not self.read.parses or not self.read.asserts:
            return None
        imports = "\n".join(import_lines(self.problem["prompt"]))
        return Case(self.read.program, self.problem["entry_point"], self.read.test(), imports)

    def score(self, verdict: Verdict | None) -> CodingScore:
        """The score, given the verdict on `case`."""
        read = self.read
        terms = {"main": 0.6 if self.has_main else 0.0}
        if not self.alone:
            terms = {"helper": 0.4 if self.has_helper else 0.0, **terms}
        # These rules detect a discarded result in one spelling only.
        use = HelperUse(read.calls_helper, read.calls_helper and not read.throws_away, bool(read.main) and read.wrapper)
        facts: dict[str, Any] = {
            "use": use,
            "has_helper": self.has_helper,
            "has_main": self.has_main,
            "parses": read.parses,
        }
        if not self.has_main or not read.parses:
            return CodingScore(terms, error="" if read.parses else "the program does not parse", **facts)
        terms["syntax"] = 0.5
        if verdict is None:
            return CodingScore(terms, **facts)
        results = {_assertion(unit.text): unit for unit in verdict.units}
        # An assert of a constant is not a unit of the verdict; it holds if the program loads.
        outcome = {
            line: verdict.loaded and getattr(results.get(_assertion(line)), "passed", True) for line in read.runnable()
        }
        num_shown = min(self.num_shown, len(read.asserts))
        scored = read.asserts[min(num_shown, len(read.asserts) - 1) :] if self.disjoint else read.asserts
        passed = sum(outcome.get(line, False) for line in scored)
        terms["tests"] = passed / len(scored)
        if passed and read.helper:
            terms |= {
                "uses_helper": 0.5 if use.called else 0.0,
                "no_wrapper": 1.0 if use.called and not use.wrapper else 0.0,
                "ignores_helper": -0.5 if use.called and read.throws_away else 0.0,
            }
        shown = tuple(
            results.get(_assertion(line)) or UnitResult(0, line, bool(outcome.get(line)), "cannot run on its own")
            for line in read.asserts[:num_shown]
        )
        correct = all(outcome.get(line, False) for line in read.asserts)
        return CodingScore(
            terms, passed, len(scored), correct, error=verdict.error, timeouts=verdict.timeouts, shown=shown, **facts
        )  # fmt: skip


def _assertion(line: str) -> str:
    """The condition of an assert, without its message; empty for other lines."""
    try:
        (node,) = ast.parse(line).body
    except (SyntaxError, ValueError):
        return ""
    return ast.dump(node.test) if isinstance(node, ast.Assert) else ""


READINGS: dict[str, type[PaperReading] | type[ReleasedReading]] = {"paper": PaperReading, "released": ReleasedReading}
