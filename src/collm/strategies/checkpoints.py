"""Checkpoints that are folders: every process wrote its part, and any number of processes can read them.

What is read has the layout of a checkpoint in one file, so that strategies need not know where it comes from.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader, load
from torch.distributed.checkpoint._nested_dict import set_element
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

_META = "meta.pt"  # what is no tensor, as Lightning calls it
Allocate = Callable[[tuple[Any, ...], torch.Size, torch.dtype], Tensor]


def meta_file(path: str | Path) -> Path:
    """The file that tells what a checkpoint is of: itself, or the one for it in a folder."""
    return Path(path) / _META if Path(path).is_dir() else Path(path)


class FileOrFolder(TorchCheckpointIO):
    """Reads checkpoints of either kind; folders are put together in main memory."""

    def load_checkpoint(
        self, path: str | Path, map_location: Any = lambda storage, loc: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        checkpoint = super().load_checkpoint(meta_file(path), map_location, weights_only)
        if not Path(path).is_dir():
            return checkpoint
        return checkpoint | read_folder(path, lambda where, size, dtype: torch.empty(size, dtype=dtype), alone=True)


def read_folder(path: str | Path, allocate: Allocate, alone: bool) -> dict[str, Any]:
    """The weights and optimizer states in a folder.

    Args:
        path: The folder.
        allocate: Makes the tensor to read into: whole, or the part that belongs to this process. It is given the keys
            that lead to it (`"optimizer_states"`, the number of the optimizer, ...), its whole size and its type.
        alone: Read without the other processes.
    """
    reader = FileSystemReader(path)
    metadata = reader.read_metadata()
    state: dict[str, Any] = {}
    for key, stored in metadata.state_dict_metadata.items():
        where = metadata.planner_data[key]
        if isinstance(stored, TensorStorageMetadata):
            set_element(state, where, allocate(where, stored.size, stored.properties.dtype))
        else:
            set_element(state, where, None)
    load(state, storage_reader=reader, no_dist=alone)
    optimizers = [state[name] for name in sorted(state.keys() - {"state_dict"}, key=lambda name: int(name[10:]))]
    for optimizer in optimizers:  # numbers of weights became text on the way
        optimizer["state"] = {int(number): values for number, values in optimizer.get("state", {}).items()}
    return {"state_dict": state["state_dict"], "optimizer_states": optimizers}
