"""Rounds of one configuration, measured in this process."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from collm import cli
from collm.benchmark.options import CLOCKS
from collm.runtime.profiler import meter


def measure(known: argparse.Namespace, fit_arguments: Sequence[str], configs: Path) -> int:
    """Measure rounds of one configuration with `fit`, without checkpoints, evaluations and exports."""
    known.out.parent.mkdir(parents=True, exist_ok=True)
    rounds = {
        "path": str(known.out),
        "warmup": known.warmup,
        "floor": not known.no_floor,
        "in_turn": known.in_turn,
    }
    callbacks = [
        {"class_path": "collm.callbacks.resources.LogResources"},
        {"class_path": "collm.benchmark.rounds.Rounds", "init_args": rounds},
    ]
    with tempfile.TemporaryDirectory() as logs:
        overrides = {
            "trainer.callbacks": json.dumps(callbacks),
            "trainer.max_epochs": 1,
            "data.rollouts_per_epoch": known.warmup + known.rounds,
            "trainer.limit_val_batches": 0,
            "trainer.enable_checkpointing": "false",
            "trainer.enable_progress_bar": "false",
            "trainer.enable_model_summary": "false",
            "trainer.logger.init_args.save_dir": logs,
        }
        arguments = ["fit", *fit_arguments, *(f"--{name}={value}" for name, value in overrides.items())]
        num_threads, clock = torch.get_num_threads(), meter.clock
        try:
            torch.set_num_threads(known.threads)
            meter.clock = CLOCKS[known.clock]
            status = cli.main(configs / "base.yaml", arguments)
        finally:
            torch.set_num_threads(num_threads)
            meter.clock = clock
    if status == 0 and not known.in_turn:
        print(as_text(json.loads(known.out.read_text())))
    return status


def as_text(result: Mapping[str, Any]) -> str:
    """The summary of `run` for a terminal."""
    summary = result["summary"]
    floor = summary.get("floor", {"phases": {}})
    lines = [f"{'seconds per round':24}{'here':>10}" + (f"{'floor':>10}" if "seconds" in floor else "")]
    for name, seconds in [*summary["phases"].items(), ("all", summary["seconds"])]:
        under = floor.get("seconds") if name == "all" else floor["phases"].get(name)
        lines.append(f"{name:24}{seconds:10.3f}" + (f"{under:10.3f}" if under is not None else ""))
    if "ratio" in floor:
        low, high = floor["ratio_range"]
        lines.append(f"ratio to the floor {floor['ratio']:.2f} [{low:.2f}, {high:.2f}]")
    lines.append(
        f"{summary['joint_samples_per_hour']:,.0f} joint samples per hour, {summary['tokens_per_second']:,.0f} tokens "
        f"per second ({summary['generated_tokens_per_second']:,.0f} while generating)"
    )
    lines.append(
        "padding " + ", ".join(f"{share:.1%} of {name}" for name, share in summary["padding_share"].items()) + "; "
        f"overhead {summary['overhead_share']:.1%}; peak "
        + ", ".join(f"{value:.2f} ({name})" for name, value in result["memory"].items())
    )
    lines.append(
        f"medians of {summary['num_rounds']} rounds after {result['warmup']} on {result['device']} with "
        f"{result['num_threads']} thread(s), {result['clock']}"
    )
    return "\n".join(lines)
