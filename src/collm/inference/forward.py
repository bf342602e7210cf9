"""Who reads tokens into a key/value cache and says what comes next, for one policy or several side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig

from collm.inference.decoder import LeanReader, is_small
from collm.models.architectures import decoder_of
from collm.models.forward import cache_argument

if TYPE_CHECKING:
    from collm.models.backbone import Backbone


class Reader(Protocol):
    """What sampling needs of language models."""

    config: PretrainedConfig
    device: torch.device
    branches: bool
    """Whether it reads, one new token at a time, into a `BranchedCache` too."""

    def reading(self) -> AbstractContextManager[None]:
        """All forward passes are made within."""
        ...

    def forward(
        self, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache, owners: Sequence[int]
    ) -> Tensor:
        """Logits after the last of the new tokens, [R, V].

        Args:
            ids: New tokens, [R, S].
            mask: True at the tokens that count, the W - S in the cache and the new ones, [R, W].
            positions: Place of each new token in its sequence, [R, S].
            cache: States of the tokens before; it grows by those of the new ones.
            owners: Number of the policy that each row belongs to, those of one next to each other.
        """
        ...


class StockReader:
    """The forward pass of transformers, which knows every architecture.

    Args:
        backbone: The model.
        adapters: Adapter of each policy on it.
    """

    def __init__(self, backbone: Backbone, adapters: Sequence[str | None]):
        self.backbone = backbone
        self.adapters = list(adapters)
        self.branches = False
        self.config = backbone.lm.config
        self.device = backbone.device
        self._announce: Callable[[Sequence[int]], None] = lambda owners: None

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Make the adapters the active ones."""
        if len(set(self.adapters)) == 1:
            with self.backbone.using(self.adapters[0]):
                yield
        else:
            with self.backbone.mixed(self.adapters) as self._announce:
                yield

    def forward(
        self, ids: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache, owners: Sequence[int]
    ) -> Tensor:
        """Logits after the last of the new tokens, [R, V]; see `Reader`."""
        self._announce(owners)
        output = self.backbone.lm(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            **{cache_argument(type(self.backbone.lm)): cache},
        )
        return output.logits[:, -1]


@torch.no_grad()
def reader_for(members: Sequence[tuple[Backbone, str | None]]) -> Reader:
    """What reads for policies that are `side_by_side`, as their weights are now: straight from them where it can.

    Args:
        members: Backbone and adapter of each policy.
    """
    decoders = {backbone: decoder_of(backbone.lm) for backbone, _ in members}
    if all(decoders.values()):
        return LeanReader([(backbone.lm, decoders[backbone], adapter) for backbone, adapter in members])
    return StockReader(members[0][0], [adapter for _, adapter in members])


def side_by_side(backbone: Backbone) -> Hashable:
    """Equal for policies that are sampled fastest by one reader: on one model, or on small ones of one shape."""
    if not is_small(backbone.lm) or decoder_of(backbone.lm) is None:
        return id(backbone)
    shape = json.dumps({**backbone.lm.config.to_dict(), "_name_or_path": ""}, sort_keys=True, default=str)
    return shape, backbone.device
