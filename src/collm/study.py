"""Many runs that belong together: methods by seeds, side by side, resumed where they stopped, compared at the end."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from jsonargparse import auto_cli

from collm.comparison import Entry, compare
from collm.errors import ConfigurationError, TrainingError

REPORT_SECONDS = 60.0
_OF_COMPARE = set(inspect.signature(compare).parameters) - {"entries", "out", "default_config"}


@dataclass
class Method:
    """One method of a study.

    Args:
        configs: Configurations that are stacked on those of the study.
        overrides: Settings on top of them, nested as in a configuration file.
    """

    configs: list[str] = field(default_factory=list)
    overrides: dict = field(default_factory=dict)


@dataclass
class Run:
    """One training run of a study.

    Args:
        label: Its method.
        seed: Its seed.
        folder: Where it leaves everything; it is finished when `finished.json` is there.
        configs: Configurations in the order in which they are stacked.
    """

    label: str
    seed: int
    folder: Path
    configs: list[str]

    @property
    def name(self) -> str:
        return f"{self.label}, seed {self.seed}"

    @property
    def finished(self) -> bool:
        """Whether training has reached its end."""
        return (self.folder / "finished.json").is_file()

    def has_other_settings(self) -> bool:
        """Whether the folder holds a run that was begun with other settings."""
        path = self.folder / "settings.sha256"
        return path.is_file() and path.read_text() != self.fingerprint()

    def fingerprint(self) -> str:
        """A hash of all settings of the run."""
        contents = [Path(config).read_text() for config in self.configs]
        return hashlib.sha256(json.dumps([self.seed, *contents]).encode()).hexdigest()

    def start(self, script: str, num_threads: int) -> subprocess.Popen[bytes]:
        """Begin the run, or go on where its last checkpoint is."""
        logger = {
            "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
            "init_args": {
                "save_dir": str(self.folder.parent.parent),
                "name": self.folder.parent.name,
                "version": self.folder.name,
                "default_hp_metric": False,
            },
        }
        command = [sys.executable, script, "fit"]
        for config in self.configs:
            command += ["--config", config]
        command += ["--seed_everything", str(self.seed), "--trainer.logger", json.dumps(logger)]
        command += ["--trainer.callbacks+", "collm.callbacks.finished.MarkFinished"]
        checkpoint = self.folder / "checkpoints" / "last.ckpt"
        if checkpoint.is_file():
            command += ["--ckpt_path", str(checkpoint)]
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "settings.sha256").write_text(self.fingerprint())
        environment = {**os.environ, "OMP_NUM_THREADS": str(num_threads)}
        with (self.folder / "log.txt").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment)

    def last_line(self) -> str:
        """Where the run stands, in its own words."""
        path = self.folder / "log.txt"
        lines = re.split(r"[\r\n]+", path.read_text(errors="replace")[-2000:]) if path.is_file() else []
        told = [line for line in lines if line.strip()]
        return told[-1].strip() if told else ""


def study(
    configs: list[str],
    methods: dict[str, Method],
    out: str,
    seeds: tuple[int, ...] = (0, 1, 2),
    untrained: dict[str, Method] | None = None,
    overrides: dict | None = None,
    jobs: int = 1,
    comparison: dict | None = None,
    script: str = "tools/fit.py",
    default_config: str | None = None,
) -> None:
    """Train every method with every seed, then compare them with each other and with untrained protocols.

    What is finished is skipped and what was interrupted goes on from its last checkpoint, so that the same command can
    be given again at any time. The runs lie in <out>/<method>/seed_<seed>, the comparison in <out>/comparison.

    Args:
        configs: Configurations that all methods share.
        methods: What is trained, by label.
        out: Folder of the study.
        seeds: Seeds of every method.
        untrained: What is compared besides, with the weights as they are before training; by label.
        overrides: Settings of all methods on top of `configs`, nested as in a configuration file.
        jobs: Runs side by side; they share the processor's cores.
        comparison: Arguments of the comparison, such as `episodes_per_task`.
        script: The training command.
        default_config: Configuration that is read before all others.
    """
    untrained, comparison = untrained or {}, comparison or {}
    if jobs < 1:
        raise ConfigurationError(f"jobs is {jobs}; it must be at least 1.")
    if not methods or not seeds:
        raise ConfigurationError("a study needs at least one method and one seed.")
    if unknown := sorted(set(comparison) - _OF_COMPARE):
        raise ConfigurationError(
            f"comparison has no setting {unknown[0]!r}; there are {', '.join(sorted(_OF_COMPARE))}."
        )
    homes = {label: re.sub(r"\W+", "_", label).strip("_") for label in methods}
    if len(set(homes.values())) < len(homes) or not all(homes.values()):
        raise ConfigurationError(f"the labels {', '.join(methods)} must differ in their letters and digits.")
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    shared = [*configs, write(folder / "overrides.yaml", overrides)] if overrides else list(configs)
    runs, entries = [], []
    for label, method in methods.items():
        home = folder / homes[label]
        stack = stacked(label, shared, method, home / "overrides.yaml")
        for seed in seeds:
            runs.append(Run(label, seed, home / f"seed_{seed}", stack))
            entries.append(Entry(label, str(runs[-1].folder / "config.yaml"), "last"))
    for label, method in untrained.items():
        stack = stacked(label, shared, Method(method.configs), None)
        entries.append(Entry(label, stack, None, method.overrides))
    for run in runs:
        if run.has_other_settings():
            raise ConfigurationError(
                f"{run.folder} holds a run with other settings than those of {run.label!r} now; remove it, or give the "
                "study another `out`."
            )
    train(runs, jobs, script)
    compare(entries, str(folder / "comparison"), default_config=default_config, **comparison)


def stacked(label: str, shared: Sequence[str], method: Method, path: Path | None) -> list[str]:
    """Configurations of a method; its overrides are written to `path`."""
    stack = [*shared, *method.configs]
    if method.overrides and path is not None:
        stack.append(write(path, method.overrides))
    missing = [config for config in stack if not Path(config).is_file()]
    if missing:
        raise ConfigurationError(f"method {label!r}: there is no configuration {missing[0]!r}.")
    return stack


def write(path: Path, settings: dict) -> str:
    """Write `settings` as a configuration file; its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(settings))
    return str(path)


def train(runs: Sequence[Run], jobs: int, script: str) -> None:
    """Do all runs that are not finished, `jobs` at a time; one that fails stops none of the others.

    Raises:
        TrainingError: Some failed; names their logs.
    """
    waiting = [run for run in runs if not run.finished]
    total, failed = len(runs), []
    print(f"{total - len(waiting)} of {total} runs are finished, {jobs} at a time", flush=True)
    running: dict[int, tuple[Run, subprocess.Popen[bytes]]] = {}
    reported = time.monotonic()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                running[id(run)] = (run, run.start(script, max(1, (os.cpu_count() or 1) // jobs)))
                print(f"{run.name}: started, log in {run.folder / 'log.txt'}", flush=True)
            time.sleep(0.2)
            for key, (run, process) in list(running.items()):
                status = process.poll()
                if status is None:
                    continue
                del running[key]
                if not run.finished:  # whatever the status: a run that is asked to stop exits without an error
                    failed.append(run)
                told = "finished" if run.finished else f"stopped with status {status}"
                print(f"{run.name}: {told}, {len(waiting) + len(running)} left", flush=True)
            if time.monotonic() - reported > REPORT_SECONDS:
                reported = time.monotonic()
                for run, _ in running.values():
                    print(f"{run.name}: {run.last_line()}", flush=True)
    finally:
        for _, process in running.values():
            process.terminate()
            process.wait()
    if failed:
        logs = ", ".join(str(run.folder / "log.txt") for run in failed)
        raise TrainingError(
            f"{len(failed)} of {total} runs did not finish; see {logs}. The same command tries only them again."
        )


def main(script: str | Path, default_config: str | Path) -> int:
    """Read the command line and do the study; the exit status is 0, 1 if runs failed, 2 for mistaken settings."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # however it is stopped, no run is left behind
    try:
        defaults = {"script": str(script), "default_config": str(default_config)}
        auto_cli(study, as_positional=False, set_defaults=defaults)
    except (ConfigurationError, TrainingError) as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1 if isinstance(error, TrainingError) else 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0
