"""Where a run begins: an evaluation before the first update, so that every curve has its starting point."""

from __future__ import annotations

import lightning as L


class EvaluateFirst(L.Callback):
    """Evaluates the agents before the first update."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.fit_loop.restarting or pl_module.joint_samples or not trainer.enable_validation:
            return
        # what the training loop itself does when it interrupts an epoch to validate
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training = True
        trainer._logger_connector._first_loop_iter = None
