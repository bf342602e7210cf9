"""Language models whose linear layers are frozen and quantized to 4 bits, under adapters that train (QLoRA).

bitsandbytes holds the weights and computes with them; transformers loads and peft adapts such layers. A layer computes
with its weights in full, which it makes anew in every pass, so that sampling and updates see the same numbers.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from collm.errors import ConfigurationError
from collm.models.dtypes import DTYPES

QUANTIZATIONS = ("nf4",)
_DEVICES = ("cpu", "cuda")
_BLOCK = 64  # weights with one scale in float32
_CODES = 16  # numbers in float32 that four bits stand for, for each layer


def check_quantization(name: str, quantization: str, lora_rank: int) -> None:
    """Refuse quantized weights that would have to train, or that nothing here can compute with.

    Args:
        name: What error messages call the setting.
        quantization: The setting.
        lora_rank: Rank of the adapter.
    """
    if not lora_rank:
        raise ConfigurationError(
            f"{name} is {quantization!r}, and quantized weights cannot train; give lora_rank a rank, or set it to null."
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigurationError(f"{name} is {quantization!r}, which needs bitsandbytes: pip install 'collm[lowbit]'.")


def quantizer_of(path: str, quantization: str | None, random_weights: bool, dtype: str) -> BitsAndBytesConfig | None:
    """What transformers needs to know to quantize a model while it loads; None where it should not, or has no numbers.

    Args:
        path: The model, for the message.
        quantization: The setting.
        random_weights: Whether it starts at random.
        dtype: Number format in which it computes.

    Raises:
        ConfigurationError: Its weights are not loaded, or the device has no such layers.
    """
    device = torch.get_default_device().type
    if quantization is None or device == "meta":
        return None
    if random_weights:
        raise ConfigurationError(f"quantization of {path!r}, which starts at random; only loaded weights can have it.")
    if device not in _DEVICES:
        raise ConfigurationError(
            f"quantization of {path!r} works on {' and '.join(_DEVICES)}, and this device is {device}; set it to null."
        )
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=DTYPES[dtype])


def prepare_quantized(lm: PreTrainedModel) -> None:
    """Let a model, if it was quantized while it loaded, compute with the same weights from now on, and export others.

    On processors with instructions for bfloat16, layers in evaluation mode would round their scales for a kernel.

    Raises:
        ConfigurationError: bitsandbytes 0.50 would compute with other weights: on processors, it takes the scales of
            other blocks where a block is not within a row.
    """
    lm.config.__dict__.pop("quantization_config", None)  # exported models are not quantized
    for path, layer in quantized_layers(lm):
        layer.support_avx512bf16_for_cpu = False
        if layer.weight.device.type == "cpu" and layer.in_features % _BLOCK:
            raise ConfigurationError(
                f"quantization: {path} has {layer.in_features} inputs, and on processors bitsandbytes needs a multiple "
                f"of {_BLOCK}; set it to null, choose another model, or use a GPU."
            )


def quantized_layers(lm: PreTrainedModel) -> Iterator[tuple[str, Any]]:
    """The layers of 4 bits, by name."""
    for path, module in lm.named_modules():
        weight = dict(module.named_parameters(recurse=False)).get("weight")  # not that of a layer within
        if getattr(weight, "quant_state", None) is not None:
            yield path, module


def full_weights(lm: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """The weights with which quantized layers compute, by name; one layer is in full at a time."""
    for path, layer in quantized_layers(lm):
        yield f"{path}.weight", dequantize_module_weight(layer)


def quantized_bytes(lm: PreTrainedModel) -> dict[nn.Parameter, int]:
    """Bytes that each weight takes which quantization would change, of a model without it: 4 bits, and scales."""
    head, sizes = lm.get_output_embeddings(), dict[nn.Parameter, int]()
    for path, module in lm.named_modules():
        layer: Any = module
        if isinstance(layer, (nn.Linear, Conv1D)) and layer is not head and ".lora_" not in path:
            weight: Any = layer.weight
            blocks = -(-weight.numel() // _BLOCK)
            sizes[weight] = -(-weight.numel() // 2) + 4 * (blocks + _CODES)
    return sizes
