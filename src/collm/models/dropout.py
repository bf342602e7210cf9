"""Training without the dropout of the language model.

Responses are sampled without dropout. If updates applied it, log-probabilities would differ from those at sampling, and
the first importance ratio would not be 1.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from peft.tuners.lora import LoraLayer
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer


def train_without_dropout(lm: PreTrainedModel) -> None:
    """Put `lm` into evaluation mode, except the dropout of adapters and gradient checkpointing.

    Layers checkpoint in training mode only, so those that do are in training mode, except during their forward pass.
    """
    lm.eval()
    for module in lm.modules():
        if isinstance(module, LoraLayer):
            module.lora_dropout.train()
        elif isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
            module.training = True
            recompute: Any = module._gradient_checkpointing_func
            if getattr(recompute, "func", None) is not _checkpoint:
                module._gradient_checkpointing_func = partial(_checkpoint, module, recompute)  # type: ignore[assignment]


def _checkpoint(
    layer: GradientCheckpointingLayer, recompute: Callable[..., Any], forward: Callable[..., Any], *args: Any
) -> Any:
    """The checkpointed pass `recompute(forward, *args)`, with the layer in evaluation mode during `forward`."""

    def compute(*args: Any) -> Any:
        layer.training = False
        try:
            return forward(*args)
        finally:
            layer.training = True

    return recompute(compute, *args)
