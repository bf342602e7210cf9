"""Benchmarks: any configuration against the floor, and the table of the README; `options` says how they are called."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from collm.benchmark.options import bench_parser
from collm.errors import ConfigurationError, TrainingError, shortened


def main(script: Path, configs: Path, args: Sequence[str] | None = None) -> int:
    """The command line; the exit status is 0, 1 for a run that failed, 2 for a mistake in the settings.

    Args:
        script: The script that calls this function; it is started for each measured process.
        configs: Folder of configurations.
        args: Arguments that replace those of the process.
    """
    parser = bench_parser()
    known, rest = parser.parse_known_args(args)
    if rest and known.command not in ("run", "scaling"):
        parser.error(f"unknown arguments: {' '.join(rest)}")
    if known.command not in ("gpu", "engines") and (known.rounds < 1 or known.warmup < 0):
        parser.error("--rounds must be at least 1 and --warmup at least 0")
    try:
        return measured(known, rest, script, configs)
    except (ConfigurationError, TrainingError) as error:
        print(f"\nerror: {shortened(str(error))}", file=sys.stderr)
        return 1 if isinstance(error, TrainingError) else 2


def measured(known: argparse.Namespace, rest: Sequence[str], script: Path, configs: Path) -> int:
    """Make the measurements of a command, with what else `fit` is given; returns the exit status."""
    if known.command == "gpu":
        from collm.benchmark.gpu import measure_gpu

        return measure_gpu(known)
    if known.command == "engines":
        from collm.benchmark.engines import measure_engines

        return measure_engines(known)
    if known.command == "run":
        from collm.benchmark.measure import measure

        return measure(known, rest, configs)
    if known.command == "scaling":
        from collm.benchmark.scaling import measure_scaling

        print(measure_scaling(script, rest, known.processes, known.tasks, known.rounds, known.warmup))
        return 0
    from collm.benchmark.suite import Suite

    return 0 if Suite(script, configs, known).measure() else 1
