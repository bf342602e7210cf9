"""Which checkpoint a run resumes from, and the message when the checkpoint does not fit the run."""

from __future__ import annotations

import traceback
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from collm.errors import ConfigurationError
from collm.runtime.files import first_line, present

NAMED = ("last", "best", "hpc")  # values of --ckpt_path that are not paths


def find_named(name: str, trainer: L.Trainer) -> Path:
    """The path of the checkpoint that a name in `--ckpt_path` stands for.

    Args:
        name: `last`: the newest `last.ckpt` in the folders to which this run saves; `best`: the newest `best-*.ckpt`
            there; `hpc`: the checkpoint that Lightning saved when SLURM ended the job.
        trainer: The trainer of the run.

    Raises:
        ConfigurationError: There is no such checkpoint.
    """
    if name == "hpc" and (saved := trainer._checkpoint_connector._hpc_resume_path):
        return Path(saved)
    if name == "hpc":
        raise ConfigurationError(f"there is no checkpoint {name!r} here; give --ckpt_path the path of a .ckpt file.")
    callbacks = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
    folders = [Path(callback.dirpath or _default_folder(trainer)) for callback in callbacks]
    pattern = "last.ckpt" if name == "last" else "best-*.ckpt"
    if name == "last":
        paths = [path for folder in folders if (path := present(folder / pattern)).exists()]
    else:
        paths = [path for folder in folders for path in folder.glob(pattern)]
    if not paths:
        where = ", ".join(map(str, dict.fromkeys(folders))) or "a folder, as no ModelCheckpoint is among the callbacks"
        raise ConfigurationError(
            f"--ckpt_path is {name!r}, but there is no {pattern} in {where}; give the path of a checkpoint, or leave "
            "--ckpt_path out to start over."
        )
    return max(paths, key=lambda path: path.stat().st_mtime)


def _default_folder(trainer: L.Trainer) -> Path:
    """The folder of a ModelCheckpoint without a `dirpath`; unlike `trainer.log_dir`, found without a broadcast."""
    if not trainer.loggers:
        return Path(trainer.default_root_dir, "checkpoints")
    logger = trainer.loggers[0]
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return Path(logger.save_dir or trainer.default_root_dir, str(logger.name), version, "checkpoints")


def while_restoring(error: BaseException) -> ConfigurationError | None:
    """The message for an `error` that was raised while Lightning restored a checkpoint; None for other errors."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        restores = frame.f_code.co_name in ("restore_training_state", "_restore_modules_and_callbacks")
        if restores and frame.f_code.co_filename.endswith("checkpoint_connector.py"):
            path = frame.f_locals["self"]._ckpt_path
            return ConfigurationError(
                f"checkpoint {str(path)!r} does not fit this run, or is damaged ({type(error).__name__}: "
                f"{first_line(error)}); use the configuration of its run, which is in the run's config.yaml, "
                "or another checkpoint."
            )
    return None
