"""Strict reading of configuration files: UTF-8, no duplicate keys, no aliases that expand to millions of values."""

from __future__ import annotations

import os
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import set_loader
from jsonargparse._loaders_dumpers import get_yaml_default_loader, yaml_load

from collm.errors import ConfigurationError

_MAX_VALUES = 100_000  # of one file with all aliases expanded


def check_nodes(root: yaml.Node | None) -> None:
    """Refuse a parsed document with a duplicate key in a mapping, or with aliases that expand to too many values.

    Raises:
        yaml.MarkedYAMLError: Names the problem and its line.
    """
    sizes: dict[int, int] = {}  # number of values of a node with its aliases expanded, 0 while it is being counted

    def size(node: yaml.Node) -> int:
        if id(node) in sizes:
            if not sizes[id(node)]:
                raise _error("an alias refers to a value that contains the alias", node)
            return sizes[id(node)]
        sizes[id(node)] = 0
        total = 1
        if isinstance(node, yaml.MappingNode):
            seen: set[Hashable] = set()
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                    if (key.tag, key.value) in seen:
                        raise _error(f"{key.value!r:.60} is set twice; keep one of them", key)
                    seen.add((key.tag, key.value))
                total += size(key) + size(value)
        elif isinstance(node, yaml.SequenceNode):
            total += sum(map(size, node.value))
        if total > _MAX_VALUES:
            raise _error(f"aliases (*name) expand to more than {_MAX_VALUES:,} values; use fewer of them", node)
        sizes[id(node)] = total
        return total

    if root is not None:
        try:
            size(root)
        except RecursionError:
            raise _error("lists or mappings are nested too deeply", root) from None


def _error(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(None, None, problem, node.start_mark)


def load_strictly(text: str) -> Any:
    """Parse YAML as jsonargparse does, after `check_nodes` has accepted it."""
    check_nodes(yaml.compose(text, get_yaml_default_loader()))
    return yaml_load(text)


def check_file(path: str | os.PathLike) -> None:
    """Refuse a configuration file that cannot be read; paths that are not local files are skipped.

    Raises:
        ConfigurationError: Names the file, the line and the remedy.
    """
    file = Path(path)
    if not file.is_file():
        return
    try:
        text = file.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(
            f"{file} line {line} is not UTF-8 ({error.reason} at byte {error.start + 1}); save the file as UTF-8."
        ) from error
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read ({error.strerror}); give a readable file.") from error
    try:
        content = load_strictly(text) if text.strip() else None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file} line {mark.line + 1}" if mark else str(file)
        raise ConfigurationError(f"{where}: {getattr(error, 'problem', None) or error}.") from error
    if not isinstance(content, dict):
        kind = "nothing" if content is None else type(content).__name__
        raise ConfigurationError(f"{file} holds {kind}; a configuration holds settings such as `trainer: ...`.")
    for key in content:
        if not isinstance(key, str):
            raise ConfigurationError(f"{file}: {key!r:.60} is not the name of a setting.")


class StrictFiles:
    """Mixin for jsonargparse parsers that checks configuration files before they are read."""

    def parse_path(self, path: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        check_file(path)
        return super().parse_path(path, *args, **kwargs)  # type: ignore[misc]


set_loader("yaml", load_strictly, exceptions=(yaml.YAMLError,))  # also for command-line values and nested files
