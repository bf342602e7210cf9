"""Safe reading of `.metadata`, the pickle in a checkpoint folder that describes its tensors.

Each class that `torch.distributed.checkpoint` writes is unpickled as a fresh empty class, so neither calls nor
assignments in a hostile pickle have any effect outside. Any other name is refused.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

_FILE = ".metadata"
_RECORDS = {
    "torch.distributed.checkpoint.metadata": {
        *("Metadata", "TensorStorageMetadata", "BytesStorageMetadata", "ChunkStorageMetadata"),
        *("TensorProperties", "MetadataIndex", "StorageMeta"),
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
}
# written by torch, but not needed: layout and memory format of a tensor, path of the folder
_IGNORED = {
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"),
    *((module, name) for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "WindowsPath", "Path")),
}
_MAX_INDEX = 10_000  # of a list in the state; an optimizer has only a few parameter groups


def read_metadata(folder: str | Path) -> Metadata:
    """The metadata of the checkpoint in `folder`, as torch's own reader would return it.

    Raises:
        ValueError: The file does not have the structure that `torch.distributed.checkpoint` writes.
        pickle.UnpicklingError: The file names something that does not belong to such metadata, or is damaged.
    """
    with Path(folder, _FILE).open("rb") as file:
        fields = _state(_Unpickler(file).load(), "Metadata")
    entries = {_text(key): _entry(record) for key, record in fields["state_dict_metadata"].items()}
    key_paths = {_text(key): _keys(keys) for key, keys in fields["planner_data"].items()}
    if entries.keys() != key_paths.keys():
        raise ValueError(f"{_FILE} describes other tensors than it has key paths for")
    locations = {_index(key): _location(record) for key, record in fields["storage_data"].items()}
    return Metadata(entries, key_paths, locations)


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: Any):
        super().__init__(file)
        self._known: dict[tuple[str, str], Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch", "Size"):
            return tuple
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        if name in _RECORDS.get(module, ()):
            return self._known.setdefault((module, name), type(name, (_Record,), {}))
        if (module, name) in _IGNORED:
            return lambda *args: None
        raise pickle.UnpicklingError(f"{_FILE} names {module}.{name}, which does not belong in a checkpoint")


class _Record:
    """A pickled object, without its class: only its state."""

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _state(record: Any, kind: str) -> Any:
    if type(record).__name__ != kind or not isinstance(record, _Record):
        raise ValueError(f"{_FILE} holds a {type(record).__name__} where a {kind} belongs")
    return record.state


def _entry(record: Any) -> TensorStorageMetadata | BytesStorageMetadata:
    if type(record).__name__ == "BytesStorageMetadata":
        return BytesStorageMetadata()
    fields = _state(record, "TensorStorageMetadata")
    dtype = _state(fields["properties"], "TensorProperties")[0]
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{_FILE} holds {dtype!r} where the type of a tensor belongs")
    chunks = [_state(chunk, "ChunkStorageMetadata") for chunk in fields["chunks"]]
    return TensorStorageMetadata(
        TensorProperties(dtype=dtype),
        _size(fields["size"]),
        [ChunkStorageMetadata(_size(chunk["offsets"]), _size(chunk["sizes"])) for chunk in chunks],
    )


def _index(record: Any) -> MetadataIndex:
    fields = _state(record, "MetadataIndex")
    offset = fields.get("offset")
    return MetadataIndex(_text(fields["fqn"]), None if offset is None else _size(offset), fields.get("index"))


def _location(record: Any) -> _StorageInfo:
    """File, offset and length of a tensor; the file must be in the folder."""
    fields = _state(record, "_StorageInfo")
    name = _text(fields["relative_path"])
    if Path(name).name != name:
        raise ValueError(f"{_FILE} names a file outside its folder, {name!r}")
    return _StorageInfo(name, *_size((fields["offset"], fields["length"])))


def _size(values: Any) -> torch.Size:
    if not all(type(value) is int and value >= 0 for value in values):
        raise ValueError(f"{_FILE} holds {values!r} where sizes belong")
    return torch.Size(values)


def _keys(values: Any) -> tuple[str | int, ...]:
    if not values or not all(isinstance(key, str) or (type(key) is int and 0 <= key < _MAX_INDEX) for key in values):
        raise ValueError(f"{_FILE} holds {values!r} where the key path of a tensor belongs")
    return tuple(values)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{_FILE} holds {value!r} where a name belongs")
    return value
