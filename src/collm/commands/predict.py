"""Play held-out tasks and keep the episodes: collm predict --config RUN/config.yaml --ckpt_path ..."""

from __future__ import annotations

from collm.commands.fit import run


def main() -> int:
    """The command."""
    return run("predict")
