"""Folders of exported agents, read without loading anything large."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from collm.errors import ConfigurationError
from collm.models.agent_record import AGENT_FILE, SETTINGS, read_agent
from collm.runtime.checks import shown

AGENT_VARIABLE = "COLLM_SERVED_AGENT"
"""Environment variable that tells vLLM's server the folder of the agent it serves."""


def settings_of(record: dict[str, Any]) -> dict[str, Any]:
    """The settings of `PolicySpec` that a record of an agent holds."""
    return {name: record[name] for name in SETTINGS if name in record} | {"context_length": record.get("context")}


def adapter_settings(folder: Path) -> dict[str, Any]:
    """The settings of the adapter in a folder; empty where it holds a complete model.

    Raises:
        ConfigurationError: They are not those of an adapter.
    """
    path = folder / "adapter_config.json"
    if not path.exists():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}. Export the agent again.") from error
    kinds: dict[str, Any] = {"r": int, "lora_alpha": (int, float), "base_model_name_or_path": str}
    for name, kind in kinds.items():
        given = settings.get(name) if isinstance(settings, dict) else None
        if not isinstance(given, kind):
            raise ConfigurationError(f"{path}: {name} is {shown(given)}, as of no adapter; export the agent again.")
    return settings


def model_path(folder: Path) -> str:
    """Where configuration and tokenizer of an exported agent are: its folder, or the model under its adapter."""
    base = adapter_settings(folder).get("base_model_name_or_path", str(folder.resolve()))
    return str((folder / base).resolve()) if base.startswith("..") else base


def agent_folders(run: str | Path) -> dict[str, Path]:
    """Folders of the exported agents of a run, by agent id.

    Args:
        run: Folder of the run, or its folder `agents`.
    """
    root = Path(run)
    root = root / "agents" if (root / "agents").is_dir() else root
    folders = [path for path in sorted(root.iterdir()) if (path / AGENT_FILE).is_file()] if root.is_dir() else []
    if not folders:
        raise ConfigurationError(
            f"{str(run)!r} holds no exported agents; give the folder of a finished run, such as logs/collm/version_0."
        )
    return {read_agent(path)["agent_id"]: path for path in folders}
