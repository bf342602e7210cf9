"""Comparison of several methods on the same held-out tasks, with tables and figures.

Every entry is evaluated by the ordinary command line (`validate`). Entries with the same label are its seeds. Numbers
are means with a 95 % bootstrap interval over seeds and episodes.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from glob import glob
from pathlib import Path
from typing import Any

import torch
import yaml

from collm import cli
from collm.errors import ConfigurationError
from collm.metrics import stratified_interval
from collm.replay.page import write_page
from collm.replay.sources import has_transcripts
from collm.runtime.checks import COUNT, COUNT_OR_ZERO, check_number
from collm.runtime.command import run_command
from collm.runtime.files import write_text
from collm.studies.launch import homes_of
from collm.studies.plots import draw_curves, draw_table, pyplot
from collm.studies.runs import read_run
from collm.studies.tables import RENAMED, Row, as_text, names_of, write_csv

CURVE = "eval/return"


@dataclass
class Entry:
    """One row of the table, or one seed of a row.

    Args:
        label: Name of the row; entries that share it are its seeds.
        config: Configuration of a run (`logs/collm/version_0/config.yaml`) or of an experiment, or a list of files to
            combine. A single one may be a pattern with `*`: every match is a seed.
        checkpoint: `last` or `best` of the run in the folder of the configuration, or the path of a checkpoint; null
            for the weights before training. `best` was selected on the held-out tasks, so its result is biased upward.
        overrides: Settings that differ from the configuration, nested as in a configuration file.
    """

    label: str
    config: str | list[str]
    checkpoint: str | None = None
    overrides: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """One evaluation: an entry with all paths resolved."""

    label: str
    configs: tuple[str, ...]
    checkpoint: str | None
    overrides: Mapping[str, Any]


def compare(
    entries: list[Entry],
    out: str = "logs/comparison",
    episodes_per_task: int = 16,
    timed_episodes: int = 16,
    batch_size: int = 128,
    greedy: bool = False,
    seed: int = 1000,
    figures: bool = True,
    default_config: str | None = None,
) -> None:
    """Evaluate entries on the same held-out tasks with the same seeds, and write tables and figures.

    The folder `out` will contain table.csv, table.json and table.png; overhead.csv and curves.png if entries are
    training runs with logs; transcripts of all episodes under evaluations/; and replay.html, which shows them.

    Args:
        entries: The methods to compare.
        out: Folder to write to.
        episodes_per_task: Episodes of each held-out task.
        timed_episodes: Episodes that are played one at a time to measure the response time; 0 for none. Times depend
            on this machine and its load.
        batch_size: Episodes played in parallel; it affects the random seeds, so use the same value in comparisons.
        greedy: Use greedy decoding instead of sampling.
        seed: Seed of tasks and sampling of every evaluation, independent of the seeds of the training runs.
        figures: Draw table.png and curves.png, which needs matplotlib.
        default_config: Configuration that is read before those of every entry.
    """
    check_number("episodes_per_task", episodes_per_task, COUNT)
    check_number("timed_episodes", timed_episodes, COUNT_OR_ZERO)
    if figures:
        pyplot()
    jobs = [job for entry in entries for job in find(entry)]
    if not jobs:
        raise ConfigurationError("there is nothing to compare; give at least one entry.")
    for label in {job.label for job in jobs if job.checkpoint is None}:
        if any(job.checkpoint is not None for job in jobs if job.label == label):
            raise ConfigurationError(
                f"{label!r} names trained and untrained entries, which would be one row; give the untrained ones a "
                "label of their own."
            )
    homes = homes_of({job.label: None for job in jobs})
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    settings = {
        "seed_everything": seed,
        "data": {
            "eval_episodes_per_task": episodes_per_task,
            "eval_batch_size": batch_size,
            "eval_greedy": greedy,
        },
        "trainer": {"logger": False, "devices": 1, "num_nodes": 1, "strategy": "auto"},
    }
    records: dict[str, list[dict[str, Any]]] = {}
    tasks: set[str] | None = None
    for number, job in enumerate(jobs):
        print(f"[{number + 1}/{len(jobs)}] {job.label}: {job.checkpoint or ', '.join(job.configs)}", flush=True)
        name = f"{homes[job.label]}_{len(records.get(job.label, []))}"
        record = evaluate(job, settings, folder / "evaluations" / name, timed_episodes, default_config)
        played = set(record["tasks"])
        if tasks is not None and played != tasks:
            raise ConfigurationError(
                f"{job.label!r} is evaluated on other tasks than {jobs[0].label!r}: only the one on "
                f"{sorted(played - tasks)[:5]}, only the other on {sorted(tasks - played)[:5]}; give all entries the "
                "same held-out tasks."
            )
        tasks = played
        records.setdefault(job.label, []).append(record)
    rows = tabulate(records)
    overheads, curves = training(jobs)
    print("\n" + as_text(rows) + ("\n" + as_text(overheads) if overheads else ""))
    write_csv(folder / "table.csv", rows)
    if overheads:
        write_csv(folder / "overhead.csv", overheads)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads"
    document = {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": sys.argv,
        "seed": seed,
        "episodes_per_task": episodes_per_task,
        "timed_episodes": timed_episodes,
        "greedy": greedy,
        "tasks": sorted(tasks or ()),
        "device": device,
        "table": [vars(row) for row in rows],
        "overhead": [vars(row) for row in overheads],
    }
    write_text(folder / "table.json", json.dumps(document, indent=2))
    if figures:
        unknown = (float("nan"),) * 3
        columns = {RENAMED.get(name, name): [row.cells.get(name, unknown) for row in rows] for name in names_of(rows)}
        draw_table(folder / "table.png", [row.label for row in rows], columns)
        if curves:
            draw_curves(folder / "curves.png", curves, CURVE)
    if has_transcripts(folder):  # not if the entries have callbacks without LogSamples
        write_page([folder], folder / "replay.html", folder.name)
    print(f"written to {folder}")


def find(entry: Entry) -> list[Job]:
    """The evaluations of `entry`, whose files are checked to exist."""
    configs = [entry.config] if isinstance(entry.config, str) else entry.config
    matched = [sorted(glob(config)) for config in configs]
    for config, paths in zip(configs, matched, strict=True):
        if not paths:
            raise ConfigurationError(f"entry {entry.label!r}: there is no configuration {config!r}.")
        if len(paths) > 1 and len(configs) > 1:
            raise ConfigurationError(
                f"entry {entry.label!r}: {config!r} matches {len(paths)} files; a pattern cannot be combined "
                "with other files."
            )
    stacks = [(path,) for path in matched[0]] if len(configs) == 1 else [tuple(paths[0] for paths in matched)]
    jobs = []
    for stack in stacks:
        checkpoint = entry.checkpoint
        if checkpoint in ("last", "best"):
            matches = sorted((Path(stack[-1]).parent / "checkpoints").glob(f"{checkpoint}*.ckpt"))
            if not matches:
                raise ConfigurationError(
                    f"entry {entry.label!r}: there is no {checkpoint} checkpoint beside {stack[-1]}; give its path, or "
                    "null to evaluate the weights before training."
                )
            checkpoint = str(matches[-1])
        elif checkpoint is not None and not Path(checkpoint).is_file():
            raise ConfigurationError(f"entry {entry.label!r}: checkpoint {checkpoint!r} does not exist.")
        jobs.append(Job(entry.label, stack, checkpoint, entry.overrides))
    return jobs


def evaluate(
    job: Job, settings: Mapping[str, Any], folder: Path, timed_episodes: int, default_config: str | None
) -> dict[str, Any]:
    """Validate one entry through the command line; returns the record that `MeasureEpisodes` wrote."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "episodes.json"
    path.unlink(missing_ok=True)
    measure = {
        "class_path": "collm.studies.measure.MeasureEpisodes",
        "init_args": {"path": str(path), "timed_episodes": timed_episodes},
    }
    args = ["validate", "--verbose", "false"]
    for config in job.configs:
        args += ["--config", config]
    for name, content in (("overrides", job.overrides), ("settings", settings)):
        if content:
            write_text(folder / f"{name}.yaml", yaml.safe_dump(dict(content)))
            args += ["--config", str(folder / f"{name}.yaml")]
    args += ["--trainer.default_root_dir", str(folder), "--trainer.callbacks+", json.dumps(measure)]
    if job.checkpoint is not None:
        args += ["--ckpt_path", job.checkpoint]
    if cli.main(default_config, args) or not path.is_file():
        raise ConfigurationError(f"entry {job.label!r} ({', '.join(job.configs)}) could not be evaluated; see above.")
    return json.loads(path.read_text())


def tabulate(records: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Row]:
    """One row per label: response time, costs, return and all metrics of the environment.

    If episodes failed and were dropped, which no other column counts, also their number per run.
    """
    rows = []
    dropped = any(run.get("dropped") for runs in records.values() for run in runs)
    for label, runs in records.items():
        values = {"seconds": [torch.tensor(run["seconds"]) for run in runs]} if runs[0]["seconds"] else {}
        for name in {name: None for run in runs for timed in run.get("timing", ()) for name in timed}:
            values[name] = [torch.tensor([t[name] for t in run["timing"] if name in t]) for run in runs]
        known = {name: None for run in runs for episode in run["episodes"] for name in episode}
        for name in [*(key for key in ("cost", "message_tokens", "wire_bytes") if key in known), *known]:
            values[name] = [torch.tensor([e[name] for e in run["episodes"] if name in e]) for run in runs]
        if dropped:
            values["dropped"] = [torch.tensor([float(run["dropped"])]) for run in runs]
        rows.append(Row(label, len(runs), {name: stratified_interval(column) for name, column in values.items()}))
    return rows


def training(jobs: Sequence[Job]) -> tuple[list[Row], dict[str, list[Any]]]:
    """Training resources and curves of each label, from the logs in the folders of its configurations."""
    folders: dict[str, dict[Path, None]] = {}
    for job in jobs:
        folder = Path(job.configs[-1]).parent
        if job.checkpoint is not None and any(folder.glob("events.out.tfevents.*")):
            folders.setdefault(job.label, {})[folder] = None
    rows, curves = [], {}
    for label, paths in folders.items():
        runs = [read_run(path) for path in paths]
        overheads = [run.overhead() for run in runs]
        names = [name for name in overheads[0] if all(name in overhead for overhead in overheads)]
        columns = {name: [torch.tensor([overhead[name]]) for overhead in overheads] for name in names}
        rows.append(Row(label, len(runs), {name: stratified_interval(column) for name, column in columns.items()}))
        logged = [curve for curve in (run.curve(CURVE) for run in runs) if curve is not None]
        if logged:
            curves[label] = logged
    return rows, curves


def main(default_config: str | Path) -> int:
    """The command."""
    return run_command(compare, default_config=str(default_config))
