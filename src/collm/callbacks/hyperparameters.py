"""Settings and final return of a run for TensorBoard's HPARAMS tab, which compares runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard.summary import hparams

LAYOUT = {
    "return": {
        "held-out tasks": ["Margin", ["eval/return", "eval/return_low", "eval/return_high"]],
        "training tasks": ["Multiline", ["^rollout/return$"]],
    },
    "learning": {
        "critic: explained variance": ["Multiline", [r"^critic.*/explained_variance$"]],
        "entropy": ["Multiline", ["policy/entropy/.*"]],
        "learning rate": ["Multiline", ["optim/learning_rate/.*"]],
    },
}
"""Charts on top of TensorBoard's CUSTOM SCALARS tab."""


class LogHyperparameters(L.Callback):
    """Writes settings and the last evaluation's return to TensorBoard's HPARAMS tab, and the charts to look at first.

    TensorBoard sorts settings by name and shows the first five: the algorithm, the seed, the environment and learning
    rates, as the names of all others begin with `model` and `rollout`.
    """

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                logger.experiment.add_custom_scalars(LAYOUT)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        result = trainer.callback_metrics.get("eval/return")
        if result is None:
            return
        settings = first_settings(trainer, pl_module) | {
            f"model.{name}": value
            for name, value in flat(pl_module.hparams)
            if isinstance(value, (bool, int, float, str)) and not name.startswith("_")  # which Lightning adds
        }
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(settings)
                if trainer.is_global_zero:  # naming the metric, which has its curve already, does not log it again
                    for summary in hparams(settings, {"eval/return": float(result)}):
                        logger.experiment._get_file_writer().add_summary(summary)


def first_settings(trainer: Any, module: Any) -> dict[str, Any]:
    """What people compare runs by."""
    data = trainer.datamodule
    rates = {f"learning_rate/{name}": rate for name, rate in module.learning_rates().items()}
    return {
        "algorithm": type(module).__name__,
        "data.seed": data.seed,
        "environment": type(data.environment).__name__,
        **rates,
        "rollout.num_generations": data.num_generations,
        "rollout.num_tasks": data.tasks_per_rollout,
    }


def flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names and values of nested settings; the keys of a name are joined by dots."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        elif hasattr(value, "__dict__"):
            yield from flat(vars(value), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
