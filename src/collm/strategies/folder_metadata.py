"""What a checkpoint folder says of its parts: `.metadata`, a pickle, read without running anything it names.

Each class that `torch.distributed.checkpoint` writes into it is read as a bare record made for this one reading, so
that neither calls nor assignments of a hostile pickle reach anything else. Any other name is refused.
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
# stored beside what is needed, and left unread: a tensor's layout and memory format, the path of the folder
_UNREAD = {
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.metadata", "_MEM_FORMAT_ENCODING"),
    *((module, name) for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "WindowsPath", "Path")),
}
_MAX_INDEX = 10_000  # of a list in a state; an optimizer has a few groups of parameters


def read_metadata(folder: str | Path) -> Metadata:
    """The parts of the checkpoint in `folder`, as torch's own reader would return them.

    Raises:
        ValueError: It is not what `torch.distributed.checkpoint` writes.
        pickle.UnpicklingError: It names something that is no part of such metadata, or it is damaged.
    """
    with Path(folder, _FILE).open("rb") as file:
        told = _state(_Unpickler(file).load(), "Metadata")
    stored = {_text(key): _stored(one) for key, one in told["state_dict_metadata"].items()}
    places = {_text(key): _keys(one) for key, one in told["planner_data"].items()}
    if stored.keys() != places.keys():
        raise ValueError(f"{_FILE} tells of other tensors than it says the places of")
    return Metadata(stored, places, {_index(key): _part(one) for key, one in told["storage_data"].items()})


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
        if (module, name) in _UNREAD:
            return lambda *args: None
        raise pickle.UnpicklingError(f"{_FILE} names {module}.{name}, which is no part of a checkpoint")


class _Record:
    """An object of a class that is not looked at: what was stored of it, in `stored`."""

    def __setstate__(self, state: Any) -> None:
        self.stored = state


def _state(record: Any, kind: str) -> Any:
    if type(record).__name__ != kind or not isinstance(record, _Record):
        raise ValueError(f"{_FILE} holds a {type(record).__name__} where a {kind} belongs")
    return record.stored


def _stored(record: Any) -> TensorStorageMetadata | BytesStorageMetadata:
    if type(record).__name__ == "BytesStorageMetadata":
        return BytesStorageMetadata()
    told = _state(record, "TensorStorageMetadata")
    dtype = _state(told["properties"], "TensorProperties")[0]
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{_FILE} holds {dtype!r} where the type of a tensor belongs")
    chunks = [_state(chunk, "ChunkStorageMetadata") for chunk in told["chunks"]]
    return TensorStorageMetadata(
        TensorProperties(dtype=dtype),
        _size(told["size"]),
        [ChunkStorageMetadata(_size(chunk["offsets"]), _size(chunk["sizes"])) for chunk in chunks],
    )


def _index(record: Any) -> MetadataIndex:
    told = _state(record, "MetadataIndex")
    offset = told.get("offset")
    return MetadataIndex(_text(told["fqn"]), None if offset is None else _size(offset), told.get("index"))


def _part(record: Any) -> _StorageInfo:
    """Where a tensor lies; the file must be one of the folder's own."""
    told = _state(record, "_StorageInfo")
    name = _text(told["relative_path"])
    if Path(name).name != name:
        raise ValueError(f"{_FILE} names a file outside its folder, {name!r}")
    return _StorageInfo(name, *_size((told["offset"], told["length"])))


def _size(values: Any) -> torch.Size:
    if not all(type(value) is int and value >= 0 for value in values):
        raise ValueError(f"{_FILE} holds {values!r} where sizes belong")
    return torch.Size(values)


def _keys(values: Any) -> tuple[str | int, ...]:
    if not values or not all(isinstance(key, str) or (type(key) is int and 0 <= key < _MAX_INDEX) for key in values):
        raise ValueError(f"{_FILE} holds {values!r} where the keys that lead to a tensor belong")
    return tuple(values)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{_FILE} holds {value!r} where a name belongs")
    return value
