"""Claims about methods, and the rule by which a study supports or refutes them.

A rule is written into the file of a study before its evaluation begins, is kept with its runs, and alone decides:

    better   supported if the whole interval of the advantage lies above the margin, refuted if it lies below
    equal    supported if the whole interval lies between minus and plus the margin, refuted if it lies outside

and undecided in all other cases, also where there are fewer runs than the rule asks for. The advantage of one method
over another is the difference of interquartile means (`auc`, `final`), or the share that it saves of what the other
needs to reach the threshold (`samples`, `seconds`; a run that never does counts with all it had, so a saving over it is
understated). Intervals are bootstrapped over seeds at the level 1 - (1 - confidence) / number of claims, so that all of
them hold together (Bonferroni).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from collm.errors import ConfigurationError
from collm.studies.statistics import difference, improvement, interval, saving

LESS_IS_BETTER = ("samples", "seconds")


@dataclass
class Claim:
    """What is said of two methods in one cell of a study.

    Args:
        text: The claim in words.
        cell: Label of the cell.
        method: Label of the method it is about.
        versus: Label of the method it is compared with.
        measure: `auc`: mean height of the curve over joint samples; `final`: its last value; `samples` and `seconds`:
            what it takes to reach the threshold.
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
    """How the runs of a study are read.

    Args:
        metric: Logged number that curves are made of.
        window: Rollouts of the moving average of a curve.
        threshold: Height whose first reaching counts.
        confidence: Level at which all claims hold together.
        min_runs: Runs of each method without which nothing is decided: intervals of fewer say too little.
        claims: What is decided.
    """

    metric: str = "rollout/return"
    window: int = 10
    threshold: float = 0.8
    confidence: float = 0.95
    min_runs: int = 5
    claims: list[Claim] = field(default_factory=list)

    def check(self, cells: Mapping[str, Sequence[str]]) -> None:
        """Refuse claims about what the study does not have: methods by cell."""
        if self.window < 1 or self.min_runs < 2 or not 0 < self.confidence < 1:
            raise ConfigurationError(
                f"rule.window is {self.window}, rule.min_runs {self.min_runs} and rule.confidence {self.confidence}; "
                "they must be at least 1, at least 2, and between 0 and 1."
            )
        for claim in self.claims:
            trained = cells.get(claim.cell, ())
            for name, known in ((claim.cell, cells), (claim.method, trained), (claim.versus, trained)):
                if name not in known:
                    raise ConfigurationError(
                        f"the claim {claim.text!r} speaks of {name!r}, but there are {', '.join(known)}."
                    )
            if claim.margin < 0 or (claim.expect == "equal" and claim.margin == 0):
                raise ConfigurationError(
                    f"the claim {claim.text!r} has the margin {claim.margin}; it must be at least 0, and above 0 for "
                    "'equal'."
                )


@dataclass(frozen=True)
class Verdict:
    """What the rule makes of a claim.

    Args:
        claim: The claim.
        decision: `supported`, `refuted` or `undecided`.
        advantage: Advantage of the method and its interval: estimate, low, high.
        improvement: Probability that one of its runs is better than one of the other's, with its interval.
        runs: Runs of the method, and of the one it is compared with.
    """

    claim: Claim
    decision: str
    advantage: tuple[float, float, float]
    improvement: tuple[float, float, float]
    runs: tuple[int, int]


def judge(rule: Rule, numbers: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]) -> list[Verdict]:
    """Decide every claim whose runs are there.

    Args:
        rule: The rule.
        numbers: Every measure of every run, by cell, method and measure.
    """
    level = 1 - (1 - rule.confidence) / max(1, len(rule.claims))
    verdicts = []
    for claim in rule.claims:
        cell = numbers.get(claim.cell, {})
        pair = [cell.get(name, {}).get(claim.measure, ()) for name in (claim.method, claim.versus)]
        nothing = (float("nan"),) * 3
        sizes = (len(pair[0]), len(pair[1]))
        if min(sizes) == 0:
            verdicts.append(Verdict(claim, "undecided", nothing, nothing, sizes))
            continue
        advantage = interval(pair, saving if claim.measure in LESS_IS_BETTER else difference, level)
        sign = -1.0 if claim.measure in LESS_IS_BETTER else 1.0
        chances = interval([sign * np.asarray(values) for values in pair], improvement, level)
        decision = decide(claim, *advantage[1:]) if min(sizes) >= rule.min_runs else "undecided"
        verdicts.append(Verdict(claim, decision, advantage, chances, sizes))
    return verdicts


def decide(claim: Claim, low: float, high: float) -> str:
    """The decision from the ends of the interval; NaN decides nothing."""
    if claim.expect == "better":
        supported, refuted = low > claim.margin, high < claim.margin
    else:
        supported = -claim.margin < low and high < claim.margin
        refuted = high < -claim.margin or low > claim.margin
    return "supported" if supported else "refuted" if refuted else "undecided"
