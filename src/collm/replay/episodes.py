"""Episodes of transcript files as plain data of known types and bounded size, whatever is in the files."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from collm.errors import ConfigurationError

MAX_LINE = 8_000_000  # bytes of one episode
MAX_EPISODES = 5_000  # of one file
MAX_TEXT = 20_000  # characters of one observation or response
MAX_NAME = 200
MAX_ENTRIES = 200  # of one dictionary or list
MAX_TOKENS = 4_096


def read_episodes(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The first episodes of a transcript file, one JSON object per line, and the number of those after them.

    Raises:
        ConfigurationError: The file cannot be read, or a line holds no episode.
    """
    episodes: list[dict[str, Any]] = []
    left_out = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(partial(file.readline, MAX_LINE + 1), b""), 1):
                if len(line) > MAX_LINE:
                    raise ConfigurationError(f"{path} line {number} is longer than {MAX_LINE:,} bytes; remove it.")
                if not line.strip():
                    continue
                if len(episodes) < MAX_EPISODES:
                    episodes.append(_episode(_parsed(line, path, number)))
                else:
                    left_out += 1
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}; give a transcript (.jsonl).") from error
    return episodes, left_out


def _parsed(line: bytes, path: Path, number: int) -> Mapping[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or not isinstance(record.get("turns"), list):
        raise ConfigurationError(
            f"{path} line {number} is no episode; give a file that fit, predict or compare wrote "
            "(transcripts/*.jsonl or predictions.jsonl)."
        )
    return record


def _episode(record: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "task": _text(record.get("task_id"), MAX_NAME),
        "return": _number(record.get("return")),
        "metrics": _numbers(record.get("metrics")),
        "error": _text(record["error"], MAX_NAME) if record.get("error") else None,
        "turns": [_turn(turn) for turn in record["turns"][:MAX_ENTRIES] if isinstance(turn, dict)],
    }


def _turn(turn: Mapping[str, Any]) -> dict[str, Any]:
    info = _dict(turn.get("info"))
    found: dict[str, Any] = {
        "observations": _texts(turn.get("observations")),
        "actions": _texts(turn.get("actions")),
        "truncated": [_text(name, MAX_NAME) for name in _list(turn.get("truncated"))],
        "reward": _number(turn.get("reward")),
        "terms": _numbers(turn.get("terms")),
        "estimates": _numbers(turn.get("estimates")),
        "facts": {name: value for name, value in _numbers(info).items() if value is not None},
        "rejected": {
            _text(name, MAX_NAME): [[_text(entry[0], MAX_NAME), _text(entry[1], MAX_NAME)] for entry in _rows(lines, 2)]
            for name, lines in _dict(info.get("rejected")).items()
        },
    }
    if messages := [one for one in _list(turn.get("messages")) if isinstance(one, dict)]:
        found["messages"] = [
            {
                "agent": _text(message.get("agent_id"), MAX_NAME),
                "observation": _text(message.get("observation")),
                "text": _text(message.get("text")),
            }
            for message in messages
        ]
    if tokens := _dict(turn.get("tokens")):
        found["tokens"] = {
            _text(name, MAX_NAME): [[_text(one[0], MAX_NAME), *map(_number, one[1:])] for one in _rows(pieces, 2, 3)]
            for name, pieces in tokens.items()
        }
    if isinstance(branch := turn.get("branch"), dict):
        found["branch"] = {
            "node": _number(branch.get("node")),
            "parent": _number(branch.get("parent")),
            "actions": _texts(branch.get("actions")),
        }
    for name, most in (("state_text", MAX_TEXT), ("picture", MAX_LINE)):
        if turn.get(name):
            found[name] = _text(turn[name], most)
    return found


def _text(value: Any, most: int = MAX_TEXT) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    text = text if len(text) <= most else f"{text[:most]} ... ({len(text) - most:,} more characters)"
    return text.encode("utf-8", "replace").decode()  # half of a surrogate pair cannot be written


def _number(value: Any) -> float | None:
    """A finite number in seven digits, or None."""
    if not isinstance(value, (int, float)):
        return None
    try:
        return float(f"{value:.7g}") if math.isfinite(value) else None
    except OverflowError:
        return None


def _list(value: Any) -> list[Any]:
    return value[:MAX_ENTRIES] if isinstance(value, list) else []


def _rows(value: Any, *sizes: int) -> list[Any]:
    """Lists of one of these sizes."""
    return [one for one in value[:MAX_TOKENS] if isinstance(one, list) and len(one) in sizes] if _list(value) else []


def _dict(value: Any) -> dict[str, Any]:
    return dict(list(value.items())[:MAX_ENTRIES]) if isinstance(value, dict) else {}


def _texts(value: Any) -> dict[str, str]:
    return {_text(name, MAX_NAME): _text(text) for name, text in _dict(value).items()}


def _numbers(value: Any) -> dict[str, float | None]:
    return {
        _text(name, MAX_NAME): _number(number)
        for name, number in _dict(value).items()
        if isinstance(number, (int, float))
    }
