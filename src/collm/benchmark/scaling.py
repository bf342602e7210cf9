"""Weak scaling: the throughput of several processes relative to one process, with equal work for each process.

Both runs are measured alternately, so that slow periods of the machine affect both; while one runs the other waits.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from collm.benchmark.sides import Side, alternate, ratio


def measure_scaling(
    script: Path, fit_arguments: Sequence[str], processes: int, tasks: int, rounds: int, warmup: int
) -> str:
    """Measure the throughput of several processes relative to one; returns a text for the terminal.

    Args:
        script: The script of the benchmark.
        fit_arguments: Arguments of `fit`, without the number of tasks of a rollout.
        processes: Number of processes; the strategy is `ddp` unless the arguments set another one.
        tasks: Tasks per rollout of each process.
        rounds: Number of measured rounds of one rollout and one update.
        warmup: Number of rounds before them.
    """
    counts = {"one": 1, "all": processes}
    with tempfile.TemporaryDirectory() as folder:
        sides = {}
        for name, count in counts.items():
            options = ["--no-floor", "--in-turn", f"--rounds={rounds}", f"--warmup={warmup}"]
            options += [f"--out={folder}/{name}.json"]
            scale = [f"--data.tasks_per_rollout={count * tasks}", f"--trainer.devices={count}"]
            strategy = ["--trainer.strategy=ddp"] if count > 1 else ["--trainer.strategy=auto"]
            command = [sys.executable, str(script), "run", *options, *strategy, *fit_arguments, *scale]
            sides[name] = Side(f"the run of {count}", command)
        measured = alternate(sides, rounds, warmup)
    speeds = {name: [one["joint_samples"] / one["seconds"] for one in measured[name]] for name in counts}
    numbers = ratio(speeds["all"], speeds["one"])
    low, high = numbers["range"]
    lines = [f"{'seconds per round':24}{'1 process':>12}{f'{processes} processes':>14}"]
    for phase in measured["one"][0]["phases"]:
        cells = [statistics.median(one["phases"].get(phase, 0.0) for one in measured[name]) for name in counts]
        lines.append(f"{phase:24}{cells[0]:12.3f}{cells[1]:14.3f}")
    lines += [f"joint samples per second: {numbers['ratio']:.2f} times those of one process [{low:.2f}, {high:.2f}]"]
    return "\n".join([*lines, f"medians and range of {rounds} rounds after {warmup}"])
