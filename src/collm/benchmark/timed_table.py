"""A table of measurements with time limits.

Each row is printed and written to the JSON file at once, so that an interrupted run keeps its results.
"""

from __future__ import annotations

import argparse
import gc
import json
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch


class OutOfTime(Exception):
    """A measurement exceeded its time limit."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise `OutOfTime` in the body after `seconds`; works only in the main thread."""

    def stop(*_: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Table:
    """A table whose rows are printed and written as soon as they are measured.

    Args:
        known: Arguments of the command.
        name: Name of the files in `known.out`, without their ending.
    """

    def __init__(self, known: argparse.Namespace, name: str = "gpu"):
        self.known = known
        self.name = name
        self.began = time.monotonic()
        self.rows: list[dict[str, Any]] = []
        self.failed = False
        known.out.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, value: float | str, unit: str = "", **details: Any) -> None:
        """Add a row: name, value and unit of a measurement, and optional details."""
        self.rows.append({"name": name, "value": value, "unit": unit, **details})
        print(as_line(self.rows[-1]), flush=True)
        arguments = {key: str(value) if isinstance(value, Path) else value for key, value in vars(self.known).items()}
        result = {"arguments": arguments, "seconds": time.monotonic() - self.began, "rows": self.rows}
        (self.known.out / f"{self.name}.json").write_text(json.dumps(result, indent=1))
        (self.known.out / f"{self.name}.md").write_text(self.text())

    def text(self) -> str:
        """All rows in Markdown."""
        return "\n".join(["| what | value | details |", "|---|---:|---|", *map(as_line, self.rows)]) + "\n"

    def measure(self, name: str, work: Callable[[], None]) -> bool:
        """Run `work`, which adds its own rows, within the remaining time; returns whether it was completed.

        A failure becomes a row, so that the next measurements still run.
        """
        left = min(self.known.each, self.known.limit - (time.monotonic() - self.began))
        if left < 1:
            self.add(name, "no time left")
            return False
        try:
            with at_most(left):
                work()
            return True
        except OutOfTime:
            self.add(name, f"stopped after {left:.0f} s")
        except torch.OutOfMemoryError as error:
            self.add(name, "out of memory", error=str(error).splitlines()[0])
        except Exception as error:
            self.failed = True
            traceback.print_exc()
            self.add(name, "failed", error=f"{type(error).__name__}: {error}"[:500])
        finally:
            gc.collect()
            if self.known.device.startswith("cuda"):
                torch.cuda.empty_cache()
        return False


def as_line(row: Mapping[str, Any]) -> str:
    """A row of the table in Markdown."""
    value = row["value"] if isinstance(row["value"], str) else f"{row['value']:,.4g} {row['unit']}".strip()
    if not isinstance(row["value"], str) and abs(row["value"]) >= 1e4:
        value = f"{row['value']:,.0f} {row['unit']}".strip()
    details = []
    for key, detail in row.items():
        if key not in ("name", "value", "unit"):
            details.append(f"{key.replace('_', ' ')} {detail:.3g}" if isinstance(detail, float) else f"{key} {detail}")
    return f"| {row['name']} | {value} | {'; '.join(details)} |"
