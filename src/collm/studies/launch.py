"""Parallel training runs, each started as by the training command and resumed from its last checkpoint.

Every run is a forked process that executes the script of the training command. Forking saves the imports, which take
longer than some runs of a tiny model.
"""

from __future__ import annotations

import gc
import hashlib
import json
import multiprocessing
import os
import re
import runpy
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import yaml

from collm.errors import ConfigurationError, TrainingError
from collm.runtime.files import present, write_text

REPORT_SECONDS = 60.0


@dataclass
class Method:
    """One method of a study.

    Args:
        configs: Configurations that are applied after those of the study.
        overrides: Settings that are applied after them, nested as in a configuration file.
        candidates: Alternative settings, applied last, from which tuning chooses one.
    """

    configs: list[str] = field(default_factory=list)
    overrides: dict = field(default_factory=dict)
    candidates: list[dict] = field(default_factory=list)


@dataclass
class Cell:
    """A setting in which methods are trained.

    Args:
        configs: Configurations that are applied after those of the study.
        overrides: Settings that are applied after them, nested as in a configuration file.
        methods: Labels of the methods that are trained in this cell; by default all.
    """

    configs: list[str] = field(default_factory=list)
    overrides: dict = field(default_factory=dict)
    methods: list[str] = field(default_factory=list)


@dataclass
class Run:
    """One training run of a study.

    Args:
        label: Label of the method.
        seed: Random seed.
        folder: Output folder; it contains `finished.json` when the run is finished.
        configs: Configurations in the order in which they are applied.
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
        """Whether the folder contains a run that was started with other settings."""
        path = self.folder / "settings.sha256"
        return path.is_file() and path.read_text() != self.fingerprint()

    def fingerprint(self) -> str:
        """A hash of all settings of the run."""
        contents = [Path(config).read_text() for config in self.configs]
        return hashlib.sha256(json.dumps([self.seed, *contents]).encode()).hexdigest()

    def start(self, script: str, num_threads: int) -> BaseProcess:
        """Start the run, or resume it from its last checkpoint."""
        logger = {
            "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
            "init_args": {
                "save_dir": str(self.folder.parent.parent),
                "name": self.folder.parent.name,
                "version": self.folder.name,
                "default_hp_metric": False,
            },
        }
        args = ["fit"]
        for config in self.configs:
            args += ["--config", config]
        args += ["--seed_everything", str(self.seed), "--trainer.logger", json.dumps(logger)]
        args += ["--trainer.callbacks+", "collm.callbacks.finished.MarkFinished"]
        checkpoint = self.folder / "checkpoints" / "last.ckpt"
        if present(checkpoint).exists():
            args += ["--ckpt_path", str(checkpoint)]
        self.folder.mkdir(parents=True, exist_ok=True)
        gc.freeze()  # so that garbage collection in the runs skips imported objects
        write_text(self.folder / "settings.sha256", self.fingerprint())
        process = multiprocessing.get_context("fork").Process(
            target=execute, args=(script, args, self.folder / "log.txt", num_threads)
        )
        process.start()
        return process

    def last_line(self) -> str:
        """The last line of the run's log."""
        path = self.folder / "log.txt"
        lines = re.split(r"[\r\n]+", path.read_text(errors="replace")[-2000:]) if path.is_file() else []
        lines = [line for line in lines if line.strip()]
        return lines[-1].strip() if lines else ""


def stacked(label: str, shared: Sequence[str], method: Method | Cell, path: Path | None) -> list[str]:
    """Configurations of a method or a cell; its overrides are written to `path`."""
    stack = [*shared, *method.configs]
    if method.overrides and path is not None:
        stack.append(write(path, method.overrides))
    missing = [config for config in stack if not Path(config).is_file()]
    if missing:
        raise ConfigurationError(f"{label!r}: there is no configuration {missing[0]!r}.")
    return stack


def write(path: Path, settings: dict) -> str:
    """Write `settings` to a configuration file; returns its path."""
    write_text(path, yaml.safe_dump(settings))
    return str(path)


def refuse_other_settings(runs: Sequence[Run]) -> None:
    """Refuse to resume runs that were started with other settings."""
    for run in runs:
        if run.has_other_settings():
            raise ConfigurationError(
                f"{run.folder} contains a run with other settings than those of {run.label!r} now; remove it, or give "
                "the study another `out`."
            )


def homes_of(labels: Iterable[str]) -> dict[str, str]:
    """Folder names by label; refuses labels with the same folder name, and equal ones."""
    homes = [(label, re.sub(r"\W+", "_", label).strip("_")) for label in labels]
    counts = Counter(home for _, home in homes)
    if unusable := [label for label, home in homes if not home or counts[home] > 1]:
        raise ConfigurationError(f"the labels {', '.join(unusable)} must differ in their letters and digits.")
    return dict(homes)


def nested(setting: str, value: Any) -> dict:
    """The setting `a.b.c` with its value as nested dictionaries."""
    for name in reversed(setting.split(".")):
        value = {name: value}
    return value


def train(runs: Sequence[Run], jobs: int, script: str) -> None:
    """Run all unfinished runs, `jobs` at a time; a failed run does not stop the others.

    Raises:
        TrainingError: Some runs failed; the message names their logs.
    """
    waiting = [run for run in runs if not run.finished]
    total, failed = len(runs), []
    print(f"{total - len(waiting)} of {total} runs are finished, {jobs} at a time", flush=True)
    running: dict[int, tuple[Run, BaseProcess]] = {}
    began = reported = time.monotonic()
    to_do = len(waiting)
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                running[id(run)] = (run, run.start(script, threads_of_each(jobs)))
                print(f"{run.name}: started, log in {run.folder / 'log.txt'}", flush=True)
            time.sleep(0.2)
            for key, (run, process) in list(running.items()):
                if process.is_alive():
                    continue
                del running[key]
                if not run.finished:  # whatever the status: a run that receives a signal exits without an error
                    failed.append(run)
                state = "finished" if run.finished else f"stopped with status {process.exitcode}"
                left = len(waiting) + len(running)
                spent = (time.monotonic() - began) / 60
                remaining = spent / (to_do - left) * left
                print(f"{run.name}: {state}, {left} left, about {remaining:.0f} minutes", flush=True)
            if time.monotonic() - reported > REPORT_SECONDS:
                reported = time.monotonic()
                for run, _ in running.values():
                    print(f"{run.name}: {run.last_line()}", flush=True)
    finally:
        for _, process in running.values():
            process.terminate()
            process.join()
    if failed:
        logs = ", ".join(str(run.folder / "log.txt") for run in failed)
        raise TrainingError(
            f"{len(failed)} of {total} runs did not finish; see {logs}. The same command repeats only these."
        )


def threads_of_each(jobs: int) -> int:
    """Threads of each of `jobs` runs: OMP_NUM_THREADS if it is set, else an equal share of the cores."""
    if (number := os.environ.get("OMP_NUM_THREADS", "")).isdigit():
        return max(1, int(number))
    return max(1, (os.cpu_count() or 1) // jobs)


def execute(script: str, args: Sequence[str], log: Path, num_threads: int) -> None:
    """Run the file `script` with `args` in this forked process; its output goes to `log`."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.stdout = sys.stderr = log.open("a", buffering=1)
    for descriptor in (1, 2):  # output of C libraries
        os.dup2(sys.stdout.fileno(), descriptor)
    import torch
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())  # the inherited lock is shared, and a killed run may still hold it
    torch.set_num_threads(num_threads)
    os.environ["OMP_NUM_THREADS"] = str(num_threads)
    sys.argv = [script, *args]
    runpy.run_path(script, run_name="__main__")
