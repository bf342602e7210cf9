"""Benchmarks: any configuration against the floor, and the table of the README.

    python tools/bench.py run --config configs/experiments/str_build_tiny.yaml
    python tools/bench.py table --out bench [--comlrl PYTHON] [--trl PYTHON] [--only floor/tiny growth]
    python tools/bench.py scaling --processes 2 --tasks 8 --config configs/experiments/tldr_smollm2.yaml
    python tools/bench.py gpu --out bench_gpu
    python tools/bench.py engines --out bench

`run` takes the arguments of `fit` and measures rounds of one rollout and one update. `table` measures each ratio in
separate processes and writes a JSON file for it; existing files are not measured again. Ratios to other libraries need
the Python interpreter of an environment in which the library is installed. `scaling` compares several processes with
one, with one thread and equally many tasks for each; it needs as many cores. `gpu` measures a GPU and the performance
of a model with the shape of Qwen3-1.7B on it, in five minutes. `engines` compares the engines that generate.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from collm.benchmark import engines, gpu
from collm.benchmark.measure import CLOCKS, measure
from collm.benchmark.scaling import measure_scaling
from collm.benchmark.suite import PEERS, Suite
from collm.errors import ConfigurationError


def main(script: Path, configs: Path, args: Sequence[str] | None = None) -> int:
    """The command line; the exit status is 0, 1 for a run that failed, 2 for a mistake in the settings.

    Args:
        script: The script that calls this function; it is started for each measured process.
        configs: Folder of configurations.
        args: Arguments that replace those of the process.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure one configuration; all other arguments are those of fit")
    run.add_argument("--no-floor", action="store_true", help="do not measure the floor for comparison")
    run.add_argument("--in-turn", action="store_true", help="wait for a line on standard input before every round")
    run.add_argument("--threads", type=int, default=1, help="threads of the computation (1)")
    table = commands.add_parser("table", help="measure all ratios of the README, with one thread on one core")
    table.add_argument("--only", nargs="*", default=[], help="prefixes of the names of the ratios to measure")
    for peer in PEERS:
        table.add_argument(f"--{peer}", metavar="PYTHON", help=f"interpreter of an environment with {peer}")
    scaling = commands.add_parser("scaling", help="several processes against one; all other arguments are those of fit")
    scaling.add_argument("--processes", type=int, default=2, help="processes with one thread each (2)")
    scaling.add_argument("--tasks", type=int, default=8, help="tasks per rollout of each process (8)")
    card = commands.add_parser("gpu", help="performance of a GPU and the share that a run reaches, with random weights")
    gpu.add_arguments(card)
    side_by_side = commands.add_parser("engines", help="the engines that generate, in whole iterations")
    engines.add_arguments(side_by_side)
    for command, out in ((run, "bench.json"), (table, "bench")):
        command.add_argument("--out", type=Path, default=Path(out), help=f"where results are written ({out})")
    for command in (run, table, scaling):
        command.add_argument("--rounds", type=int, default=5, help="measured rounds (5)")
        command.add_argument("--warmup", type=int, default=1, help="rounds before them (1)")
    for command in (run, table):
        command.add_argument(
            "--clock",
            choices=list(CLOCKS),
            default="wall",
            help="wall time or CPU time (wall); CPU time is more reliable on a shared machine",
        )
    known, rest = parser.parse_known_args(args)
    if known.command in ("gpu", "engines"):
        if rest:
            parser.error(f"unknown arguments: {' '.join(rest)}")
        return gpu.measure_gpu(known) if known.command == "gpu" else engines.measure_engines(known)
    if known.rounds < 1 or known.warmup < 0:
        parser.error("--rounds must be at least 1 and --warmup at least 0")
    if known.command == "run":
        return measure(known, rest, configs)
    if known.command == "scaling":
        print(measure_scaling(script, rest, known.processes, known.tasks, known.rounds, known.warmup))
        return 0
    if rest:
        parser.error(f"unknown arguments: {' '.join(rest)}")
    try:
        return 0 if Suite(script, configs, known).measure() else 1
    except ConfigurationError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 2
