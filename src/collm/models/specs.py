"""Which language model a network starts from: what policies and critics have in common."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from collm.errors import ConfigurationError
from collm.models.dtypes import NAMES
from collm.models.loading import check_source, load_config
from collm.models.quantized import QUANTIZATIONS, check_quantization
from collm.runtime.checks import COUNT, POSITIVE, SHARE_BELOW_ONE, Range, check_choice, check_numbers, shown

_LENGTH_DEPENDENT = ("longrope", "dynamic")  # kinds of rotary embeddings that change for long sequences


@dataclass
class ModelSpec:
    """The language model that a network starts from.

    Args:
        path: Weights to start from: `tiny`, `tiny_house`, `tiny_games`, `smollm2`, a local folder or a hub name;
            `relay` begins at random.
        random_weights: Start from random weights of the same shape instead.
        dtype: Number format of the weights: float32, bfloat16, float16, or `auto` for bfloat16 where the device has
            instructions for it and float32 elsewhere, which a line then says.
        learning_rate: Step size of the optimizer.
        lora_rank: Rank of the LoRA adapter; 0 trains all weights.
        lora_alpha: Scale of the LoRA adapter.
        lora_dropout: Dropout in front of the LoRA adapter.
        quantization: `nf4` loads the linear layers but the head in 4 bits, frozen under a LoRA adapter (QLoRA); needs
            `pip install "collm[lowbit]"`.
        lora_target_modules: Linear layers that the LoRA adapter is put on: `all-linear` but the head, or a list such as
            `[q_proj, v_proj]`; a longer name such as `layers.0.self_attn.q_proj` picks fewer.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, a third more time.
        fast_updates: Compute updates with this project's memory-saving layers, and common beginnings of sequences once;
            false uses the modules of transformers and peft as they are.
        dropout: Train with the dropout that the model's configuration has, although responses are sampled without: the
            importance ratios of a policy then differ from 1 before the first step.
        context_length: Longest sequence it reads, in tokens; by default what the model allows.
    """

    path: str = "tiny"
    random_weights: bool = False
    dtype: str = "float32"
    learning_rate: float = 5e-6
    lora_rank: int = 0
    lora_alpha: float = 32.0
    lora_dropout: float = 0.0
    quantization: Literal["nf4"] | None = None
    lora_target_modules: list[str] | Literal["all-linear"] = "all-linear"
    gradient_checkpointing: bool = False
    fast_updates: bool = True
    dropout: bool = False
    context_length: int | None = None

    def check(self, name: str) -> None:
        """Refuse what cannot work, reading configuration files only.

        Args:
            name: Its name in error messages.

        Raises:
            ConfigurationError: Names the setting, its value and how to mend it.
        """
        check_choice(f"{name}.dtype", self.dtype, NAMES)
        check_numbers(name, self, learning_rate=POSITIVE, lora_rank=Range(0, 2**16, whole=True), lora_alpha=POSITIVE)
        check_numbers(name, self, lora_dropout=SHARE_BELOW_ONE, context_length=COUNT.or_none)
        if self.quantization is not None and not self.is_remote:
            check_choice(f"{name}.quantization", self.quantization, QUANTIZATIONS)
            check_quantization(f"{name}.quantization", self.quantization, self.lora_rank)
        check_source(self.path, self.random_weights or self.is_remote)
        if self.lora_target_modules != "all-linear":
            check_targets(f"{name}.lora_target_modules", self.lora_target_modules, self.path)

    @property
    def is_remote(self) -> bool:
        """Whether its weights are elsewhere, so that only its tokenizer is read here."""
        return False

    def max_tokens(self) -> int:
        """Longest sequence it may read, in tokens."""
        longest = model_context_length(self.path)
        return min(self.context_length or longest, longest)


def check_targets(setting: str, targets: Any, path: str) -> None:
    """Refuse names that are no linear layers of the model at `path`, or that are not a list of names.

    Args:
        setting: What the message calls it.
        targets: The names.
        path: The model.

    Raises:
        ConfigurationError: Has the names that exist.
    """
    layers = linear_layers(path)
    known = f"there are {', '.join(dict.fromkeys(layer.rpartition('.')[2] for layer in layers))}"
    if not isinstance(targets, list) or not targets or not all(isinstance(name, str) for name in targets):
        raise ConfigurationError(f"{setting} is {shown(targets)}; give 'all-linear' or a list of names; {known}.")
    for name in targets:
        if not any(f".{layer}".endswith(f".{name}") for layer in layers):
            raise ConfigurationError(f"{setting}: no linear layer of {path!r} is called {shown(name)}; {known}.")


@cache
def linear_layers(path: str) -> list[str]:
    """Names of the linear layers of the model at `path` but its head, found without loading or creating weights."""
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(load_config(path))
    head = lm.get_output_embeddings()
    linear = (nn.Linear, Conv1D)
    return [name for name, module in lm.named_modules() if isinstance(module, linear) and module is not head]


def model_context_length(path: str) -> int:
    """Longest sequence the model at `path` can read, in tokens.

    Some rotary embeddings change for all positions once a batch holds a sequence longer than the model was first
    trained on; that length is the limit, so that no row changes the numbers of another.
    """
    config = load_config(path).get_text_config()
    longest = getattr(config, "max_position_embeddings", None) or 4096
    rotations = getattr(config, "rope_parameters", None) or {}
    for rotation in [rotations, *(one for one in rotations.values() if isinstance(one, dict))]:
        if rotation.get("rope_type") in _LENGTH_DEPENDENT:
            first = rotation.get("original_max_position_embeddings")
            longest = min(longest, first or getattr(config, "original_max_position_embeddings", None) or longest)
    return longest
