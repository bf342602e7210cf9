"""Forward passes with a key/value cache, for one policy or several in one batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import groupby
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig

from collm.architectures.decoders import decoder_of
from collm.architectures.forward import cache_argument
from collm.inference.embedded.decoder import EmbeddedModel
from collm.models.backbone import Backbone

Member = tuple[Backbone, str | None]
"""A model and the adapter on it: the weights of a policy."""


class CachedModel(Protocol):
    """The weights of one or several policies, as the decode loop calls them."""

    config: PretrainedConfig
    device: torch.device
    shares_prefixes: bool
    """Whether its forward passes of one token take a `SharedPrefixCache`."""

    def active(self) -> AbstractContextManager[None]:
        """The context in which forward passes are made."""

    def forward(
        self, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache, owners: Sequence[int]
    ) -> Tensor:
        """Logits after the last of the new tokens, [R, V].

        Args:
            ids: New tokens, [R, S].
            mask: True at tokens, False at padding: the W - S in the cache and the new ones, [R, W].
            positions: Position of each new token in its sequence, [R, S].
            cache: States of the earlier tokens; those of the new ones are added.
            owners: Index of the policy that each row belongs to; the rows of a policy are adjacent.
        """


class TransformersModel:
    """The forward pass of transformers, for every architecture.

    Args:
        backbone: The model.
        adapters: Adapter of each policy on it.
    """

    def __init__(self, backbone: Backbone, adapters: Sequence[str | None]):
        self.backbone = backbone
        self.adapters = list(adapters)
        self.shares_prefixes = False
        self.config = backbone.lm.config
        self.device = backbone.device
        self._assign_rows: Callable[[Sequence[int]], None] = lambda owners: None

    @contextmanager
    def active(self) -> Iterator[None]:
        """Activate the adapters."""
        if len(set(self.adapters)) == 1:
            self.backbone.activate(self.adapters[0])
            yield
            return
        with mixed_adapters(self.backbone, self.adapters) as self._assign_rows:
            yield

    def forward(
        self, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache, owners: Sequence[int]
    ) -> Tensor:
        """Logits after the last of the new tokens, [R, V]; see `CachedModel`."""
        self._assign_rows(owners)
        output = self.backbone.lm(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            **{cache_argument(type(self.backbone.lm)): cache},  # type: ignore[arg-type]
        )
        return output.logits[:, -1]


@contextmanager
def mixed_adapters(backbone: Backbone, adapters: Sequence[str | None]) -> Iterator[Callable[[Sequence[int]], None]]:
    """Give every row of a forward pass an adapter of its own, without gradients.

    peft can mix adapters too, but looks them up row by row in every layer.

    Args:
        backbone: The model.
        adapters: The adapters on it that are mixed.

    Yields:
        A function to call before a forward pass with the index of each row's adapter; rows of an adapter are adjacent.
    """
    spans: list[tuple[str | None, slice]] = []

    def assign_rows(owners: Sequence[int]) -> None:
        spans.clear()
        for owner, rows in groupby(range(len(owners)), key=lambda row: owners[row]):
            first, *others = rows
            spans.append((adapters[owner], slice(first, first + 1 + len(others))))

    def add(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        for adapter, rows in spans:
            if adapter not in layer.lora_A:  # it is on other layers
                continue
            down, up = layer.lora_A[adapter], layer.lora_B[adapter]
            change = up(down(inputs[0][rows].to(down.weight.dtype))) * layer.scaling[adapter]
            output[rows] += change.to(output.dtype)

    disabled = [layer.disable_adapters for layer in backbone.adapted]
    hooks = [layer.register_forward_hook(add) for layer in backbone.adapted]
    try:
        backbone.activate(None)
        yield assign_rows
    finally:
        for hook in hooks:
            hook.remove()
        for layer, was_disabled in zip(backbone.adapted, disabled, strict=True):
            layer.enable_adapters(not was_disabled)


@torch.no_grad()
def cached_model(members: Sequence[Member]) -> CachedModel:
    """The weights of policies as they are now: read directly for known architectures, else through their modules.

    Args:
        members: Backbone and adapter of each policy; see `engine.batch_key` for which go together.
    """
    decoders = {backbone: decoder_of(backbone.lm) for backbone, _ in members}
    known = [(one.lm, decoder, adapter) for one, adapter in members if (decoder := decoders[one]) is not None]
    if len(known) == len(members):
        return EmbeddedModel(known)
    return TransformersModel(members[0][0], [adapter for _, adapter in members])
