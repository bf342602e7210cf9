"""Processes that are measured in turn, so that a machine that is slow for a while is slow for all of them."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from collm.benchmark.rounds import MARK
from collm.errors import TrainingError

_PATIENCE = 30.0  # seconds


class Side:
    """A process that makes one round whenever it is told to.

    It reads a line from standard input before every round, and prints a line afterwards that begins with `@round ` and
    goes on with what it measured as JSON: `seconds`, and whatever else it has to say.

    Args:
        label: What it is called in messages.
        command: Its program and arguments.
        first_line: What it is told before anything else, if it asks.
    """

    def __init__(self, label: str, command: Sequence[str], first_line: str | None = None):
        self.label = label
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed in `close`)
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.input, self.output = self.process.stdin, self.process.stdout
        if first_line is not None:
            self._say(first_line)

    def round(self) -> dict[str, Any]:
        """The next round.

        Raises:
            TrainingError: The process ended.
        """
        self._say("go")
        for line in self.output:
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
        self.log.seek(0)
        raise TrainingError(f"{self.label} ended with status {self.process.wait()}: {self.log.read()[-3000:]}")

    def close(self) -> None:
        """Let it end, which it does on its own where it has no more rounds to wait for."""
        self.input.close()
        self.output.close()
        try:
            self.process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:  # signals that can be caught are not enough: runs of several processes confer
            self.process.kill()
            self.process.wait()
        self.log.close()

    def _say(self, line: str) -> None:
        try:
            self.input.write(line + "\n")
            self.input.flush()
        except BrokenPipeError:  # `round` says why
            pass


def alternate(sides: Mapping[str, Side], num_rounds: int, warmup: int = 1) -> dict[str, list[dict[str, Any]]]:
    """`num_rounds` rounds of every side, one side after the other in each round, after `warmup` rounds."""
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    try:
        for _ in range(warmup + num_rounds):
            for name, side in sides.items():
                rounds[name].append(side.round())
    finally:
        for side in sides.values():
            side.close()
    return {name: measured[warmup:] for name, measured in rounds.items()}


def ratio(over: Sequence[float], under: Sequence[float]) -> dict[str, Any]:
    """Ratio of two medians, and the smallest and largest ratio of rounds that followed one another."""
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    return {
        "ratio": statistics.median(over) / statistics.median(under),
        "range": [min(ratios), max(ratios)],
        "num_rounds": len(ratios),
    }
