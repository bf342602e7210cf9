"""Learning rates that change between a checkpoint and the run that resumes from it.

A checkpoint stores the learning rates of optimizers and schedules, so loading it would undo a changed setting.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_RATES = ("lr", "initial_lr", "base_lrs", "_last_lr")


def follow_learning_rates(checkpoint: Mapping[str, Any], before: Mapping[str, float], now: Mapping[str, float]) -> None:
    """Scale the learning rates in `checkpoint` by the ratio of the new setting to the old one.

    The scale applies to each optimizer and its schedule; the schedule keeps its step. Optimizers whose setting has not
    changed keep their rates.

    Args:
        checkpoint: A checkpoint of Lightning, changed in place.
        before: Learning rate of each optimizer when the checkpoint was written, in the order of the optimizers.
        now: Learning rate of each optimizer in this run.
    """
    for part in ("optimizer_states", "lr_schedulers"):
        for (name, rate), state in zip(before.items(), checkpoint.get(part, ()), strict=False):
            if now[name] != rate:
                _multiply(state, now[name] / rate)


def _multiply(state: Any, factor: float) -> None:
    """Multiply all learning rates in the nested state of an optimizer or schedule."""
    if isinstance(state, list):
        for entry in state:
            _multiply(entry, factor)
    elif isinstance(state, dict):
        for key, value in state.items():
            if key in _RATES:
                state[key] = [rate * factor for rate in value] if isinstance(value, list) else value * factor
            else:
                _multiply(value, factor)
