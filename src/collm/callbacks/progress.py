"""A progress bar that tells rollouts from updates."""

from __future__ import annotations

import math
import time
from datetime import timedelta
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.trainer.states import RunningStage


class RolloutProgress(TQDMProgressBar):
    """Shows the phase, a rollout (turn, episodes, tokens) or an update, the last returns, the speed and the time left.

    The speed is that of the last update and its rollout; the time left is that of the whole run, at the mean speed of
    its updates until now, evaluations included.
    """

    _micro_batches = 0  # of the update that is being computed
    _shown = 0.0  # when the bar was last drawn for one of them
    _turn = ""  # that is being played
    _began = 0.0
    _first = 0  # rollouts before this process began

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        trainer.datamodule.on_turn = self._on_turn  # type: ignore[attr-defined]
        trainer.datamodule.on_progress = self._on_progress  # type: ignore[attr-defined]
        pl_module.on_micro_batch = self._on_micro_batch

    def teardown(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        trainer.datamodule.on_turn = None  # type: ignore[attr-defined]
        trainer.datamodule.on_progress = None  # type: ignore[attr-defined]
        pl_module.on_micro_batch = None

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        self._began, self._first = time.perf_counter(), pl_module.num_rollouts

    def get_metrics(self, trainer: L.Trainer, pl_module: Any) -> dict[str, int | str | float | dict[str, float]]:
        shown = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        for name, number in shown.items():
            if isinstance(number, float) and not math.isfinite(number):  # which tqdm would write as nan.0
                shown[name] = "not finite"
        for name, title in (("tokens_per_second", "tokens/s"), ("joint_samples_per_hour", "samples/h")):
            value = trainer.callback_metrics.get(f"throughput/{name}")
            if value is not None:
                shown[title] = f"{float(value):,.0f}"
        done, epochs = pl_module.num_rollouts - self._first, trainer.max_epochs or -1
        if done > 0 and epochs > 0:
            total = epochs * trainer.datamodule.rollouts_per_epoch  # type: ignore[attr-defined]
            seconds = (time.perf_counter() - self._began) / done * max(0, total - pl_module.num_rollouts)
            shown["left"] = str(timedelta(seconds=round(seconds)))
        return shown

    def on_train_batch_start(self, *args: Any) -> None:
        super().on_train_batch_start(*args)
        self._micro_batches, self._shown = 0, time.perf_counter()
        self._describe("update")

    def _on_turn(self, turn: int, num_episodes: int) -> None:
        self._turn = f"turn {turn + 1}, {num_episodes} episodes"
        self._describe(self._turn)

    def _on_progress(self, words: str) -> None:
        """Show how far the generation of a turn has come; reports come at most once a second."""
        self._describe(f"{self._turn}, {words}")

    def _on_micro_batch(self) -> None:
        """Count the micro-batches of an update, at most once a second."""
        self._micro_batches += 1
        now = time.perf_counter()
        if self.trainer.state.stage == RunningStage.TRAINING and now - self._shown >= 1:
            self._shown = now
            self._describe(f"update, micro-batch {self._micro_batches}")

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
