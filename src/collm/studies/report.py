"""The report of a study: verdicts on its claims, tables, figures, and the underlying numbers.

The report is generated from `outcomes.json` in the same folder; with `raw`, it can be regenerated from that file alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from collm.errors import ConfigurationError
from collm.runtime.command import run_command
from collm.runtime.files import write_text
from collm.studies.claims import LESS_IS_BETTER, Claim, Rule, Verdict, judge
from collm.studies.gradient_page import from_record, write_page
from collm.studies.launch import homes_of
from collm.studies.outcomes import Outcome, horizons, measured, read_outcome
from collm.studies.plots import draw_curves, draw_table, pyplot
from collm.studies.statistics import censored_median, interquartile_mean, interval, scipy_stats
from collm.studies.tables import as_cell


def report(
    study: str | None = None,
    out: str = "results/claims",
    raw: str | None = None,
    note: str = "",
    more: str | None = None,
) -> None:
    """Write the report of a study of claims.

    The folder `out` will contain README.md with a verdict for each claim and a table for each cell, figures, and
    outcomes.json.

    Args:
        study: Folder of a study with cells, the `out` of tools/study.py. Unfinished runs are left out, and the report
            says how many runs there are.
        out: Folder to write to.
        raw: Instead of a study, an outcomes.json, or the table.json of a gradient test.
        note: A remark for the top of the report, for example about missing runs.
        more: The outcomes.json of other runs of the same study, for example other seeds on another machine.
    """
    scipy_stats(), pyplot()
    if (study is None) == (raw is None):
        raise ConfigurationError("give either the folder of a study or raw, an outcomes.json.")
    document = json.loads(Path(raw).read_text()) if raw is not None else collect(Path(str(study)))
    if more is not None:
        document = joined(document, json.loads(Path(more).read_text()))
    if "gradients" in document:
        print(write_page(Path(out), from_record(document["gradients"]), figures=True, note=note or document["note"]))
        return
    rule = Rule(**{**document["rule"], "claims": [Claim(**claim) for claim in document["rule"]["claims"]]})
    outcomes = [Outcome(**record) for record in document["outcomes"]]
    if not outcomes:
        raise ConfigurationError("no run of the study is finished yet.")
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    if raw is None or more is not None:
        write_text(folder / "outcomes.json", json.dumps(document))
    numbers = measured(outcomes, rule)
    verdicts = judge(rule, numbers)
    cells = list(numbers)
    homes = homes_of(cells)
    for cell in cells:
        curves: dict[str, list[Any]] = {}
        for outcome in outcomes:
            if outcome.cell == cell:
                curves.setdefault(outcome.method, []).append(outcome.curve(rule.window))
        draw_curves(folder / f"{homes[cell]}.png", curves, rule.metric, rule.threshold, cell)
    if verdicts:
        labels = [f"{verdict.claim.text}: {verdict.decision}" for verdict in verdicts]
        draw_table(folder / "claims.png", labels, {"advantage": [verdict.advantage for verdict in verdicts]})
    text = page(document, rule, outcomes, numbers, verdicts, homes, note)
    write_text(folder / "README.md", text)
    print(text)
    print(f"written to {folder}")


def collect(folder: Path) -> dict[str, Any]:
    """The outcomes of all finished runs of a study, with its registered rule."""
    path = folder / "study.json"
    if not path.is_file():
        raise ConfigurationError(
            f"there is no {path}; give the folder of a study with cells whose evaluation has begun."
        )
    frozen = json.loads(path.read_text())
    metric = frozen["rule"]["metric"]
    outcomes = []
    for cell, cell_home in frozen["cells"].items():
        for method, home in frozen["homes"].items():
            for run in sorted((folder / cell_home / home).glob("seed_*")):
                if (run / "finished.json").is_file():
                    outcomes.append(read_outcome(run, cell, method, int(run.name.removeprefix("seed_")), metric))
    return {**frozen, "outcomes": [outcome.record() for outcome in outcomes]}


def joined(document: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """The runs of two parts of one study, in the order of its cells, methods and seeds.

    Raises:
        ConfigurationError: The parts have other rules, cells or methods, or share a run.
    """
    fixed = ("rule", "cells", "homes", "methods")
    if differing := [name for name in fixed if document.get(name) != more.get(name)]:
        raise ConfigurationError(f"the two parts differ in their {', '.join(differing)}; join runs of the same study.")
    runs = {}
    for record in (*document["outcomes"], *more["outcomes"]):
        key = record["cell"], record["method"], record["seed"]
        if key in runs:
            raise ConfigurationError(f"both parts have a run of {key[1]!r} in {key[0]!r} with seed {key[2]}.")
        runs[key] = record
    cells, methods = list(document["cells"]), list(document["homes"])
    ordered = sorted(runs, key=lambda key: (cells.index(key[0]), methods.index(key[1]), key[2]))
    return {
        **document,
        "began": min(document["began"], more["began"]),
        "planned": max(document["planned"], more["planned"], len(runs)),
        "outcomes": [runs[key] for key in ordered],
    }


def page(
    document: Mapping[str, Any],
    rule: Rule,
    outcomes: Sequence[Outcome],
    numbers: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]],
    verdicts: Sequence[Verdict],
    homes: Mapping[str, str],
    note: str,
) -> str:
    """The report in Markdown."""
    spent = sum(outcome.seconds[-1] for outcome in outcomes)
    level = 1 - (1 - rule.confidence) / max(1, len(rule.claims))
    planned = max(document["planned"], len(outcomes))  # `--seeds` notes those of its last call
    lines = ["# Claims and verdicts", ""]
    lines += [note, ""] if note else []
    lines += [
        f"{len(outcomes)} of {planned} runs, {spent / 60:.0f} minutes of rollouts and updates. The "
        f"rule was fixed on {document['began'][:10]}, before the first run: curves are moving averages of "
        f"`{rule.metric}` over {rule.window} rollouts, the threshold is {rule.threshold}, and each claim is decided by "
        f"a {100 * level:.2f} % bootstrap interval over seeds, so that all hold jointly at "
        f"{100 * rule.confidence:.0f} %; a claim with fewer than {rule.min_runs} runs of a method is undecided. "
        "Advantages are differences of interquartile means; for samples and seconds, the share saved to reach the "
        "threshold, where runs that never reach it count with their total.",
        "",
        "| claim | where | verdict | advantage | margin | probability of improvement | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    for verdict in verdicts:
        claim = verdict.claim
        lines.append(
            f"| {claim.text} | {claim.cell}, {claim.measure} | **{verdict.decision}** | {as_cell(verdict.advantage)} | "
            f"{'within ±' if claim.expect == 'equal' else 'above '}{claim.margin:g} | {as_cell(verdict.improvement)} | "
            f"{verdict.runs[0]}, {verdict.runs[1]} |"
        )
    lines += ["", "![Advantages](claims.png)"] if verdicts else []
    lines += ["", *(level_at(verdict, numbers) for verdict in verdicts if verdict.claim.measure == "seconds")]
    ends = horizons(outcomes)
    for cell, methods in numbers.items():
        lines += [
            "",
            f"## {cell}",
            "",
            f"Up to {ends[cell]:,.0f} joint samples. Interquartile mean over seeds with its 95 % bootstrap interval; "
            "for samples and seconds to the threshold the median over seeds, with runs that never reach it counted as "
            "censored.",
            "",
            "| method | seeds | area under curve | final | samples to threshold | seconds | reach it | EV of critics |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for method, measures in methods.items():
            area, final = (as_cell(interval([measures[name]], interquartile_mean)) for name in ("auc", "final"))
            reached = [bool(value) for value in measures["reached"]]
            needed = [censored_median(measures[name], reached) for name in LESS_IS_BETTER]
            medians = [f"{value:,.0f}" if np.isfinite(value) else "never" for value in needed]
            lines.append(
                f"| {method} | {len(reached)} | {area} | {final} | {medians[0]} | {medians[1]} | {sum(reached)} of "
                f"{len(reached)} | {explained(outcomes, cell, method)} |"
            )
        lines += ["", f"![{cell}]({homes[cell]}.png)"]
    lines += [
        "",
        "`python tools/report.py --raw outcomes.json --out FOLDER` regenerates report and figures.",
    ]
    return "\n".join(lines) + "\n"


def level_at(verdict: Verdict, numbers: Mapping[str, Mapping[str, Mapping[str, Sequence[float]]]]) -> str:
    """The extra cost of a joint sample at which both methods of a claim about time would need the same time."""
    claim = verdict.claim
    of_cell = numbers.get(claim.cell, {})
    pair = [of_cell[name] for name in (claim.method, claim.versus) if name in of_cell]
    text = f"Time in {claim.cell}: "
    if len(pair) < 2:
        return text + f"{claim.method} and {claim.versus} have not both been run."
    (samples, seconds), (other_samples, other_seconds) = (
        [float(interquartile_mean(np.asarray(measures[name]))) for name in LESS_IS_BETTER] for measures in pair
    )
    if samples >= other_samples:
        needs = f"{claim.method} needs as many joint samples as {claim.versus} or more"
        return f"{text}{needs}, so a higher cost of a joint sample would not help it."
    cost = 1000 * (seconds - other_seconds) / (other_samples - samples)
    return (
        text + f"{claim.method} reaches the threshold in {seconds:.0f} s and {samples:,.0f} joint samples, "
        f"{claim.versus} in {other_seconds:.0f} s and {other_samples:,.0f}; they would need the same time if playing a "
        f"joint sample took {abs(cost):.2f} ms {'more' if cost > 0 else 'less'}."
    )


def explained(outcomes: Sequence[Outcome], cell: str, method: str) -> str:
    """Median over training and seeds of the critics' explained variance."""
    runs = [outcome for outcome in outcomes if (outcome.cell, outcome.method) == (cell, method)]
    values = [value for outcome in runs for value in outcome.explained_variance.values() if np.isfinite(value)]
    return f"{np.nanmedian(values):.2f}" if values else "-"


def main() -> int:
    """The command."""
    return run_command(report)
