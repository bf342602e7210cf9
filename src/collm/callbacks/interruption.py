"""Saving and stopping a run on SIGTERM or SIGUSR1, for example when a cluster preempts it or its time is up."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.pytorch.utilities.exceptions import SIGTERMException

from collm.runtime.collectives import sum_over_ranks

STOPPED = 143  # exit status of a process that SIGTERM ended


class StopInOrder(L.Callback):
    """Saves and ends a run when any of its processes receives SIGTERM or SIGUSR1.

    The run finishes the current update, or the current batch of an evaluation. Then it writes `last.ckpt`, from which
    `--ckpt_path` resumes, and all processes stop with exit status 143. A second signal ends a process at once.
    """

    def __init__(self) -> None:
        self._received = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Replaces Lightning's handlers, which communicate with other processes from within the handler. Lightning
        # restores the previous handlers at the end of the run.
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
            for number in (signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._received = number

    def _agree(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if sum_over_ranks(float(bool(self._received)), pl_module.device):
            trainer._signal_connector.received_sigterm = True  # Lightning's loops stop at their next check

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        self._agree(trainer, pl_module)

    def on_validation_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if trainer.state.fn == "fit":
            self._agree(trainer, pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, SIGTERMException):
            return
        folders = [path for one in trainer.checkpoint_callbacks if (path := getattr(one, "dirpath", None))]
        path = Path(folders[0] if folders else trainer.log_dir or trainer.default_root_dir) / "last.ckpt"
        trainer.save_checkpoint(path)
        if trainer.is_global_zero:
            exception.code = STOPPED
            print(f"\nstopped by a signal at {pl_module.joint_samples} joint samples; resume with --ckpt_path {path}")
