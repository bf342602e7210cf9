"""Runs that are told to stop: preempted, out of time on a cluster, or ended by hand."""

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
    """Saves and ends a run when any of its processes is told to stop, by SIGTERM or SIGUSR1.

    The update under way is finished, an evaluation only up to the batch that is played. Then all processes stop
    together, `last.ckpt` holds the state, and the exit status is 143; `--ckpt_path` goes on from there. A second signal
    ends the process at once.
    """

    def __init__(self) -> None:
        self._told = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # In the place of Lightning's own, which talk to other processes from within a handler, whatever those are
        # doing; it puts back what was there before at the end of the run.
        if threading.current_thread() is threading.main_thread():  # no other may ask for signals
            for number in (signal.SIGTERM, signal.SIGUSR1):
                signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._told:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._told = number

    def _agree(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if sum_over_ranks(float(bool(self._told)), pl_module.device):
            trainer._signal_connector.received_sigterm = True  # its loops stop at the next place where they can

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
            print(f"\nstopped as told after {pl_module.joint_samples} joint samples; go on with --ckpt_path {path}")
