"""Training runs side by side, each an ordinary one of the training command, resumed where it stopped.

Every run is a process forked from one that has imported the package already, in which the training command's file is
run as it would be from a shell: the imports take longer than many a run of a tiny model.
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
        configs: Configurations that are stacked on those of the study.
        overrides: Settings on top of them, nested as in a configuration file.
        candidates: Settings on top of those, from which tuning chooses one.
    """

    configs: list[str] = field(default_factory=list)
    overrides: dict = field(default_factory=dict)
    candidates: list[dict] = field(default_factory=list)


@dataclass
class Cell:
    """A setting in which methods are trained.

    Args:
        configs: Configurations that are stacked on those of the study.
        overrides: Settings on top of them, nested as in a configuration file.
        methods: Labels of the methods that are trained in it; by default all.
    """

    configs: list[str] = field(default_factory=list)
    overrides: dict = field(default_factory=dict)
    methods: list[str] = field(default_factory=list)


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

    def start(self, script: str, num_threads: int) -> BaseProcess:
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
        args = ["fit"]
        for config in self.configs:
            args += ["--config", config]
        args += ["--seed_everything", str(self.seed), "--trainer.logger", json.dumps(logger)]
        args += ["--trainer.callbacks+", "collm.callbacks.finished.MarkFinished"]
        checkpoint = self.folder / "checkpoints" / "last.ckpt"
        if present(checkpoint).exists():
            args += ["--ckpt_path", str(checkpoint)]
        self.folder.mkdir(parents=True, exist_ok=True)
        gc.freeze()  # what is imported stays, so no run need look through it again and again
        write_text(self.folder / "settings.sha256", self.fingerprint())
        process = multiprocessing.get_context("fork").Process(
            target=execute, args=(script, args, self.folder / "log.txt", num_threads)
        )
        process.start()
        return process

    def last_line(self) -> str:
        """Where the run stands, in its own words."""
        path = self.folder / "log.txt"
        lines = re.split(r"[\r\n]+", path.read_text(errors="replace")[-2000:]) if path.is_file() else []
        told = [line for line in lines if line.strip()]
        return told[-1].strip() if told else ""


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
    """Write `settings` as a configuration file; its name."""
    write_text(path, yaml.safe_dump(settings))
    return str(path)


def refuse_other_settings(runs: Sequence[Run]) -> None:
    """Refuse to go on with runs that were begun with other settings."""
    for run in runs:
        if run.has_other_settings():
            raise ConfigurationError(
                f"{run.folder} holds a run with other settings than those of {run.label!r} now; remove it, or give the "
                "study another `out`."
            )


def home_of(label: str) -> str:
    """The name of a folder for what is called `label`."""
    return re.sub(r"\W+", "_", label).strip("_")


def homes_of(labels: Iterable[str]) -> dict[str, str]:
    """Names of folders by label, all different."""
    homes = {label: home_of(label) for label in labels}
    if len(set(homes.values())) < len(homes) or not all(homes.values()):
        raise ConfigurationError(f"the labels {', '.join(homes)} must differ in their letters and digits.")
    return homes


def nested(setting: str, value: Any) -> dict:
    """`a.b.c` and a value as nested settings."""
    for name in reversed(setting.split(".")):
        value = {name: value}
    return value


def train(runs: Sequence[Run], jobs: int, script: str) -> None:
    """Do all runs that are not finished, `jobs` at a time; one that fails stops none of the others.

    Raises:
        TrainingError: Some failed; names their logs.
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
                if not run.finished:  # whatever the status: a run that is asked to stop exits without an error
                    failed.append(run)
                told = "finished" if run.finished else f"stopped with status {process.exitcode}"
                left = len(waiting) + len(running)
                spent = (time.monotonic() - began) / 60
                rest = spent / (to_do - left) * left
                print(f"{run.name}: {told}, {left} left, about {rest:.0f} minutes", flush=True)
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
            f"{len(failed)} of {total} runs did not finish; see {logs}. The same command tries only them again."
        )


def threads_of_each(jobs: int) -> int:
    """Threads of each of `jobs` runs: what OMP_NUM_THREADS says, or an equal share of the cores."""
    if (given := os.environ.get("OMP_NUM_THREADS", "")).isdigit():
        return max(1, int(given))
    return max(1, (os.cpu_count() or 1) // jobs)


def execute(script: str, args: Sequence[str], log: Path, num_threads: int) -> None:
    """Run the file `script` with `args` in this process, which is to end with it; all it prints goes to `log`."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sys.stdout = sys.stderr = log.open("a", buffering=1)
    for descriptor in (1, 2):  # what is printed below Python
        os.dup2(sys.stdout.fileno(), descriptor)
    import torch
    from tqdm import tqdm

    tqdm.set_lock(threading.RLock())  # the one from before the fork is shared: a run killed while drawing would keep it
    torch.set_num_threads(num_threads)
    os.environ["OMP_NUM_THREADS"] = str(num_threads)
    sys.argv = [script, *args]
    runpy.run_path(script, run_name="__main__")
