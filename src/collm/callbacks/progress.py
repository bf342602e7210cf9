"""A progress bar that tells playing from learning."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar


class RolloutProgress(TQDMProgressBar):
    """Shows whether a rollout is being played (turn, episodes) or an update made, and the last return."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        trainer.datamodule.on_turn = self._on_turn

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        trainer.datamodule.on_turn = None

    def on_train_batch_start(self, *args: Any) -> None:
        super().on_train_batch_start(*args)
        self._describe("update")

    def _on_turn(self, turn: int, num_episodes: int) -> None:
        self._describe(f"turn {turn + 1}, {num_episodes} episodes")

    def _describe(self, phase: str) -> None:
        if self.is_enabled and not self.trainer.validating:
            self.train_progress_bar.set_description(f"Epoch {self.trainer.current_epoch} [{phase}]")
