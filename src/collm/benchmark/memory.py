"""Memory that an algorithm needs on one or more devices, from the shapes of its weights.

Sizes of networks, adapters and optimizer states are exact; those of activations and caches are estimates.

Per token of a micro-batch and per layer, with h the hidden size, q and k the widths of all query heads and all key
heads, i the width of the feed-forward part and b the bytes of a number, backward passes need

    A = (8 + 4 b) h + 2 b (q + k) + 4 b i        and (4 + b) (q + k) more where queries and keys are normalized

(two norms in float32 with their results; queries, keys, values and the attention's result; four feed-forward
activations) if transformers computes the layers; the layers in `collm.kernels` keep half to two thirds of that, so the
estimate is an upper bound. With gradient checkpointing it is b h per layer, and A for one layer. The cache takes 2 k b
per layer and token of history, plus half of that as reserve.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from collm.algorithms.base import MultiAgentModule
from collm.models.backbone import Backbone
from collm.models.quantized import quantized_bytes

_LOGITS = 4 * 2**23 * 4  # four float32 copies of one chunk of logits
_RESERVED = 1.5  # a full cache grows by a half


@dataclass(frozen=True)
class Needs:
    """Memory of one device by purpose, in bytes; updates and rollouts never need memory at the same time.

    Args:
        parameters: All weights, including frozen ones.
        gradients: Gradients of all trained weights, an upper bound because networks are updated one after the other.
            Replicas (ddp) reserve buckets of the same size. If optimizers step float32 copies, the gradients of one
            network at a time are float32.
        optimizer: States of all optimizers, including float32 copies of weights.
        activations: Activations and logits of the largest micro-batch of the largest network.
        gathered: Gathered layers of sharded weights, in an update.
        sampled: Gathered weights of all agents, in a rollout.
        cache: Key/value cache of all responses that are generated in parallel, for the largest agent.
    """

    parameters: float
    gradients: float
    optimizer: float
    activations: float
    gathered: float
    sampled: float
    cache: float

    @property
    def held(self) -> float:
        return self.parameters + self.gradients + self.optimizer

    @property
    def peak(self) -> float:
        """Peak memory."""
        return self.held + max(self.activations + self.gathered, self.sampled + self.cache)


class Plan:
    """The memory needs of an algorithm.

    Args:
        module: The algorithm, built on the meta device.
        rows: Responses of one agent that a rollout generates in parallel, on all devices together.
        history: Tokens of the longest history in an agent's cache.
    """

    def __init__(self, module: MultiAgentModule, rows: int, history: int):
        self.module = module
        self.rows = rows
        self.history = history
        self.quantized: dict[nn.Parameter, int] = {}  # bytes of quantized weights
        for backbone in self.backbones():
            self.quantized |= quantized_bytes(backbone.lm) if backbone.quantization else {}
        self.copied: set[nn.Parameter] = set()  # weights whose optimizers step a copy
        self.states = self.optimizer_states()

    def needs(self, devices: int, sharded: bool) -> Needs:
        """The needs of each of `devices` devices, with full sharding or with replicas."""
        parts = devices if sharded else 1
        trains = {weight for weights in self.module.learners.values() for weight in weights}
        divided = {weight for one in self.backbones() for weight in one.lm.parameters()} - self.adapters()
        split = {weight: parts if weight in divided else 1 for weight in self.module.parameters()}
        agents = dict.fromkeys(policy.backbone for policy in self.module.policies.values() if policy.has_weights)
        rows = -(-self.rows // devices)
        return Needs(
            parameters=sum(self.held(weight) / split[weight] for weight in split),
            gradients=sum(size(weight) / split[weight] for weight in trains) * (1 if sharded or devices == 1 else 2)
            + max(sum(self.widening(w) / split[w] for w in weights) for weights in self.module.learners.values()),
            optimizer=sum(states / split[weight] for weight, states in self.states.items()),
            activations=max(self.activations(one) for one in self.backbones()) + _LOGITS,
            gathered=max(self.largest_layers(one) for one in self.backbones()) if parts > 1 else 0.0,
            sampled=sum(sum(map(size, one.lm.parameters())) for one in agents) if parts > 1 else 0.0,
            cache=rows * self.history * _RESERVED * max(cache_per_token(one) for one in agents),
        )

    def placed(self) -> Needs:
        """The needs of the fullest device if every network has its own device."""
        return max((self.needs_of(name) for name in self.module.networks()), key=lambda needs: needs.peak)

    def needs_of(self, name: str) -> Needs:
        """The needs of one network, including its frozen reference if there is one."""
        both = (self.module.backbones, self.module.reference_backbones)
        backbones = [modules[name] for modules in both if name in modules]
        trains = self.module.learners[name]
        acts = name in self.module.policy_learners
        return Needs(
            parameters=sum(map(self.held, {*trains, *(weight for one in backbones for weight in one.parameters())})),
            gradients=sum(map(size, trains)) + sum(map(self.widening, trains)),
            optimizer=sum(self.states.get(weight, 0) for weight in trains),
            activations=max(map(self.activations, backbones)) + _LOGITS,
            gathered=0.0,
            sampled=0.0,
            cache=acts * self.rows * self.history * _RESERVED * max(map(cache_per_token, backbones)),
        )

    def backbones(self) -> list[Backbone]:
        return [one for one in self.module.modules() if isinstance(one, Backbone)]

    def adapters(self) -> set[nn.Parameter]:
        return {w for one in self.backbones() for name in one.adapters for w in one.adapter_parameters(name)}

    def held(self, weight: nn.Parameter) -> int:
        """Bytes of a weight, in 4 bits where it is quantized."""
        return self.quantized.get(weight, size(weight))

    def widening(self, weight: nn.Parameter) -> int:
        """Bytes by which the gradient of a weight grows if the optimizer steps a float32 copy of the weight."""
        return weight.numel() * torch.float32.itemsize - size(weight) if weight in self.copied else 0

    def optimizer_states(self) -> dict[nn.Parameter, int]:
        """Bytes of optimizer state for each weight after a step; also fills `copied`."""
        sizes = {}
        optimizers = self.module.configure_optimizers()[0]
        for weights, optimizer in zip(self.module.learners.values(), optimizers, strict=True):
            for weight in weights:
                weight.grad = torch.zeros_like(weight)
            optimizer.step()
            for weight, stepped in zip(weights, optimizer.param_groups[0]["params"], strict=True):
                states = optimizer.state.get(stepped, {}).values()
                sizes[weight] = sum(size(state) for state in states if torch.is_tensor(state))
                if stepped is not weight:
                    self.copied.add(weight)
                    sizes[weight] += size(stepped)
                weight.grad = None
        return sizes

    def activations(self, backbone: Backbone) -> float:
        """Bytes of the activations of one micro-batch, without the logits."""
        shape, b = Shape.of(backbone.lm), backbone.lm.dtype.itemsize
        layer = shape.activation_bytes(b)
        tokens = self.module.tokens_per_micro_batch
        if backbone.lm.is_gradient_checkpointing:
            return tokens * (shape.layers * b * shape.hidden + layer)
        return tokens * shape.layers * layer

    @staticmethod
    def largest_layers(backbone: Backbone) -> float:
        """Bytes that are gathered at a time: two layers (one is prefetched) and all weights outside of layers."""
        names = set(backbone.lm._no_split_modules or ())
        layers = [child for child in backbone.lm.modules() if type(child).__name__ in names]
        sizes = sorted((sum(map(size, layer.parameters())) for layer in layers), reverse=True)
        return sum(map(size, backbone.lm.parameters())) - sum(sizes) + sum(sizes[:2])


@dataclass(frozen=True)
class Shape:
    """The dimensions of a language model."""

    layers: int
    hidden: int
    queries: int
    keys: int
    feed_forward: int
    normalized: bool  # whether queries and keys are normalized

    @classmethod
    def of(cls, lm: PreTrainedModel) -> Shape:
        config = lm.config.get_text_config()
        head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        keys = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        return cls(
            config.num_hidden_layers,
            config.hidden_size,
            head * config.num_attention_heads,
            head * keys,
            getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
            any(name.endswith("q_norm") for name, _ in lm.named_modules()),
        )

    def activation_bytes(self, b: int) -> int:
        """The A of this module's formula, for numbers of `b` bytes."""
        attention = (2 * b + (4 + b) * self.normalized) * (self.queries + self.keys)
        return (8 + 4 * b) * self.hidden + attention + 4 * b * self.feed_forward


def cache_per_token(backbone: Backbone) -> int:
    """Bytes of the keys and values of one token."""
    shape = Shape.of(backbone.lm)
    return 2 * shape.layers * shape.keys * backbone.lm.dtype.itemsize


def size(tensor: torch.Tensor) -> int:
    """Bytes of a tensor, also on the meta device."""
    return tensor.numel() * tensor.dtype.itemsize
