"""Settings and final return of a run for TensorBoard's HPARAMS tab, which compares runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger


class LogHyperparameters(L.Callback):
    """Writes the model's settings and the last evaluation's return to TensorBoard's HPARAMS tab."""

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        result = trainer.callback_metrics.get("eval/return")
        if result is None:
            return
        settings = {
            name: value for name, value in flat(pl_module.hparams) if isinstance(value, (bool, int, float, str))
        }
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(settings, {"final/eval_return": float(result)})


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names and values of nested settings; the keys of a name are joined by dots."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        elif hasattr(value, "__dict__"):
            yield from flat(vars(value), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
