"""Names that others choose, such as agent ids, as names of modules, adapters and folders.

An agent may be called `0`, `layers`, `lora_A`, `train` or `a/b.c`. As part of the name of a weight such a name would be
read as part of a path; as a key of `nn.ModuleDict` it would hide a method; as a folder it would lead elsewhere. Both
forms below are injective: different names never become the same one.
"""

from __future__ import annotations

import hashlib
from collections.abc import ItemsView, Iterator, KeysView, Sequence, ValuesView
from typing import Any, Generic, TypeVar, cast
from urllib.parse import quote, unquote

from torch import nn

from collm.errors import ConfigurationError

_LONGEST = 200  # bytes of a folder's name; most file systems end at 255


def escaped(name: str) -> str:
    """`name` with all but ASCII letters, digits, `_`, `-` and `~` written as `%` and two hexadecimal digits."""
    return quote(name, safe="").replace(".", "%2E")


def module_name(name: str) -> str:
    """`name` as the name of a module or adapter.

    It stands in angle brackets, which are in no attribute, module or weight of a model and in no escaped name, so it
    neither collides with any of them nor occurs within another name.
    """
    return f"<{escaped(name)}>"


def folder_name(name: str) -> str:
    """`name` as the name of a folder; a long one ends in its SHA-256 hash."""
    short = escaped(name)
    if len(short) <= _LONGEST:
        return short
    return f"{short[:100]}%%{hashlib.sha256(name.encode()).hexdigest()}"  # `%%` is in no escaped name


M = TypeVar("M", bound=nn.Module)


class NamedModules(nn.ModuleDict, Generic[M]):
    """An `nn.ModuleDict` whose keys may be any text; its submodules are called as `module_name` says."""

    def __getitem__(self, key: str) -> M:
        return cast(M, super().__getitem__(module_name(key)))

    def __setitem__(self, key: str, module: nn.Module) -> None:
        super().__setitem__(module_name(key), module)

    def __contains__(self, key: str) -> bool:
        return super().__contains__(module_name(key))

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def keys(self) -> KeysView[str]:
        return {unquote(name[1:-1]): None for name in self._modules}.keys()

    def values(self) -> ValuesView[M]:
        return cast("ValuesView[M]", super().values())

    def items(self) -> ItemsView[str, M]:
        return dict(zip(self.keys(), self.values(), strict=True)).items()


def check_agent_ids(agent_ids: Sequence[Any]) -> None:
    """Refuse agent ids that cannot be told apart or written down.

    Raises:
        ConfigurationError: Names the id and how to mend it.
    """
    if not agent_ids:
        raise ConfigurationError("there are no agents; the environment must name at least one.")
    for number, agent_id in enumerate(agent_ids):
        if not isinstance(agent_id, str) or not agent_id:
            raise ConfigurationError(f"agent id {agent_id!r} of the environment is no text; name every agent.")
        if agent_id.encode(errors="replace").decode() != agent_id:
            raise ConfigurationError(f"agent id {agent_id!r} of the environment is no valid Unicode text; change it.")
        if agent_id in agent_ids[:number]:
            raise ConfigurationError(
                f"agent id {agent_id!r} is there twice in the environment; give each agent its own."
            )
