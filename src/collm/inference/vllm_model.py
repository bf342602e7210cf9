"""A backbone as vLLM reads it: a folder with its configuration, and its weights under the names of such folders."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from collm.models.backbone import Backbone
from collm.runtime.collectives import full_tensor


def write_model(backbone: Backbone, folder: str, dtype: str) -> None:
    """Write the configuration of a backbone as vLLM reads it and, under adapters, its frozen weights."""
    config = {**backbone.lm.config.to_dict(), "tie_word_embeddings": False}
    config["architectures"] = config.get("architectures") or [type(backbone.lm).__name__]  # none at random weights
    Path(folder, "config.json").write_text(json.dumps(config, default=str))
    if backbone.adapters:
        kind = getattr(torch, dtype)
        weights = backbone.merged_state("", weights_of(backbone))
        save_file(
            {name: weight.to("cpu", kind).contiguous() for name, weight in weights.items()},
            Path(folder, "model.safetensors"),
            metadata={"format": "pt"},
        )


def weights_of(backbone: Backbone) -> dict[str, Tensor]:
    """All weights by their names in a Hugging Face folder, the head's too where it is tied to the embedding.

    vLLM keeps the head in another layout on processors, and does not renew it where it is tied. Where weights are
    sharded, all ranks have to call for them.
    """
    head = backbone.lm.get_output_embeddings()
    (name,) = (name for name, module in backbone.lm.named_modules() if module is head)
    weights = {**backbone.own_state(), f"{name}.weight": head.weight.detach().clone()}  # no file holds a tensor twice
    return {name: full_tensor(weight) for name, weight in weights.items()}
