"""Training without the dropout of the language model, whose log-probabilities are then those it was sampled with.

Responses are sampled without dropout. If an update then applied it, the first importance ratio would not be 1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer


def train_without_dropout(lm: PreTrainedModel) -> None:
    """Put `lm` into evaluation mode, but for what training needs: dropout of adapters and gradient checkpointing.

    Layers recompute activations in training mode only, so those that do are in it, except while they compute.
    """
    lm.eval()
    for module in lm.modules():
        if isinstance(module, LoraLayer):
            module.lora_dropout.train()
        elif isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
            module.training = True
            recompute = module._gradient_checkpointing_func
            if getattr(recompute, "func", None) is not _checkpoint:
                module._gradient_checkpointing_func = partial(_checkpoint, module, recompute)


def _checkpoint(
    layer: GradientCheckpointingLayer, recompute: Callable[..., Any], forward: Callable[..., Any], *args: Any
) -> Any:
    """`recompute(forward, *args)`, the checkpointed pass, with the layer in evaluation mode each time it computes."""

    def compute(*args: Any) -> Any:
        layer.training = False
        try:
            return forward(*args)
        finally:
            layer.training = True

    return recompute(compute, *args)
