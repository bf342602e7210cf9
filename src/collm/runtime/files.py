"""Atomic replacement of files and folders: write beside the old one, sync to disk, then rename over it.

If writing fails, be it by a full disk or `kill -9`, the old file stays intact. Files that are read may come from
anybody, so no code in them is executed.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.distributed.checkpoint.api import CheckpointException

from collm.errors import ConfigurationError, TrainingError

_UNFINISHED = re.compile(r"\.(.+)\.\d+\.tmp")  # the name that `replacing` gives to an unfinished file
_PREVIOUS = re.compile(r"\.(.+)\.previous")  # the name that it gives to the old folder while the new one is renamed


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Replace the file or folder `path` by the one that the body writes to the yielded path.

    Parent folders are created. If the body fails, the old `path` stays as it was and the new one is removed.

    Raises:
        TrainingError: The new one could not be written, for example because the disk is full.
    """
    target = Path(path)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with reported(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            remove(unfinished)
            yield unfinished
            _put_in_place(unfinished, target)
    finally:
        remove(unfinished)


def write_text(path: str | Path, text: str) -> None:
    """Replace the text of the file `path`."""
    with replacing(path) as unfinished:
        unfinished.write_text(text, encoding="utf-8")


@contextmanager
def reported(path: str | Path) -> Iterator[None]:
    """Turn every failure to write `path` into one message.

    Raises:
        TrainingError: `path` could not be written.
    """
    try:
        yield
    except BaseException as error:
        if not _is_about_writing(error):
            raise
        raise TrainingError(unwritable(path, error)) from error


def unwritable(path: str | Path, error: BaseException) -> str:
    """The message for a `path` that could not be written."""
    if isinstance(error, OSError) and error.strerror:
        cause = error.strerror
    elif type(error) is RuntimeError:
        cause = "only part of it was written, probably because the disk is full"
    else:
        cause = str(error).strip().splitlines()[-1]
    return (
        f"{path} could not be written: {cause}. The previous file, if any, is unchanged. Free disk space (or make "
        "the folder writable) and start again; --ckpt_path continues a training run from its last checkpoint."
    )


def _is_about_writing(error: BaseException) -> bool:
    if type(error) is RuntimeError:  # torch raises it when its own file writer fails
        return "inline_container" in str(error) or "iostream" in str(error)
    return isinstance(error, (OSError, SafetensorError, CheckpointException))


def is_about_a_full_disk(error: BaseException | None) -> bool:
    """Whether `error` reports a full disk, an exhausted quota or a file over its size limit."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def present(path: str | Path) -> Path:
    """Where the contents of `path` are: there, or under the temporary name if a process died while replacing it."""
    path = Path(path)
    return _previous(path) if not path.exists() and _previous(path).exists() else path


def clean(folder: str | Path, name: str | None = None) -> None:
    """Remove unfinished files of killed processes from `folder`, and restore folders that they had moved aside.

    Args:
        folder: A folder to which no other process is writing.
        name: Clean up only after this file or folder; by default after all.
    """
    for path in list(Path(folder).iterdir()) if Path(folder).is_dir() else ():
        match = _UNFINISHED.fullmatch(path.name) or _PREVIOUS.fullmatch(path.name)
        if match is None or name not in (None, match[1]):
            continue
        if path.suffix == ".previous" and not path.with_name(match[1]).exists():
            path.rename(path.with_name(match[1]))
        else:
            remove(path)


def remove(path: Path) -> None:
    """Remove a file or folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _put_in_place(unfinished: Path, target: Path) -> None:
    for folder, _, names in os.walk(unfinished, topdown=False):
        for name in names:
            _sync(Path(folder, name))
        _sync(Path(folder))
    if unfinished.is_file():
        _sync(unfinished)
    previous = _previous(target)
    if target.is_dir() or (unfinished.is_dir() and target.exists()):
        # a folder cannot be renamed over another, so the old one is moved aside first
        remove(previous)
        target.rename(previous)
    unfinished.replace(target)
    _sync(target.parent)
    if previous.exists():
        previous.rename(unfinished)  # so that `present` never finds a half-deleted folder
        remove(unfinished)


def _previous(target: Path) -> Path:
    return target.with_name(f".{target.name}.previous")


def _sync(path: Path) -> None:
    """Flush a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL or not path.is_dir():  # some network file systems cannot sync folders
            raise
    finally:
        os.close(descriptor)


def read_file(path: str | Path, mmap: bool = False, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a dictionary of tensors, numbers and text that `torch.save` wrote, without executing code in it.

    Args:
        path: The file.
        mmap: Map tensors into memory instead of reading them.
        map_location: Device of the tensors.

    Raises:
        ConfigurationError: The file is truncated or damaged, or holds something else.
    """
    mmap = mmap and zipfile.is_zipfile(path)
    try:
        content = torch.load(path, weights_only=True, map_location=map_location, mmap=mmap)
    except Exception as error:  # torch raises errors of many types for files that are no checkpoints
        raise unreadable(path, f"{type(error).__name__}: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise unreadable(path, f"it holds a {type(content).__name__}, no dictionary")
    return content


def unreadable(path: str | Path, cause: str) -> ConfigurationError:
    """The error for a file that is damaged or no checkpoint."""
    return ConfigurationError(
        f"checkpoint {str(path)!r} could not be read: {cause}. Give the path of another one, such as a best-*.ckpt "
        "in the same folder, or start over without --ckpt_path."
    )


def first_line(error: BaseException) -> str:
    """The first line of the message of `error`, at most 300 characters."""
    return (str(error).strip().splitlines() or [""])[0][:300].rstrip(" .:")
