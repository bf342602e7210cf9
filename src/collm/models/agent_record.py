"""The file of an exported agent that says how it reads and samples; read without loading anything large."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from collm.errors import ConfigurationError

AGENT_FILE = "collm_agent.json"
SETTINGS = (
    *("max_new_tokens", "min_new_tokens", "temperature", "top_p", "top_k", "dtype", "quantization", "chat_template"),
    *("template_arguments", "system_prompt", "control_tokens_in_data", "allowed_words"),
)
"""The settings of a `PolicySpec` that a record holds."""
_LONGEST = 1_000_000  # bytes


def read_agent(folder: str | Path) -> dict[str, Any]:
    """The record of an exported agent.

    Raises:
        ConfigurationError: The folder holds none.
    """
    path = Path(folder, AGENT_FILE)
    try:
        with path.open("rb") as file:
            record = json.loads(file.read(_LONGEST))
        if not isinstance(record, dict) or not isinstance(record.get("agent_id"), str):
            raise ValueError("it names no agent")
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(
            f"{str(folder)!r} is no exported agent ({AGENT_FILE}: {error}); give a folder that `fit` left under "
            "agents/ of a run."
        ) from error
    return record
