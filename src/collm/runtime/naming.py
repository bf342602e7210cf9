"""Convert names that users choose, such as agent ids, to names of modules, adapters and folders.

An agent may be called `0`, `layers`, `lora_A`, `train` or `a/b.c`. In the name of a weight, such a name could be taken
for several components; as a key of `nn.ModuleDict`, it could shadow a method; as a folder name, it could point to
another folder. Both conversions below are injective: different names never become the same one.
"""

from __future__ import annotations

import hashlib
from collections.abc import ItemsView, Iterator, KeysView, Sequence, ValuesView
from typing import Any, Generic, TypeVar, cast
from urllib.parse import quote, unquote

from torch import nn

from collm.errors import ConfigurationError

_LONGEST = 200  # bytes of a folder name; most file systems allow 255


def escaped(name: str) -> str:
    """`name` with all but ASCII letters, digits, `_`, `-` and `~` written as `%` and two hexadecimal digits."""
    return quote(name, safe="").replace(".", "%2E")


def module_name(name: str) -> str:
    """`name` as the name of a module or adapter.

    The result is in angle brackets. No attribute, module or weight of a model and no escaped name contains these, so
    the result neither equals any of them nor is part of another one.
    """
    return f"<{escaped(name)}>"


def folder_name(name: str) -> str:
    """`name` as the name of a folder; a long one ends in its SHA-256 hash."""
    short = escaped(name)
    if len(short) <= _LONGEST:
        return short
    return f"{short[:100]}%%{hashlib.sha256(name.encode()).hexdigest()}"  # no escaped name contains `%%`


M = TypeVar("M", bound=nn.Module)


class NamedModules(nn.ModuleDict, Generic[M]):
    """An `nn.ModuleDict` with arbitrary text as keys; its submodules are named by `module_name`."""

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
    """Refuse agent ids that are empty, duplicate or not valid text.

    Raises:
        ConfigurationError: Names the id and the remedy.
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
