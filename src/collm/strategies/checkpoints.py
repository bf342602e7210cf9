"""Checkpoints as single files, or as folders of shards that any number of processes can read.

Checkpoints are replaced atomically, and code in them is never executed. Both kinds are read into the layout of a
checkpoint in one file, so strategies need not know the kind.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader, load
from torch.distributed.checkpoint._nested_dict import set_element
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem

from collm.errors import ConfigurationError, TrainingError
from collm.runtime.files import clean, first_line, present, read_file, replacing, unreadable
from collm.strategies.folder_metadata import read_metadata

_META = "meta.pt"  # Lightning's name for the file with everything but tensors
Allocate = Callable[[tuple[Any, ...], torch.Size, torch.dtype], Tensor]


def meta_file(path: str | Path) -> Path:
    """The file with the metadata of a checkpoint: the checkpoint itself, or `meta.pt` in its folder."""
    path = present(path)
    return path / _META if path.is_dir() else path


def read_meta(path: str | Path) -> dict[str, Any]:
    """Read the metadata of the checkpoint `path`; a single file also yields its weights, mapped into memory.

    Raises:
        ConfigurationError: The checkpoint cannot be read, is damaged, or was not written by this package.
    """
    file = meta_file(path)
    content = read_file(file, mmap=True)
    with readable(path), zipfile.ZipFile(file) as archive:
        damaged = archive.testzip()  # torch does not verify checksums, so a flipped bit would change a weight
    if damaged is not None:
        raise unreadable(path, f"the checksum of {damaged!r} in it is wrong")
    check_layout(content, path)
    return content


def check_layout(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Refuse a checkpoint that this package did not write; `path` is named in the message."""
    expected = {"collm": dict, "loops": dict, "pytorch-lightning_version": str}
    if not present(path).is_dir():
        expected["state_dict"] = dict
    for name, kind in expected.items():
        if not isinstance(checkpoint.get(name), kind):
            raise unreadable(path, f"there is no {name!r} in it, so no run of this package wrote it")


@contextmanager
def readable(path: str | Path) -> Iterator[None]:
    """Turn any error while the checkpoint `path` is read into one message.

    Raises:
        ConfigurationError: The checkpoint could not be read.
    """
    try:
        yield
    except (ConfigurationError, TrainingError):
        raise
    except CheckpointException as error:  # collects the errors of all processes
        causes = [cause for cause, _ in error.failures.values()]
        raise unreadable(path, f"{type(causes[0]).__name__}: {first_line(causes[0])}") from error
    except Exception as error:
        raise unreadable(path, f"{type(error).__name__}: {first_line(error)}") from error


class FileOrFolder(TorchCheckpointIO):
    """Writes checkpoints as single files, atomically, and reads both files and folders.

    Folders are loaded into main memory.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        if storage_options is not None:
            raise TypeError("storage_options are not supported: checkpoints are written to local paths only.")
        clean(Path(path).parent, Path(path).name)
        with replacing(path) as unfinished, unfinished.open("wb") as file:
            torch.save(checkpoint, file)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        path = present(path)
        checkpoint = read_file(meta_file(path), map_location=map_location)
        check_layout(checkpoint, path)
        if not path.is_dir():
            return checkpoint
        return checkpoint | read_folder(path, lambda where, size, dtype: torch.empty(size, dtype=dtype), alone=True)


def read_folder(path: str | Path, allocate: Allocate, alone: bool) -> dict[str, Any]:
    """Read the weights and optimizer states in a checkpoint folder.

    Args:
        path: The folder.
        allocate: Makes the tensor to read into: a full tensor, or a sharded one. Its arguments are the path of keys
            in the state (`"optimizer_states"`, the number of the optimizer, ...), the full size and the dtype.
        alone: Read without the other processes.

    Raises:
        ConfigurationError: Files are missing, damaged, or hold other things than tensors, numbers and text.
    """
    with readable(path):
        reader = _Reader(path)
        metadata = reader.read_metadata()
        state: dict[str, Any] = {}
        for key, stored in metadata.state_dict_metadata.items():
            where = metadata.planner_data[key]
            if isinstance(stored, TensorStorageMetadata):
                set_element(state, where, allocate(where, stored.size, stored.properties.dtype))
            else:
                set_element(state, where, None)
        load(state, storage_reader=reader, planner=_Planner(), no_dist=alone)
        optimizers = [state[name] for name in sorted(state.keys() - {"state_dict"}, key=lambda name: int(name[10:]))]
        for optimizer in optimizers:  # torch.distributed.checkpoint stores the indices of weights as text
            optimizer["state"] = {int(number): values for number, values in optimizer.get("state", {}).items()}
        return {"state_dict": state["state_dict"], "optimizer_states": optimizers}


class _Reader(FileSystemReader):
    """torch's reader of folders with safe metadata; torch would execute any code that the metadata names."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return read_metadata(Path(self.path))


class _Planner(DefaultLoadPlanner):
    """torch's planner with safe loading of numbers; torch would execute any code pickled in their place."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        content = torch.load(value, weights_only=True)
        set_element(self.original_state_dict, self.mappings[read_item.dest_index.fqn], content)
