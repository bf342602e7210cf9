"""The parts of decoder-only language models whose forward pass `lean` computes, by family.

A decoder here is: tokens (and places) embedded; layers of attention and a feed-forward network, each behind a norm and
added to what it read; a last norm; a head. The families differ in their norms, in where places come in, and in names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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

from collm.inference.cache import is_plain, make_cache

_LLAMA_LIKE = (LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM)
_FIXED_ROTATIONS = ("default", "linear", "llama3", "yarn")  # others depend on the length of what is read
_SCALED_TANH = ("gelu_new", "gelu_pytorch_tanh")


@dataclass(frozen=True)
class Layer:
    """The modules of one layer.

    Args:
        whole: The layer itself.
        number: Its place, from 0.
        before_attention: Its norm.
        attention_in: Maps to queries, keys and values, one after the other.
        query_norm: Norm of each head's queries, if any.
        key_norm: Norm of each head's keys, if any.
        attention_out: Map of what the heads have read.
        before_feed_forward: Norm.
        feed_forward_in: Map to the hidden layer; where there are two, the first one is the gate.
        feed_forward_out: Map back.
    """

    whole: nn.Module
    number: int
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
    """The modules of a whole model.

    Args:
        tokens: Embedding of tokens.
        places: Embedding of places; None where queries and keys are rotated instead.
        rotation: Angles of the rotation, or None.
        layers: From the first to the last.
        norm: In front of the head.
        head: Map to logits.
        head_size: Numbers of one query.
    """

    tokens: nn.Embedding
    places: nn.Embedding | None
    rotation: nn.Module | None
    layers: Sequence[Layer]
    norm: nn.Module
    head: nn.Module
    head_size: int


def decoder_of(lm: PreTrainedModel) -> Decoder | None:
    """The parts of `lm` if its forward pass is one that is known here; None for all other models."""
    if type(lm) in _LLAMA_LIKE and _is_plain_llama(lm):
        decoder = _llama(lm)
    elif type(lm) is GPT2LMHeadModel and _is_plain_gpt2(lm):
        decoder = _gpt2(lm)
    else:
        return None
    maps = [one for layer in decoder.layers for one in maps_of(layer)]
    return decoder if all(map(_is_linear, [*maps, decoder.head])) and all(map(_is_at_hand, lm.parameters())) else None


def maps_of(layer: Layer) -> list[nn.Module]:
    """All linear maps of a layer."""
    return [*layer.attention_in, layer.attention_out, *layer.feed_forward_in, layer.feed_forward_out]


def matrix(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight [out, in] and bias [out] of a linear map, without adapters."""
    base = module.base_layer if isinstance(module, LoraLayer) else module
    return (base.weight.T if isinstance(base, Conv1D) else base.weight), base.bias


def low_rank(module: nn.Module, adapter: str | None) -> tuple[Tensor, Tensor]:
    """What `adapter` adds to a linear map, as a product [in, rank] [rank, out]; of rank 0 where it adds nothing."""
    if not isinstance(module, LoraLayer) or adapter not in module.lora_A:
        weight, _ = matrix(module)
        return weight.new_zeros(weight.shape[1], 0), weight.new_zeros(0, weight.shape[0])
    return module.lora_A[adapter].weight.T, module.lora_B[adapter].weight.T * module.scaling[adapter]


def _is_plain_llama(lm: PreTrainedModel) -> bool:
    config, rotation = lm.config, lm.config.rope_parameters
    fixed = rotation["rope_type"] in _FIXED_ROTATIONS and rotation.get("partial_rotary_factor", 1.0) == 1.0
    return fixed and config.hidden_act == "silu" and is_plain(make_cache(config))


def _is_plain_gpt2(lm: PreTrainedModel) -> bool:
    config = lm.config
    scaled = config.scale_attn_weights and not config.scale_attn_by_inverse_layer_idx
    return scaled and not config.add_cross_attention and config.activation_function in _SCALED_TANH


def _is_linear(module: nn.Module) -> bool:
    """Whether a map is a matrix and a bias, with adapters that are products of two matrices or none."""
    if not isinstance(module, LoraLayer):
        return type(module) in (nn.Linear, Conv1D)
    return type(module.base_layer) in (nn.Linear, Conv1D) and not module.merged and not module.lora_variant


def _is_at_hand(weight: Tensor) -> bool:
    """Whether a weight is whole, on its device, and holds numbers as they are."""
    return type(weight) in (nn.Parameter, Tensor) and weight.device.type != "meta" and weight.is_floating_point()


def _llama(lm: PreTrainedModel) -> Decoder:
    layers = [
        Layer(
            whole=layer,
            number=number,
            before_attention=layer.input_layernorm,
            attention_in=[layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj],
            query_norm=getattr(layer.self_attn, "q_norm", None),
            key_norm=getattr(layer.self_attn, "k_norm", None),
            attention_out=layer.self_attn.o_proj,
            before_feed_forward=layer.post_attention_layernorm,
            feed_forward_in=[layer.mlp.gate_proj, layer.mlp.up_proj],
            feed_forward_out=layer.mlp.down_proj,
        )
        for number, layer in enumerate(lm.model.layers)
    ]
    size = lm.model.layers[0].self_attn.head_dim
    return Decoder(lm.model.embed_tokens, None, lm.model.rotary_emb, layers, lm.model.norm, lm.lm_head, size)


def _gpt2(lm: PreTrainedModel) -> Decoder:
    layers = [
        Layer(
            whole=layer,
            number=number,
            before_attention=layer.ln_1,
            attention_in=[layer.attn.c_attn],
            query_norm=None,
            key_norm=None,
            attention_out=layer.attn.c_proj,
            before_feed_forward=layer.ln_2,
            feed_forward_in=[layer.mlp.c_fc],
            feed_forward_out=layer.mlp.c_proj,
        )
        for number, layer in enumerate(lm.transformer.h)
    ]
    size = lm.transformer.h[0].attn.head_dim
    return Decoder(lm.transformer.wte, lm.transformer.wpe, None, layers, lm.transformer.ln_f, lm.lm_head, size)
