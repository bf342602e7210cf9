"""Claims about methods, and the pre-registered rule that supports or refutes them.

The rule is written into the study's configuration before the evaluation begins and is stored with the runs:

    better   supported if the complete interval of the advantage is above the margin, refuted if it is below
    equal    supported if the complete interval is between minus and plus the margin, refuted if it is outside

All other cases are undecided, including those with fewer runs than the rule requires. The advantage of one method over
another is the difference of interquartile means (`auc`, `final`), or the share that it saves of what the other method
needs to reach the threshold (`samples`, `seconds`). A run that never reaches the threshold counts with its total, which
understates savings over it. Intervals are bootstrapped over seeds at the level 1 - (1 - confidence) / number of claims,
so that all of them hold jointly (Bonferroni).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from collm.errors import ConfigurationError
from collm.runtime.checks import COUNT, Range, check_numbers
from collm.studies.statistics import difference, improvement, interval, saving

LESS_IS_BETTER = ("samples", "seconds")


@dataclass
class Claim:
    """A claim about two methods in one cell of a study.

    Args:
        text: The claim in words.
        cell: Label of the cell.
        method: Label of the method that the claim is about.
        versus: Label of the method that it is compared with.
        measure: `auc`: mean height of the curve over joint samples; `final`: its last value; `samples` and `seconds`:
            joint samples and seconds to reach the threshold.
        expect: `better` by more than the margin, or `equal` up to the margin.
        margin: In units of the metric, or as a share for `samples` and `seconds`.
    """

    text: str
    cell: str
    method: str
    versus: str
    measure: Literal["auc", "final", "samples", "seconds"] = "auc"
    expect: Literal["better", "equal"] = "better"
    margin: float = 0.0


@dataclass
class Rule:
    """The rule that evaluates the runs of a study.

    Args:
        metric: Logged metric that the curves show.
        window: Number of rollouts in the moving average of a curve.
        threshold: Value of the metric that a run has to reach.
        confidence: Level at which all claims hold jointly.
        min_runs: Smallest number of runs of each method for a decision; intervals of fewer runs are too unreliable.
        claims: The claims to decide.
    """

    metric: str = "rollout/return"
    window: int = 10
    threshold: float = 0.8
    confidence: float = 0.95
    min_runs: int = 5
    claims: list[Claim] = field(default_factory=list)

    def check(self, cells: Mapping[str, Sequence[str]]) -> None:
        """Refuse claims about cells or methods that the study does not have; `cells` lists the methods of each cell."""
        check_numbers("rule", self, window=COUNT, min_runs=Range(2, COUNT.most, whole=True))
        check_numbers("rule", self, confidence=Range(0, 1, above=True, below=True))
        for claim in self.claims:
            trained = cells.get(claim.cell, ())
            for name, known in ((claim.cell, cells), (claim.method, trained), (claim.versus, trained)):
                if name not in known:
                    raise ConfigurationError(
                        f"the claim {claim.text!r} names {name!r}, but there are {', '.join(known)}."
                    )
            if claim.margin < 0 or (claim.expect == "equal" and claim.margin == 0):
                raise ConfigurationError(
                    f"the claim {claim.text!r} has the margin {claim.margin}; it must be at least 0, and above 0 for "
                    "'equal'."
                )


@dataclass(frozen=True)
class Verdict:
    """The decision about a claim.

    Args:
        claim: The claim.
        decision: `supported`, `refuted` or `undecided`.
        advantage: Advantage of the method and its interval: estimate, low, high.
        improvement: Probability that a run of the method is better than a run of the other, with its interval.
        runs: Number of runs of the method, and of the method it is compared with.
    """

    claim: Claim
    decision: str
    advantage: tuple[float, float, float]
    improvement: tuple[float, float, float]
    runs: tuple[int, int]


def judge(rule: Rule, numbers: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]) -> list[Verdict]:
    """Decide all claims; those without runs are undecided.

    Args:
        rule: The rule.
        numbers: The measures of all runs, by cell, method and measure.
    """
    level = 1 - (1 - rule.confidence) / max(1, len(rule.claims))
    verdicts = []
    for claim in rule.claims:
        cell = numbers.get(claim.cell, {})
        pair = [cell.get(name, {}).get(claim.measure, ()) for name in (claim.method, claim.versus)]
        unknown = (float("nan"),) * 3
        sizes = (len(pair[0]), len(pair[1]))
        if min(sizes) == 0:
            verdicts.append(Verdict(claim, "undecided", unknown, unknown, sizes))
            continue
        advantage = interval(pair, saving if claim.measure in LESS_IS_BETTER else difference, level)
        sign = -1.0 if claim.measure in LESS_IS_BETTER else 1.0
        probability = interval([sign * np.asarray(values) for values in pair], improvement, level)
        decision = decide(claim, *advantage[1:]) if min(sizes) >= rule.min_runs else "undecided"
        verdicts.append(Verdict(claim, decision, advantage, probability, sizes))
    return verdicts


def decide(claim: Claim, low: float, high: float) -> str:
    """The decision from the ends of the interval; `undecided` if they are NaN."""
    if claim.expect == "better":
        supported, refuted = low > claim.margin, high < claim.margin
    else:
        supported = -claim.margin < low and high < claim.margin
        refuted = high < -claim.margin or low > claim.margin
    return "supported" if supported else "refuted" if refuted else "undecided"
