"""Evaluate agents on held-out tasks: collm validate --config RUN/config.yaml --ckpt_path RUN/checkpoints/last.ckpt"""

from __future__ import annotations

from collm.commands.fit import run


def main() -> int:
    """The command."""
    return run("validate")
