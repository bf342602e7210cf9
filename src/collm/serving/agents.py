"""Loading exported agents: a folder of a run's `agents/` becomes a policy again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from collm.errors import ConfigurationError
from collm.models.agent_files import read_agent
from collm.models.backbone import Backbone
from collm.models.policy import Policy
from collm.models.policy_spec import PolicySpec

_OF_SPEC = (
    "max_new_tokens min_new_tokens temperature top_p top_k dtype chat_template template_arguments system_prompt "
    "control_tokens_in_data allowed_words"
).split()
_ADAPTER = "served"


def settings_of(record: dict[str, Any]) -> dict[str, Any]:
    """The settings of `PolicySpec` that a record of an agent holds."""
    return {name: record[name] for name in _OF_SPEC if name in record} | {"context_length": record.get("context")}


def load_agent(folder: str | Path, engine: str = "collm") -> Policy:
    """The policy in the folder of an exported agent.

    Args:
        folder: The folder.
        engine: What will generate for it.

    Raises:
        ConfigurationError: It is no exported agent, or its weights or its base cannot be read.
    """
    folder = Path(folder).resolve()
    record, lora, path = read_agent(folder), adapter_settings(folder), model_path(folder)
    try:
        spec = PolicySpec(path=path, engine=engine, **settings_of(record))
    except TypeError as error:
        raise ConfigurationError(f"{folder}: its settings are not those of an agent ({error}).") from error
    if lora:
        spec.lora_rank, spec.lora_alpha = lora["r"], float(lora["lora_alpha"])
    spec.check(f"agent in {folder}")
    backbone = Backbone(path, spec.dtype)
    if lora:
        backbone.add_adapter(_ADAPTER, spec.lora_rank, spec.lora_alpha, 0.0)
        _load_adapter(backbone, folder / "adapter_model.safetensors")
    backbone.eval()
    return Policy(record["agent_id"], spec, backbone, _ADAPTER if lora else None)


def adapter_settings(folder: Path) -> dict[str, Any]:
    """The settings of the adapter in a folder; empty where it holds a whole model."""
    path = folder / "adapter_config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def model_path(folder: Path) -> str:
    """Where configuration and tokenizer of an exported agent are: its folder, or the model under its adapter."""
    base = str(adapter_settings(folder).get("base_model_name_or_path", folder.resolve()))
    return str((folder / base).resolve()) if base.startswith("..") else base


def _load_adapter(backbone: Backbone, path: Path) -> None:
    weights = backbone.adapter_weights(_ADAPTER)
    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigurationError(f"{path} could not be read: {error}. Export the agent again.") from error
    shapes = [{name: tensor.shape for name, tensor in tensors.items()} for tensors in (weights, stored)]
    if shapes[0] != shapes[1]:
        raise ConfigurationError(f"{path} holds other matrices than its adapter_config.json says; export it again.")
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(stored[name])


def agent_folders(run: str | Path) -> dict[str, Path]:
    """Folders of the exported agents of a run, by agent id.

    Args:
        run: Folder of the run, or its folder `agents`.
    """
    root = Path(run)
    root = root / "agents" if (root / "agents").is_dir() else root
    folders = (
        [path for path in sorted(root.iterdir()) if (path / "collm_agent.json").is_file()] if root.is_dir() else []
    )
    if not folders:
        raise ConfigurationError(
            f"{str(run)!r} holds no exported agents; give the folder of a finished run, such as logs/collm/version_0."
        )
    return {read_agent(path)["agent_id"]: path for path in folders}
