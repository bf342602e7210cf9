"""Files and folders that are replaced as one: written beside the old one, forced to the disk, then renamed over it.

Whatever happens while a new one is written, a full disk or `kill -9` included, the old one stays whole. What is read
may come from anybody, so nothing in it is run.
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

_UNFINISHED = re.compile(r"\.(.+)\.\d+\.tmp")  # as `replacing` names what it has not finished
_PREVIOUS = re.compile(r"\.(.+)\.previous")  # as it names an old folder for the moment in which two names change


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Replace the file or folder `path` by what is written to the path that this context manager yields.

    Folders above `path` are made. If the body fails, the old `path` is left as it was and what was written is removed.

    Raises:
        TrainingError: It could not be written, as on a full disk.
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
    """Turn every failure to write into one message.

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
    """What a user has to hear when `path` could not be written."""
    if isinstance(error, OSError) and error.strerror:
        cause = error.strerror
    elif type(error) is RuntimeError:
        cause = "only a part of it was taken, as by a full disk"
    else:
        cause = str(error).strip().splitlines()[-1]
    return (
        f"{path} could not be written: {cause}. What was there before is as it was. Make room on the disk (or the "
        "folder writable) and start again; a training run goes on from its last checkpoint with --ckpt_path."
    )


def _is_about_writing(error: BaseException) -> bool:
    if type(error) is RuntimeError:  # so torch reports a file that it could not write by itself
        return "inline_container" in str(error) or "iostream" in str(error)
    return isinstance(error, (OSError, SafetensorError, CheckpointException))


def is_about_a_full_disk(error: BaseException | None) -> bool:
    """Whether `error` says that a disk, a quota or the allowed size of a file is used up."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def present(path: str | Path) -> Path:
    """Where the contents of `path` are: there, or aside if a process was killed while it replaced a folder."""
    path = Path(path)
    return _previous(path) if not path.exists() and _previous(path).exists() else path


def clean(folder: str | Path, name: str | None = None) -> None:
    """Remove what killed processes left unfinished in `folder`, and put back what they had moved aside.

    Args:
        folder: Where no other process may be writing at the time.
        name: The file or folder in it whose remains are meant; by default all.
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
    """Remove a file or folder, if it is there."""
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
        # only a file can be renamed over another, so there is a moment in which the old one has another name
        remove(previous)
        target.rename(previous)
    unfinished.replace(target)
    _sync(target.parent)
    if previous.exists():
        previous.rename(unfinished)  # never half of it under the name that `present` would trust
        remove(unfinished)


def _previous(target: Path) -> Path:
    return target.with_name(f".{target.name}.previous")


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL or not path.is_dir():  # there are network file systems without it for folders
            raise
    finally:
        os.close(descriptor)


def read_file(path: str | Path, mmap: bool = False, map_location: Any = "cpu") -> dict[str, Any]:
    """What a file of `torch.save` holds: tensors, numbers and text, of which nothing is run.

    Args:
        path: The file.
        mmap: Leave tensors on the disk until they are used.
        map_location: Where they go to.

    Raises:
        ConfigurationError: It is no such file, is cut off or damaged, or holds anything else.
    """
    mapped = mmap and zipfile.is_zipfile(path)
    try:
        found = torch.load(path, weights_only=True, map_location=map_location, mmap=mapped)
    except Exception as error:  # whatever torch makes of a file that is no checkpoint
        raise unreadable(path, f"{type(error).__name__}: {first_line(error)}") from error
    if not isinstance(found, dict):
        raise unreadable(path, f"it holds a {type(found).__name__}, no dictionary")
    return found


def unreadable(path: str | Path, cause: str) -> ConfigurationError:
    """The error for a checkpoint that is damaged or none at all."""
    return ConfigurationError(
        f"checkpoint {str(path)!r} could not be read: {cause}. Give the path of another one, such as a best-*.ckpt "
        "beside it, or begin anew without --ckpt_path."
    )


def first_line(error: BaseException) -> str:
    """The beginning of what `error` says."""
    return (str(error).strip().splitlines() or [""])[0][:300].rstrip(" .:")
