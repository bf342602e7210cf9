"""Processes that are measured alternately, so that slow periods of the machine affect all of them."""

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

_END_SECONDS = 30.0


class Side:
    """A process that makes one round for each line on its standard input.

    After every round it prints a line with `@round ` and its measurements as JSON: `seconds` and optional others.

    Args:
        label: Name of the process in messages.
        command: Program and arguments.
        first_line: A line to send before all others, such as a description of the work.
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
            self._send(first_line)

    def round(self) -> dict[str, Any]:
        """Run the next round and return its measurements.

        Raises:
            TrainingError: The process ended.
        """
        self._send("go")
        for line in self.output:
            if line.startswith(MARK):
                return json.loads(line.removeprefix(MARK))
        self.log.seek(0)
        raise TrainingError(f"{self.label} ended with status {self.process.wait()}: {self.log.read()[-3000:]}")

    def close(self) -> None:
        """End the process, which exits when its standard input is closed."""
        self.input.close()
        self.output.close()
        try:
            self.process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:  # a SIGTERM would start the orderly stop of a run with several processes
            self.process.kill()
            self.process.wait()
        self.log.close()

    def _send(self, line: str) -> None:
        try:
            self.input.write(line + "\n")
            self.input.flush()
        except BrokenPipeError:  # `round` reports why the process ended
            pass


def alternate(sides: Mapping[str, Side], num_rounds: int, warmup: int = 1) -> dict[str, list[dict[str, Any]]]:
    """Measure `num_rounds` rounds of every process alternately, after `warmup` rounds."""
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
    """Ratio of two medians, and the range of the ratios of corresponding rounds."""
    ratios = [a / b for a, b in zip(over, under, strict=True)]
    return {
        "ratio": statistics.median(over) / statistics.median(under),
        "range": [min(ratios), max(ratios)],
        "num_rounds": len(ratios),
    }
