"""A study: trains several methods with several seeds in parallel, resumes interrupted runs, and compares the results.

A study of claims also has cells, which are settings of the environment in which every method is trained; candidates,
which are alternative settings that each method chooses from on tuning seeds; and a rule, which is fixed before the
evaluation begins and decides its claims (`collm.studies.claims`; `collm.studies.report` writes the report).
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import yaml

from collm.errors import ConfigurationError
from collm.runtime.checks import COUNT, check_number
from collm.runtime.command import run_command
from collm.runtime.files import write_text
from collm.studies.claims import Rule
from collm.studies.comparison import Entry, compare
from collm.studies.launch import Cell, Method, Run, homes_of, nested, refuse_other_settings, stacked, train, write
from collm.studies.outcomes import measured, read_outcome

_OF_COMPARE = set(inspect.signature(compare).parameters) - {"entries", "out", "default_config"}


@dataclass
class Tuning:
    """Each method chooses its candidate with the largest mean area under the curve of the rule's metric.

    Args:
        seeds: Seeds for tuning, which the evaluation must not use.
        cells: Cells in which candidates are trained; by default all.
    """

    seeds: tuple[int, ...] = (0,)
    cells: list[str] = field(default_factory=list)


def study(
    configs: list[str],
    methods: dict[str, Method],
    out: str,
    seeds: tuple[int, ...] = (0, 1, 2),
    untrained: dict[str, Method] | None = None,
    overrides: dict | None = None,
    cells: dict[str, Cell] | None = None,
    seeded: list[str] | None = None,
    rule: Rule | None = None,
    tuning: Tuning | None = None,
    stage: Literal["tune", "evaluate"] = "evaluate",
    part: str | None = None,
    jobs: int = 1,
    comparison: dict | None = None,
    script: str = "tools/fit.py",
    default_config: str | None = None,
) -> None:
    """Train every method with every seed, then compare them with each other and with untrained protocols.

    Finished runs are skipped and interrupted runs resume from their last checkpoint, so the command can be repeated at
    any time. The runs are in <out>/<method>/seed_<seed>, the comparison in <out>/comparison. With cells, the runs are
    in <out>/<cell>/<method>/seed_<seed>, and tools/report.py writes the report.

    Args:
        configs: Configurations that all methods share.
        methods: The methods to train, by label.
        out: Folder of the study.
        seeds: Seeds of every method.
        untrained: Methods that are compared with their weights before training, by label.
        overrides: Settings of all methods that are applied after `configs`, nested as in a configuration file.
        cells: Settings in which methods are trained, by label.
        seeded: Settings that take the seed of a run as their value, such as `data.environment.init_args.mapping`.
        rule: The rule that decides claims. It must not change once an evaluation has begun.
        tuning: Settings of tuning.
        stage: `tune`: train the candidates of all methods and write the choices to <out>/tuned.yaml. `evaluate`: train
            every method with its chosen candidate.
        part: Train only one part of the runs, such as 2/8 (counted from 0), for array jobs on a cluster. The steps
            after training need a command without it.
        jobs: Number of parallel runs; they share the CPU cores.
        comparison: Arguments of the comparison, such as `episodes_per_task`.
        script: The training command.
        default_config: Configuration that is read before all others.
    """
    untrained, comparison, rule = untrained or {}, comparison or {}, rule or Rule()
    check_number("jobs", jobs, COUNT)
    if not methods or not seeds:
        raise ConfigurationError("a study needs at least one method and one seed.")
    if unknown := sorted(set(comparison) - _OF_COMPARE):
        raise ConfigurationError(
            f"comparison has no setting {unknown[0]!r}; there are {', '.join(sorted(_OF_COMPARE))}."
        )
    if cells and untrained:
        raise ConfigurationError("untrained protocols are compared in studies without cells; remove one of them.")
    cells = cells or {}
    trained = labels_by_cell(cells, methods)
    rule.check(trained)
    if both := [label for label in untrained if label in methods]:
        raise ConfigurationError(
            f"{both[0]!r} is among methods and untrained, which would be one row; call the latter "
            f"{f'{both[0]}, untrained'!r}, for example."
        )
    homes, cell_homes = homes_of([*methods, *untrained]), homes_of(cells)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    shared = [*configs, write(folder / "overrides.yaml", overrides)] if overrides else list(configs)

    def runs_of(cell: str | None, label: str, method: Method, home: Path, its_seeds: Sequence[int]) -> list[Run]:
        stack = shared
        if cell is not None:
            stack = stacked(cell, shared, cells[cell], folder / f"{cell_homes[cell]}.yaml")
        stack = stacked(label, stack, method, home / "overrides.yaml")
        name = label if cell is None else f"{cell}, {label}"
        runs = []
        for seed in its_seeds:
            settings = enumerate(seeded or [])
            own = [write(home / f"seeded_{seed}_{n}.yaml", nested(setting, seed)) for n, setting in settings]
            runs.append(Run(name, seed, home / f"seed_{seed}", [*stack, *own]))
        return runs

    if stage == "tune":
        tuned = tuning_of(methods, trained, tuning)
        tried: dict[tuple[str, str, int], list[Run]] = {}
        for tuned_cell in tuned.cells or list(cells):
            for label in trained[tuned_cell]:
                for number, candidate in enumerate(methods[label].candidates):
                    home = folder / "tuning" / cell_homes[tuned_cell] / f"{homes[label]}_{number}"
                    changes = write(home / "candidate.yaml", candidate)
                    untried = runs_of(tuned_cell, label, methods[label], home, tuned.seeds)
                    tried[tuned_cell, label, number] = [
                        replace(run, configs=[*run.configs, changes]) for run in untried
                    ]
        everything = [run for runs in tried.values() for run in runs]
        refuse_other_settings(everything)
        if train_part(everything, jobs, script, part):
            choose(methods, tried, rule, folder / "tuned.yaml")
        return

    methods = as_tuned(methods, tuning, seeds, folder / "tuned.yaml")
    runs: list[Run] = []
    entries: list[Entry] = []
    without_cells: list[tuple[str | None, list[str]]] = [(None, list(methods))]
    for cell, labels in trained.items() or without_cells:
        for label in labels:
            home = folder / (homes[label] if cell is None else f"{cell_homes[cell]}/{homes[label]}")
            runs += runs_of(cell, label, methods[label], home, seeds)
            if cell is None:
                entries += [Entry(label, str(run.folder / "config.yaml"), "last") for run in runs[-len(seeds) :]]
    for label, method in untrained.items():
        stack = stacked(label, shared, Method(method.configs), None)
        entries.append(Entry(label, stack, None, method.overrides))
    refuse_other_settings(runs)
    runs.sort(key=lambda run: seeds.index(run.seed))  # an interrupted study has equally many runs of every method
    if cells:
        freeze(folder / "study.json", rule, cell_homes, homes, methods, len(runs))
    if train_part(runs, jobs, script, part) and not cells:
        compare(entries, str(folder / "comparison"), default_config=default_config, **comparison)


def train_part(runs: Sequence[Run], jobs: int, script: str, part: str | None) -> bool:
    """Train the runs, or one part of them; returns whether this command trains all runs."""
    if part is None:
        train(runs, jobs, script)
        return True
    index, _, total = part.partition("/")
    if not index.isdigit() or not total.isdigit() or not int(index) < int(total):
        raise ConfigurationError(f"part is {part!r}; give one such as 0/8, 1/8, ..., 7/8.")
    train(runs[int(index) :: int(total)], jobs, script)
    return False


def labels_by_cell(cells: Mapping[str, Cell], methods: Mapping[str, Method]) -> dict[str, list[str]]:
    """The methods that are trained in each cell."""
    unknown = [(cell, label) for cell in cells for label in cells[cell].methods if label not in methods]
    if unknown:
        raise ConfigurationError(
            f"the cell {unknown[0][0]!r} names {unknown[0][1]!r}, but there are {', '.join(methods)}."
        )
    return {label: cell.methods or list(methods) for label, cell in cells.items()}


def tuning_of(methods: Mapping[str, Method], cells: Mapping[str, Sequence[str]], tuning: Tuning | None) -> Tuning:
    """The settings of tuning; refuses methods with different numbers of candidates, which would be unfair."""
    if tuning is None or not cells:
        raise ConfigurationError("there is nothing to tune; a study that is tuned has `tuning`, cells and candidates.")
    counts = {label: len(method.candidates) for label, method in methods.items()}
    if len(set(counts.values())) > 1 or not all(counts.values()):
        raise ConfigurationError(f"the methods have {counts} candidates; give all of them equally many, at least one.")
    unknown = [cell for cell in tuning.cells if cell not in cells]
    if unknown:
        raise ConfigurationError(f"tuning.cells names {unknown[0]!r}, but there are {', '.join(cells)}.")
    untried = set(methods) - {label for cell in tuning.cells or cells for label in cells[cell]}
    if untried:
        raise ConfigurationError(
            f"{min(untried)!r} is trained in none of the cells of tuning; name one in which it is."
        )
    return tuning


def choose(
    methods: Mapping[str, Method], tried: Mapping[tuple[str, str, int], Sequence[Run]], rule: Rule, path: Path
) -> None:
    """Write the best candidate of each method, and the scores of all candidates."""
    outcomes = [
        read_outcome(run.folder, cell, f"{label} {number}", run.seed, rule.metric)
        for (cell, label, number), runs in tried.items()
        for run in runs
    ]
    numbers = measured(outcomes, rule)
    choices = {}
    for label, method in methods.items():
        scores = []
        for number in range(len(method.candidates)):
            tried_in = [cell[name] for cell in numbers.values() if (name := f"{label} {number}") in cell]
            areas = [area for measures in tried_in for area in measures["auc"]]
            scores.append(sum(areas) / len(areas))
        best = scores.index(max(scores))
        choices[label] = {"chosen": best, "scores": scores, "candidates": method.candidates}
        print(f"{label}: candidate {best}, {scores[best]:.3f} of {', '.join(f'{score:.3f}' for score in scores)}")
    write_text(path, yaml.safe_dump(choices, sort_keys=False))
    print(f"written to {path}")


def as_tuned(
    methods: Mapping[str, Method], tuning: Tuning | None, seeds: Sequence[int], path: Path
) -> dict[str, Method]:
    """The methods with their chosen candidates."""
    if not any(method.candidates for method in methods.values()):
        return dict(methods)
    if tuning and (again := sorted(set(tuning.seeds) & set(seeds))):
        raise ConfigurationError(f"the seeds {again} were used for tuning; evaluate with others.")
    if not path.is_file():
        raise ConfigurationError(f"there is no {path}; tune first, with --stage tune.")
    choices = yaml.safe_load(path.read_text())
    tuned = {}
    for label, method in methods.items():
        if choices.get(label, {}).get("candidates") != method.candidates:
            raise ConfigurationError(f"{path} holds other candidates of {label!r} than the study now; tune again.")
        chosen = method.candidates[choices[label]["chosen"]]
        tuned[label] = replace(method, overrides=deep_merged(method.overrides, chosen))
    return tuned


def deep_merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested settings; `second` takes precedence."""
    merged = dict(first)
    for name, value in second.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
        merged[name] = deep_merged(merged[name], value) if both else value
    return merged


def freeze(
    path: Path,
    rule: Rule,
    cells: Mapping[str, str],
    homes: Mapping[str, str],
    methods: Mapping[str, Method],
    num_runs: int,
) -> None:
    """Write the rule and methods of the evaluation to `path`; refuse a changed rule once the evaluation has begun."""
    record = {
        "rule": asdict(rule),
        "cells": dict(cells),
        "homes": dict(homes),
        "methods": {label: asdict(method) for label, method in methods.items()},
        "planned": num_runs,
    }
    if path.is_file():
        earlier = json.loads(path.read_text())
        if record["rule"] != earlier["rule"]:
            raise ConfigurationError(
                f"the rule of the study changed after its evaluation began ({earlier['began']}); restore it, or "
                "evaluate with another `out` and new seeds."
            )
        record["began"] = earlier["began"]
    else:
        record["began"] = datetime.now().astimezone().isoformat(timespec="seconds")
    write_text(path, json.dumps(record, indent=2))


def main(script: str | Path, default_config: str | Path) -> int:
    """The command; `script` is the training command."""
    return run_command(study, script=str(script), default_config=str(default_config))
