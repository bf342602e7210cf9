"""Observations from the fields of a row: format strings with plain field names."""

from __future__ import annotations

import json
import string
from collections.abc import Mapping
from typing import Any

from collm.errors import ConfigurationError

ROLES = ("system", "user")


class Template:
    """A text with the names of fields in braces, `{{` and `}}` for braces.

    Attributes, indices, conversions and format specifications are refused.

    Args:
        where: Name of the setting, for messages.
        text: The template.
    """

    def __init__(self, where: str, text: str) -> None:
        if not isinstance(text, str) or not text.strip():
            raise ConfigurationError(f"{where} is {text!r:.60}; give a text such as 'Answer: {{question}}'.")
        try:
            self.pieces = list(string.Formatter().parse(text))
        except ValueError as error:
            raise ConfigurationError(f"{where}: {error}; write {{{{ and }}}} for braces of the text itself.") from error
        for _, name, specification, conversion in self.pieces:
            if name is not None and (specification or conversion or not name.strip() or set(name) & set(".[]{}")):
                raise ConfigurationError(
                    f"{where} has {{{name}{'!' + conversion if conversion else ''}"
                    f"{':' + specification if specification else ''}}}; only plain field names such as {{question}} "
                    "are allowed."
                )
        self.where = where

    @property
    def fields(self) -> list[str]:
        """Names of the fields."""
        return [name for _, name, _, _ in self.pieces if name is not None]

    def check(self, location: str, fields: Mapping[str, Any]) -> None:
        """Raise `ConfigurationError` unless the row at `location` has all fields of the template."""
        for name in self.fields:
            if name not in fields:
                raise ConfigurationError(
                    f"{self.where} names {{{name}}}, but {location} has no such field (it has {sorted(fields)}); "
                    "correct the template or the data."
                )
            if fields[name] is None:
                raise ConfigurationError(f"{self.where} names {{{name}}}, which is empty at {location}; fill it in.")
            if is_conversation(fields[name]):
                for message in fields[name]:
                    if message["role"] not in ROLES:
                        raise ConfigurationError(
                            f"{location}: {name!r} holds a message of the role {message['role']!r}; a prompt may hold "
                            f"messages of {' and '.join(ROLES)} only."
                        )

    def fill(self, fields: Mapping[str, Any]) -> str:
        """The text for one row."""
        return "".join(literal + ("" if name is None else text_of(fields[name])) for literal, name, _, _ in self.pieces)


def is_conversation(value: Any) -> bool:
    """Whether `value` is a list of chat messages: dicts with the texts `role` and `content`."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(each, dict) and isinstance(each.get("role"), str) and isinstance(each.get("content"), str)
            for each in value
        )
    )


def text_of(value: Any) -> str:
    """A field's value as text: messages as their contents, lists and dicts as JSON."""
    if isinstance(value, str):
        return value
    if is_conversation(value):
        return "\n\n".join(message["content"] for message in value)
    if isinstance(value, (list, dict)):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)
