from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from collm.errors import ConfigurationError
from collm.studies.claims import Claim, Rule, decide, judge
from collm.studies.outcomes import Outcome, horizons, measured
from collm.studies.report import joined, report

BETTER = Claim("A beats B", "game", "A", "B", "auc", "better", 0.1)
EQUAL = Claim("A is as good as B", "game", "A", "B", "auc", "equal", 0.1)


@pytest.mark.parametrize(
    ("claim", "low", "high", "decision"),
    [
        (BETTER, 0.11, 0.3, "supported"),
        (BETTER, 0.05, 0.3, "undecided"),
        (BETTER, -0.3, 0.09, "refuted"),
        (EQUAL, -0.09, 0.09, "supported"),
        (EQUAL, 0.0, 0.11, "undecided"),
        (EQUAL, 0.11, 0.3, "refuted"),
        (EQUAL, -0.3, -0.11, "refuted"),
        (EQUAL, -0.3, 0.3, "undecided"),
        (BETTER, float("nan"), float("nan"), "undecided"),
        (EQUAL, float("nan"), float("nan"), "undecided"),
    ],
)
def test_the_rule(claim: Claim, low: float, high: float, decision: str) -> None:
    assert decide(claim, low, high) == decision


def numbers(first: list[float], second: list[float], measure: str = "auc") -> dict:
    return {"game": {"A": {measure: first}, "B": {measure: second}}}


def test_verdicts() -> None:
    high, low = [0.8, 0.81, 0.82, 0.83, 0.84], [0.5, 0.51, 0.52, 0.53, 0.54]
    (verdict,) = judge(Rule(claims=[BETTER]), numbers(high, low))
    assert verdict.decision == "supported"
    assert verdict.advantage[0] == pytest.approx(0.3)
    assert verdict.improvement[0] == 1.0
    assert judge(Rule(claims=[BETTER]), numbers(low, high))[0].decision == "refuted"
    assert judge(Rule(claims=[EQUAL]), numbers(high, high[::-1]))[0].decision == "supported"
    assert judge(Rule(claims=[BETTER], min_runs=6), numbers(high, low))[0].decision == "undecided"
    assert judge(Rule(claims=[BETTER]), {})[0].decision == "undecided"


def test_fewer_samples_are_better() -> None:
    claim = Claim("A needs at most 0.7 of B's", "game", "A", "B", "samples", "better", 0.3)
    few, many = [100.0, 110, 120, 130, 140], [300.0, 310, 320, 330, 340]
    (verdict,) = judge(Rule(claims=[claim]), numbers(few, many, "samples"))
    assert verdict.decision == "supported"
    assert verdict.advantage[0] == pytest.approx(1 - 120 / 320)
    assert verdict.improvement[0] == 1.0
    assert judge(Rule(claims=[claim]), numbers(many, few, "samples"))[0].decision == "refuted"


def test_more_claims_make_wider_intervals() -> None:
    runs = numbers([0.1, 0.5, 0.7, 0.9, 1.2], [0.0, 0.3, 0.4, 0.5, 0.6])
    (alone,) = judge(Rule(claims=[BETTER]), runs)
    first, *_ = judge(Rule(claims=[BETTER] * 10), runs)
    assert first.advantage[0] == alone.advantage[0]
    assert first.advantage[1] < alone.advantage[1] < alone.advantage[2] < first.advantage[2]


@pytest.mark.parametrize(
    ("rule", "named"),
    [
        (Rule(claims=[BETTER]), "'game', but there are other"),
        (Rule(claims=[Claim("?", "other", "C", "B")]), "'C', but there are A, B"),
        (Rule(claims=[Claim("?", "other", "A", "B", expect="equal")]), "margin 0.0"),
        (Rule(window=0), "rule.window is 0"),
        (Rule(min_runs=1), "rule.min_runs is 1"),
    ],
)
def test_invalid_rules_are_refused(rule: Rule, named: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        rule.check({"other": ["A", "B"]})


def outcomes() -> list[Outcome]:
    """Two methods with five runs each; B learns half as fast and is played for longer."""
    found = []
    for seed in range(5):
        for method, speed, points in (("A", 0.2, 6), ("B", 0.1, 12)):
            values = [min(1.0, speed * (index + 0.1 * seed)) for index in range(points)]
            samples = [100.0 * (index + 1) for index in range(points)]
            seconds = [3.0 * (index + 1) for index in range(points)]
            found.append(
                Outcome("game", method, seed, samples, seconds, values, {"critic": 0.25 + 0.5 * (method == "A")})
            )
    return found


def test_measures_end_where_the_shortest_run_ends() -> None:
    rule = Rule(window=1, threshold=0.75)
    assert horizons(outcomes()) == {"game": 600.0}
    found = measured(outcomes(), rule)["game"]
    assert found["A"]["samples"] == [500.0] * 5  # 0.2 * 4 is the first at 0.75 or above
    assert found["A"]["seconds"] == [15.0] * 5
    assert found["A"]["reached"] == [1.0] * 5
    assert found["B"]["samples"] == [600.0] * 5
    assert found["B"]["reached"] == [0.0] * 5
    assert found["B"]["final"] == pytest.approx([0.5 + 0.01 * seed for seed in range(5)])
    # level at 0 up to 100, then a line up to 1.0 at 600
    assert found["A"]["auc"][0] == pytest.approx(500 * 0.5 / 600)


def test_the_report_can_be_regenerated_from_the_raw_numbers(tmp_path: Path) -> None:
    timed = replace(BETTER, measure="seconds")
    claims = [BETTER, EQUAL, timed, replace(timed, method="B", versus="A")]
    rule = Rule("rollout/return", window=1, threshold=0.75, claims=claims)
    document = {
        "rule": asdict(rule),
        "began": "2026-01-02T03:04:05+00:00",
        "planned": 13,
        "outcomes": [outcome.record() for outcome in outcomes()],
    }
    raw = tmp_path / "outcomes.json"
    raw.write_text(json.dumps(document))
    report(raw=str(raw), out=str(tmp_path / "page"), note="A remark.")
    text = (tmp_path / "page" / "README.md").read_text()
    assert "| A beats B | game, auc | **supported** |" in text
    assert "| A is as good as B | game, auc | **refuted** |" in text
    for part in (
        "A remark.",
        "10 of 13 runs",
        "2026-01-02",
        "98.75 %",
        "A reaches the threshold in 15 s and 500 joint samples, B in 18 s and 600",
        "the same time if playing a joint sample took 30.00 ms less",  # (15 - 18) s / (600 - 500)
        "B needs as many joint samples as A or more, so a higher cost",
        "0 of 5",
        "0.75",
    ):
        assert part in text
    assert "| A | 5 |" in text
    assert "| 500 | 15 | 5 of 5 | 0.75 |" in text
    assert "| never | never | 0 of 5 | 0.25 |" in text
    assert {path.name for path in (tmp_path / "page").glob("*.png")} == {
        "game.png",
        "claims.png",
    }
    report(raw=str(raw), out=str(tmp_path / "again"), note="A remark.")
    assert (tmp_path / "again" / "README.md").read_text() == text


def test_runs_of_one_study_on_two_machines_are_joined(tmp_path: Path) -> None:
    """Method A is run on one machine and B on the other, the second with a later start."""
    rule = Rule("rollout/return", window=1, threshold=0.75, claims=[BETTER])
    whole = {
        "rule": asdict(rule),
        "cells": {"game": "game"},
        "homes": {"A": "A", "B": "B"},
        "methods": {},
        "began": "2026-01-02T03:04:05+00:00",
        "planned": 10,
        "outcomes": sorted((outcome.record() for outcome in outcomes()), key=lambda record: record["method"]),
    }
    of_a, of_b = (
        {**whole, "outcomes": [one for one in whole["outcomes"] if one["method"] == name], "began": began}
        for name, began in (("A", whole["began"]), ("B", "2026-01-05T03:04:05+00:00"))
    )
    paths = {name: tmp_path / f"{name}.json" for name in ("whole", "of_a", "of_b", "other")}
    for path, part in zip(paths.values(), (whole, of_a, of_b, {**of_a, "homes": {"A": "A"}}), strict=True):
        path.write_text(json.dumps(part))
    report(raw=str(paths["of_b"]), more=str(paths["of_a"]), out=str(tmp_path / "joined"))
    assert json.loads((tmp_path / "joined" / "outcomes.json").read_text()) == whole
    report(raw=str(paths["whole"]), out=str(tmp_path / "page"))
    assert (tmp_path / "joined" / "README.md").read_text() == (tmp_path / "page" / "README.md").read_text()
    # parts of five runs each that were planned as a study of five
    assert joined({**of_a, "planned": 5}, {**of_b, "planned": 5})["planned"] == 10
    with pytest.raises(ConfigurationError, match="both parts have a run of 'A' in 'game' with seed 0"):
        report(raw=str(paths["whole"]), more=str(paths["of_a"]), out=str(tmp_path / "twice"))
    with pytest.raises(ConfigurationError, match="differ in their homes"):
        report(raw=str(paths["of_b"]), more=str(paths["other"]), out=str(tmp_path / "other"))


def test_a_report_needs_something_to_report(tmp_path: Path) -> None:
    for arguments, named in (({}, "give either"), ({"study": str(tmp_path)}, "there is no")):
        with pytest.raises(ConfigurationError, match=named):
            report(**arguments, out=str(tmp_path / "page"))
