"""The table of the README: ratios of the project to the floor, to other libraries, and of one workload to another.

Each is measured in processes of its own and kept in a JSON file.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from collm.benchmark.cells import PROMPT_WORDS, Cell, Work, cells, chosen
from collm.benchmark.options import CLOCKS, PEERS
from collm.benchmark.rounds import overhead_share
from collm.benchmark.sides import Side, alternate, ratio
from collm.benchmark.tiny_model import build_benchmark_model
from collm.data import RolloutDataModule
from collm.environments.workload import CONTINUATION, Workload
from collm.errors import TrainingError
from collm.models.loading import resolve_path
from collm.models.policy import make_dialogue
from collm.models.policy_spec import PolicySpec
from collm.runtime.files import write_text
from collm.trajectory import Action


class Suite:
    """The ratios of the table, each measured in separate processes."""

    def __init__(self, script: Path, configs: Path, known: argparse.Namespace):
        self.script = script
        self.configs = configs
        self.known = known
        self.out: Path = known.out

    def measure(self) -> bool:
        """Measure the chosen ratios that have no result yet, then write and print the table of all results.

        Returns:
            Whether all measurements succeeded.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        tiny = self.out / "tiny_model"
        if not (tiny / "config.json").is_file():
            build_benchmark_model(tiny)
        pin()
        all_cells, complete = cells(), True
        for cell in chosen(all_cells, self.known.only):
            path = self.path(cell)
            peer = cell.against.partition(":")[0]
            if path.is_file() or (cell.of_peer and not getattr(self.known, peer)):
                continue
            try:
                result = {"name": cell.name, "target": cell.target, "clock": self.known.clock, **self.result(cell)}
            except TrainingError as error:  # continue with the other ratios
                print(f"\nerror: {cell.name}: {error}", file=sys.stderr, flush=True)
                complete = False
                continue
            write_text(path, json.dumps(result, indent=1))
            print(row(cell, result), flush=True)
        measured = {cell: json.loads(self.path(cell).read_text()) for cell in all_cells if self.path(cell).is_file()}
        text = table_of(measured)
        write_text(self.out / "table.md", text)
        print("\n" + text)
        return complete

    def path(self, cell: Cell) -> Path:
        """File with the result of a cell."""
        return self.out / (cell.name.replace("/", "_").replace(", ", "_").replace(" ", "-") + ".json")

    def result(self, cell: Cell) -> dict[str, Any]:
        """Measure one cell."""
        kinds = {"floor": self.against_floor, "overhead": self.overhead, "memory": self.memory}
        return {
            **kinds.get(cell.against, self.in_turn)(cell),
            "command": shlex.join(self.command(cell.work, floor=cell.against == "floor")),
        }

    def against_floor(self, cell: Cell) -> dict[str, Any]:
        """Seconds of a round divided by those of the floor, in one process."""
        run = self.run(cell.work, floor=True)
        floor = run["summary"]["floor"]
        return {"ratio": floor["ratio"], "range": floor["ratio_range"], "num_rounds": self.known.rounds, "runs": [run]}

    def overhead(self, cell: Cell) -> dict[str, Any]:
        """Share of a round outside of model calls, from the floor measurement of the same workload if there is one."""
        (same,) = [other for other in cells() if other.against == "floor" and other.work == cell.work]
        measured = self.path(same).is_file()
        run = json.loads(self.path(same).read_text())["runs"][0] if measured else self.run(cell.work, floor=False)
        shares = [overhead_share(measurement) for measurement in run["rounds"][run["warmup"] :]]
        share = statistics.median(shares)
        return {"ratio": share, "range": [min(shares), max(shares)], "num_rounds": len(shares)}

    def memory(self, cell: Cell) -> dict[str, Any]:
        """Peak memory of one process divided by that of another; it hardly varies, so one round is enough."""
        runs = [self.run(work, floor=False) for work in (cell.work, cell.other) if work is not None]
        peak, other = (run["memory"]["peak_rss_gb"] for run in runs)
        return {"ratio": peak / other, "range": [peak / other, peak / other], "num_rounds": 1, "runs": runs}

    def in_turn(self, cell: Cell) -> dict[str, Any]:
        """Time of a peer divided by the time of this project, or of one workload divided by another."""
        with tempfile.TemporaryDirectory() as folder:
            sides = {"here": Side("this project", self.command(cell.work, False, Path(folder) / "here.json", True))}
            if cell.other is None:
                sides["other"] = self.peer(cell)
            else:
                command = self.command(cell.other, False, Path(folder) / "other.json", True)
                sides["other"] = Side("this project", command)
            rounds = alternate(sides, self.known.rounds, self.known.warmup)
        here, other = ([measured[cell.quantity] for measured in rounds[name]] for name in ("here", "other"))
        numbers = ratio(other, here) if cell.of_peer else ratio(here, other)
        return {**numbers, "rounds": rounds}

    def model(self, work: Work) -> str:
        """Path of the model of `work`."""
        return str((self.out / "tiny_model").absolute()) if work.model == "tiny" else resolve_path(work.model)

    def command(self, work: Work, floor: bool, out: Path | None = None, in_turn: bool = False) -> list[str]:
        """The command that starts one process of this project."""
        options = [f"--rounds={self.known.rounds}", f"--warmup={self.known.warmup}", f"--clock={self.known.clock}"]
        options += [f"--out={out}"] if out else []
        options += ([] if floor else ["--no-floor"]) + (["--in-turn"] if in_turn else [])
        arguments = work.arguments(self.configs, self.model(work))
        return [sys.executable, str(self.script), "run", *options, *arguments, "--trainer.accelerator=cpu"]

    def run(self, work: Work, floor: bool) -> dict[str, Any]:
        """Measure one workload in a separate process."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "result.json"
            command = self.command(work, floor, path)
            done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
            if done.returncode:
                raise TrainingError(f"{shlex.join(command)} ended with status {done.returncode}: {done.stderr[-3000:]}")
            return json.loads(path.read_text())

    def peer(self, cell: Cell) -> Side:
        """A process of the peer with the same model, prompts and numbers of tokens."""
        peer, _, algorithm = cell.against.partition(":")
        work, path = cell.work, self.model(cell.work)
        dialogue: Any = make_dialogue(PolicySpec(path=path, max_new_tokens=work.new_tokens))
        environment = Workload(work.agents, work.turns, PROMPT_WORDS[work.model])
        data = RolloutDataModule(environment, tasks_per_rollout=work.tasks)
        num_rounds = self.known.rounds + self.known.warmup
        end = "" if dialogue.use_template else "\n"  # the word-level tokenizer drops it

        def texts(task: Any) -> list[str]:
            _, observations = environment.reset(task, random.Random(0))
            return [dialogue.tokenizer.decode(dialogue.opening(text)) + end for text in observations.values()]

        description = {
            "model": path,
            "algorithm": algorithm,
            "agents": work.agents,
            "turns": work.turns,
            "generations": work.generations,
            "new_tokens": work.new_tokens,
            "clock": CLOCKS[self.known.clock].__name__,
            "pad_token": "<|endoftext|>" if work.model == "smollm2" else None,  # not its end-of-turn token
            "prompts": [[texts(task) for task in data.tasks_of(index)] for index in range(num_rounds)],
            "bridge": dialogue.tokenizer.decode(dialogue.bridge(CONTINUATION, Action("", truncated=True))) + end,
        }
        script = Path(__file__).with_name(PEERS[peer])
        return Side(peer, [getattr(self.known, peer), str(script)], json.dumps(description))


def pin() -> None:
    """Pin this process and its child processes to one core, if the system supports it."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def row(cell: Cell, result: Mapping[str, Any]) -> str:
    """One line of the table."""
    low, high = result["range"]
    sign, reached = ("≥", result["ratio"] >= cell.target) if cell.of_peer else ("≤", result["ratio"] <= cell.target)
    group, _, name = cell.name.partition("/")
    return (
        f"| {group} | {name} | {result['ratio']:.2f} [{low:.2f}, {high:.2f}] | {result['num_rounds']} | "
        f"{sign} {cell.target:g} | {'yes' if reached else 'no'} |"
    )


def table_of(measured: Mapping[Cell, Mapping[str, Any]]) -> str:
    """The table in Markdown."""
    head = ["| against | what | ratio | rounds | target | reached |", "|---|---|---|---|---|---|"]
    return "\n".join([*head, *(row(cell, result) for cell, result in measured.items())]) + "\n"
