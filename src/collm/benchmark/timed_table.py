"""A table that is measured row by row, each measurement under a time limit.

A row is printed and the JSON file rewritten as soon as it is known, so that a run that is cut off keeps what it has.
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
    """A measurement took longer than it may."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise `OutOfTime` in what takes longer; in the main thread only."""

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
    """Rows that are printed and written as soon as they are known.

    Args:
        known: Arguments of the command.
    """

    def __init__(self, known: argparse.Namespace):
        self.known = known
        self.began = time.monotonic()
        self.rows: list[dict[str, Any]] = []
        self.failed = False
        known.out.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, value: float | str, unit: str = "", **details: Any) -> None:
        """A row: what was measured, the number and its unit, and what else is known about it."""
        self.rows.append({"name": name, "value": value, "unit": unit, **details})
        print(as_line(self.rows[-1]), flush=True)
        arguments = {key: str(value) if isinstance(value, Path) else value for key, value in vars(self.known).items()}
        result = {"arguments": arguments, "seconds": time.monotonic() - self.began, "rows": self.rows}
        (self.known.out / "gpu.json").write_text(json.dumps(result, indent=1))
        (self.known.out / "gpu.md").write_text(self.text())

    def text(self) -> str:
        """All rows in Markdown."""
        return "\n".join(["| what | value | details |", "|---|---:|---|", *map(as_line, self.rows)]) + "\n"

    def measure(self, name: str, work: Callable[[], None]) -> bool:
        """Do `work`, which adds rows of its own, within the time that is left; whether it was done.

        What goes wrong is a row too, so that what comes after it is still measured.
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
    """A row of the table."""
    value = row["value"] if isinstance(row["value"], str) else f"{row['value']:,.4g} {row['unit']}".strip()
    if not isinstance(row["value"], str) and abs(row["value"]) >= 1e4:
        value = f"{row['value']:,.0f} {row['unit']}".strip()
    details = []
    for key, found in row.items():
        if key not in ("name", "value", "unit"):
            details.append(f"{key.replace('_', ' ')} {found:.3g}" if isinstance(found, float) else f"{key} {found}")
    return f"| {row['name']} | {value} | {'; '.join(details)} |"
