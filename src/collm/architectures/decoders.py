"""The modules of decoder-only language models whose forward pass this project computes itself.

Such a model embeds tokens (and positions), applies layers of attention and a feed-forward network, each behind a norm
and with a residual connection, then a last norm and the head. Architectures differ in their norms, in how positions
enter, and in the names of modules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import (
    GPT2LMHeadModel,
    LlamaForCausalLM,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
)
from transformers.pytorch_utils import Conv1D

from collm.architectures.forward import keeps_all_positions

_LLAMA_LIKE = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)
_FIXED_ROTATIONS = ("default", "linear", "llama3", "yarn")  # others depend on the length of the sequence
_SCALED_TANH = ("gelu_new", "gelu_pytorch_tanh")


@dataclass(frozen=True)
class Layer:
    """The modules of one layer.

    Args:
        module: The layer itself.
        index: Its number, from 0.
        before_attention: Norm in front of the attention.
        attention_in: Linear layers for queries, keys and values; one layer where they are fused.
        query_norm: Norm of each head's queries, if any.
        key_norm: Norm of each head's keys, if any.
        attention_out: Output projection of the attention.
        before_feed_forward: Norm in front of the feed-forward network.
        feed_forward_in: Linear layers to the hidden size; where there are two, the first one is the gate.
        feed_forward_out: Linear layer back to the size of the states.
    """

    module: nn.Module
    index: int
    before_attention: nn.Module
    attention_in: Sequence[nn.Module]
    query_norm: nn.Module | None
    key_norm: nn.Module | None
    attention_out: nn.Module
    before_feed_forward: nn.Module
    feed_forward_in: Sequence[nn.Module]
    feed_forward_out: nn.Module


@dataclass(frozen=True)
class Decoder:
    """The modules of a model.

    Args:
        tokens: Token embedding.
        positions: Position embedding; None where queries and keys are rotated instead.
        rotation: Rotary embedding, or None.
        layers: The layers in order.
        norm: Norm in front of the head.
        head: Linear layer to the logits.
        head_size: Size of one attention head.
    """

    tokens: nn.Embedding
    positions: nn.Embedding | None
    rotation: nn.Module | None
    layers: Sequence[Layer]
    norm: nn.Module
    head: nn.Module
    head_size: int


def decoder_of(lm: PreTrainedModel) -> Decoder | None:
    """The modules of `lm`, or None where its architecture or its weights are not of a known kind."""
    if type(lm) in _LLAMA_LIKE and _is_plain_llama(lm):
        decoder = _llama(lm)
    elif type(lm) is GPT2LMHeadModel and _is_plain_gpt2(lm):
        decoder = _gpt2(lm)
    else:
        return None
    linears = [decoder.head, *(module for layer in decoder.layers for module in linear_layers(layer))]
    return decoder if all(_is_linear(module) and _is_unsharded(module) for module in linears) else None


def linear_layers(layer: Layer) -> list[nn.Module]:
    """All linear layers of a layer."""
    return [*layer.attention_in, layer.attention_out, *layer.feed_forward_in, layer.feed_forward_out]


def weight_and_bias(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight [out, in] and bias [out] of a linear layer, without its adapters."""
    base: Any = module.base_layer if isinstance(module, LoraLayer) else module
    return (base.weight.T if isinstance(base, Conv1D) else base.weight), base.bias


def lora_matrices(module: nn.Module, adapter: str | None) -> tuple[Tensor, Tensor]:
    """The matrices [in, rank] and [rank, out] that `adapter` adds to a linear layer; of rank 0 without an adapter."""
    if not isinstance(module, LoraLayer) or adapter is None or adapter not in module.lora_A:
        weight, _ = weight_and_bias(module)
        return weight.new_zeros(weight.shape[1], 0), weight.new_zeros(0, weight.shape[0])
    down: Any = module.lora_A[adapter]
    up: Any = module.lora_B[adapter]
    return down.weight.T, up.weight.T * module.scaling[adapter]


def _is_plain_llama(lm: PreTrainedModel) -> bool:
    config, rotation = lm.config, lm.config.rope_parameters
    fixed = rotation["rope_type"] in _FIXED_ROTATIONS and rotation.get("partial_rotary_factor", 1.0) == 1.0
    return fixed and config.hidden_act == "silu" and keeps_all_positions(config)


def _is_plain_gpt2(lm: PreTrainedModel) -> bool:
    config = lm.config
    scaled = config.scale_attn_weights and not config.scale_attn_by_inverse_layer_idx
    return scaled and not config.add_cross_attention and config.activation_function in _SCALED_TANH


def _is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer with a bias or none, and with plain LoRA adapters or none."""
    if not isinstance(module, LoraLayer):
        return type(module) in (nn.Linear, Conv1D)
    return type(module.base_layer) in (nn.Linear, Conv1D) and not module.merged and not module.lora_variant


def _is_unsharded(module: nn.Module) -> bool:
    """Whether the weights of a linear layer are on their device, neither sharded nor quantized."""
    layers: list[Any] = [module]
    if isinstance(module, LoraLayer):
        layers = [module.base_layer, *module.lora_A.values(), *module.lora_B.values()]
    return all(
        type(layer.weight) in (nn.Parameter, Tensor)
        and layer.weight.device.type != "meta"
        and layer.weight.is_floating_point()
        for layer in layers
    )


def _llama(lm: PreTrainedModel) -> Decoder:
    layers = [
        Layer(
            module=layer,
            index=index,
            before_attention=layer.input_layernorm,
            attention_in=[layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj],
            query_norm=getattr(layer.self_attn, "q_norm", None),
            key_norm=getattr(layer.self_attn, "k_norm", None),
            attention_out=layer.self_attn.o_proj,
            before_feed_forward=layer.post_attention_layernorm,
            feed_forward_in=[layer.mlp.gate_proj, layer.mlp.up_proj],
            feed_forward_out=layer.mlp.down_proj,
        )
        for index, layer in enumerate(lm.model.layers)
    ]
    size = lm.model.layers[0].self_attn.head_dim
    return Decoder(lm.model.embed_tokens, None, lm.model.rotary_emb, layers, lm.model.norm, lm.lm_head, size)


def _gpt2(lm: PreTrainedModel) -> Decoder:
    base: Any = lm.transformer
    layers = [
        Layer(
            module=layer,
            index=index,
            before_attention=layer.ln_1,
            attention_in=[layer.attn.c_attn],
            query_norm=None,
            key_norm=None,
            attention_out=layer.attn.c_proj,
            before_feed_forward=layer.ln_2,
            feed_forward_in=[layer.mlp.c_fc],
            feed_forward_out=layer.mlp.c_proj,
        )
        for index, layer in enumerate(base.h)
    ]
    size = base.h[0].attn.head_dim
    return Decoder(base.wte, base.wpe, None, layers, base.ln_f, lm.lm_head, size)
