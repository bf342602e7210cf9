"""A progress bar that tells rollouts from updates."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.trainer.states import RunningStage


class RolloutProgress(TQDMProgressBar):
    """Shows the current phase, a rollout (turn, episodes) or an update, and the last return."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        trainer.datamodule.on_turn = self._on_turn  # type: ignore[attr-defined]

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        trainer.datamodule.on_turn = None  # type: ignore[attr-defined]

    def on_train_batch_start(self, *args: Any) -> None:
        super().on_train_batch_start(*args)
        self._describe("update")

    def _on_turn(self, turn: int, num_episodes: int) -> None:
        self._describe(f"turn {turn + 1}, {num_episodes} episodes")

    def _describe(self, phase: str) -> None:
        if not self.is_enabled:
            return
        stage = self.trainer.state.stage
        if stage == RunningStage.TRAINING:
            self.train_progress_bar.set_description(f"Epoch {self.trainer.current_epoch} [{phase}]")
        elif stage == RunningStage.VALIDATING:
            self.val_progress_bar.set_description(f"{self.validation_description} [{phase}]")
        elif stage == RunningStage.TESTING:
            self.test_progress_bar.set_description(f"{self.test_description} [{phase}]")
        elif stage == RunningStage.PREDICTING:
            self.predict_progress_bar.set_description(f"{self.predict_description} [{phase}]")
