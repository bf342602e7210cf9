"""An evaluation before the first update, so that every curve has a starting point."""

from __future__ import annotations

import lightning as L


class EvaluateFirst(L.Callback):
    """Evaluates the agents before the first update."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.fit_loop.restarting or pl_module.joint_samples or not trainer.enable_validation:
            return
        # as Lightning's training loop does when it validates during an epoch
        trainer.validating = True
        trainer.fit_loop.epoch_loop.val_loop.run()
        trainer.training = True
        trainer._logger_connector._first_loop_iter = None
