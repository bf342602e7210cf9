"""The model `relay`: a language model of 30 thousand weights, with a tokenizer, for studies without pretraining.

Its vocabulary are the words of the relay. Text in square brackets, with which critics mark who speaks, is dropped, so
that a history is two tokens per agent and turn and one for feedback. The model ships as a configuration without
weights. Every run initializes them at random: token embeddings are larger than position embeddings, and all words are
equally likely at first.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


def initialize(model: PreTrainedModel) -> PreTrainedModel:
    """Random weights with which activations keep their scale through the layers; the head is 0."""
    embeddings: Any = model.transformer
    nn.init.normal_(embeddings.wte.weight, std=0.5)
    nn.init.normal_(embeddings.wpe.weight, std=0.1)
    for name, module in model.named_modules():
        if isinstance(module, Conv1D):  # weights [in, out]
            residual = (2 * model.config.n_layer) ** -0.5 if name.endswith("c_proj") else 1.0
            nn.init.normal_(module.weight, std=residual * module.weight.shape[0] ** -0.5)
    nn.init.zeros_(model.lm_head.weight)
    return model
