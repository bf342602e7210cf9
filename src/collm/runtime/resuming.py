"""Which checkpoint a run goes on from, and what to say when it does not fit the run."""

from __future__ import annotations

import traceback
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from collm.errors import ConfigurationError
from collm.runtime.files import first_line, present

NAMED = ("last", "best", "hpc")  # what --ckpt_path may be in place of a path


def find_named(name: str, trainer: L.Trainer) -> Path:
    """The path of the checkpoint that `--ckpt_path` names.

    Args:
        name: `last`: the newest `last.ckpt` in the folders this run would save to; `hpc`: what Lightning saved when
            SLURM ended the job; `best`: known only to the process that trained, so never found here.
        trainer: The trainer of the run.

    Raises:
        ConfigurationError: There is none.
    """
    if name == "hpc" and (path := trainer._checkpoint_connector._hpc_resume_path):
        return Path(path)
    if name != "last":
        raise ConfigurationError(f"there is no checkpoint {name!r} here; give --ckpt_path the path of a .ckpt file.")
    callbacks = [one for one in trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint)]
    folders = [Path(one.dirpath or _default_folder(trainer)) for one in callbacks]
    found = [last for folder in folders if (last := present(folder / "last.ckpt")).exists()]
    if not found:
        where = ", ".join(map(str, dict.fromkeys(folders))) or "a folder, as no ModelCheckpoint is among the callbacks"
        raise ConfigurationError(
            f"--ckpt_path is 'last', but there is no last.ckpt in {where}; give the path of a checkpoint, or leave "
            "--ckpt_path out to begin anew."
        )
    return max(found, key=lambda path: path.stat().st_mtime)


def _default_folder(trainer: L.Trainer) -> Path:
    """Where a ModelCheckpoint without a `dirpath` writes to; `trainer.log_dir` needs all processes."""
    if not trainer.loggers:
        return Path(trainer.default_root_dir, "checkpoints")
    logger = trainer.loggers[0]
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return Path(logger.save_dir or trainer.default_root_dir, str(logger.name), version, "checkpoints")


def while_restoring(error: BaseException) -> ConfigurationError | None:
    """The message for `error` if it was raised while the state in a checkpoint was put in place; else None."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        restores = frame.f_code.co_name in ("restore_training_state", "_restore_modules_and_callbacks")
        if restores and frame.f_code.co_filename.endswith("checkpoint_connector.py"):
            path = frame.f_locals["self"]._ckpt_path
            return ConfigurationError(
                f"checkpoint {str(path)!r} does not fit this run, or is damaged ({type(error).__name__}: "
                f"{first_line(error)}); use the configuration it was made with, which lies beside it in config.yaml, "
                "or another checkpoint."
            )
    return None
