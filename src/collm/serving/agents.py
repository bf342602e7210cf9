"""Loading exported agents: a folder becomes a policy again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from collm.errors import ConfigurationError
from collm.models.agent_record import read_agent
from collm.models.backbone import Backbone
from collm.models.policy import Policy
from collm.models.policy_spec import PolicySpec
from collm.serving.folders import adapter_settings, model_path, settings_of

_ADAPTER = "served"


def load_agent(folder: str | Path, engine: str = "collm", device: str | None = None) -> Policy:
    """The policy in the folder of an exported agent.

    Args:
        folder: The folder.
        engine: What will generate for it.
        device: Where its weights are; by default on a GPU, where there is one that torch can use.

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
        targets: Any = lora.get("target_modules")
        spec.lora_target_modules = targets  # checked below
    spec.check(f"agent in {folder}")
    home = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    backbone = Backbone(path, spec.dtype, home=home, quantization=spec.quantization)
    if lora:
        backbone.add_adapter(_ADAPTER, spec.lora_rank, spec.lora_alpha, 0.0, spec.lora_target_modules)
        backbone.keep_on(home)  # the adapter too
        _load_adapter(backbone, folder / "adapter_model.safetensors")
    backbone.eval()
    return Policy(record["agent_id"], spec, backbone, _ADAPTER if lora else None)


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
