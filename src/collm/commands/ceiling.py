"""Measure how much of the return can be known at each turn: collm ceiling --config FILE --out DIR"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from collm.commands import BASE


def main(args: Sequence[str] | None = None) -> int:
    """The command; arguments that it does not know are those of the training command."""
    parser = argparse.ArgumentParser(
        description="How much of the return can be known before a turn is played, and how much of that a critic knows. "
        "All other arguments are those of `fit`."
    )
    parser.add_argument("--out", required=True, help="folder to write to")
    parser.add_argument("--policies", help="checkpoint whose policies are taken")
    for name, default in (("tasks", 64), ("episodes", 4), ("continuations", 2), ("fit_rollouts", 8)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"see MeasureCeiling; {default} by default")
    given, training = parser.parse_known_args(args)
    callback = {"class_path": "collm.studies.ceiling.MeasureCeiling", "init_args": vars(given)}
    settings = {
        "trainer.callbacks": json.dumps([callback]),
        "trainer.logger": "false",
        "trainer.default_root_dir": given.out,
        "trainer.limit_val_batches": "0",
        "trainer.enable_checkpointing": "false",
        "trainer.enable_progress_bar": "false",
        "trainer.enable_model_summary": "false",
        "trainer.max_epochs": "1",
        "data.rollouts_per_epoch": str(given.fit_rollouts),
    }
    from collm import cli

    return cli.main(BASE, ["fit", *training, *(f"--{name}={value}" for name, value in settings.items())])
