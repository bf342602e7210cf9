"""Learning rates that change between a checkpoint and the run that goes on from it.

Optimizers and schedules keep their rates in the checkpoint, so a changed setting would be read and then forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_RATES = ("lr", "initial_lr", "base_lrs", "_last_lr")


def follow_learning_rates(checkpoint: Mapping[str, Any], before: Mapping[str, float], now: Mapping[str, float]) -> None:
    """Multiply the rates of every optimizer in `checkpoint`, and of its schedule, by how its setting has changed.

    A schedule stays where it is in its course. Optimizers whose setting is what it was are left alone.

    Args:
        checkpoint: A checkpoint of Lightning, changed in place.
        before: Learning rate of each optimizer when it was written, in the order of the optimizers.
        now: Learning rate of each optimizer in this run.
    """
    for part in ("optimizer_states", "lr_schedulers"):
        for (name, rate), state in zip(before.items(), checkpoint.get(part, ()), strict=False):
            if now[name] != rate:
                _multiply(state, now[name] / rate)


def _multiply(state: Any, factor: float) -> None:
    """Multiply all learning rates in the state of an optimizer or schedule, nested ones included."""
    if isinstance(state, list):
        for entry in state:
            _multiply(entry, factor)
    elif isinstance(state, dict):
        for key, value in state.items():
            if key in _RATES:
                state[key] = [rate * factor for rate in value] if isinstance(value, list) else value * factor
            else:
                _multiply(value, factor)
