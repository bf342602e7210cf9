"""The folder of a run: only one run at a time writes to it, and first removes unfinished files of a killed run."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path
from typing import IO, Any

import lightning as L
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from collm.errors import ConfigurationError
from collm.runtime.files import clean, replacing

_LOCK = ".lock"


class RunFolder(SaveConfigCallback):
    """Locks the run's folder while the run lasts, and writes `config.yaml` to it."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._lock: IO[str] | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]  # a trial leaves nothing behind
            return
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # a broadcast, so all ranks have to take part
        refusal = self._acquire_lock(folder) if trainer.is_global_zero else None
        if refusal := trainer.strategy.broadcast(refusal):
            raise ConfigurationError(refusal)
        if trainer.is_global_zero:
            for written in (folder, folder / "checkpoints"):
                clean(written)
            with replacing(folder / self.config_filename) as unfinished:
                self.parser.save(self.config, unfinished, skip_none=False, overwrite=True, multifile=False)

    def _acquire_lock(self, folder: Path) -> str | None:
        """Lock the folder; returns a message if another process holds the lock. A lock ends with its process."""
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / _LOCK).open("a+", encoding="utf-8")
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):  # POSIX allows either
            lock.seek(0)
            holder = lock.read(200).strip() or "another process"
            lock.close()
            return (
                f"{folder} is in use: {holder} runs there. Wait until it has ended, end it, or give this run another "
                "folder with trainer.logger.init_args.name or version."
            )
        except OSError as error:
            rank_zero_warn(f"{folder} cannot be locked ({error.strerror}); make sure that no other run writes there.")
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        lock.flush()
        self._lock = lock
        return None

    def _release_lock(self) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._release_lock()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._release_lock()
