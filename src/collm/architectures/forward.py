"""The forward pass of causal language models of transformers, whatever their architecture and the library's version."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer


@lru_cache(maxsize=256)
def takes(kind: type[nn.Module], argument: str) -> bool:
    """Whether `forward` of a class of models takes an argument of this name."""
    parameters = signature(kind.forward).parameters
    return argument in parameters or any(one.kind is Parameter.VAR_KEYWORD for one in parameters.values())


@lru_cache(maxsize=256)
def cache_argument(kind: type[nn.Module]) -> str:
    """Name of the key/value cache argument: `cache` since transformers 5.24, `past_key_values` before."""
    return "cache" if "cache" in signature(kind.forward).parameters else "past_key_values"


def without_cache(module: nn.Module) -> dict[str, bool]:
    """The argument that switches the key/value cache off, empty where `module` does not take it."""
    kind: Any = type(module)  # a class is hashable, which mypy does not see
    return {"use_cache": False} if takes(kind, "use_cache") else {}


def keeps_all_positions(config: PretrainedConfig) -> bool:
    """Whether the key/value cache of a model keeps every position in every layer, with no window and no other state.

    Rows of such caches can be selected, concatenated and shifted.
    """
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=config).layers)


def base_of(lm: PreTrainedModel) -> nn.Module:
    """The model below the head; a few classes do not name it as transformers expects."""
    return lm.model if lm.base_model is lm else lm.base_model


def last_hidden_states(lm: PreTrainedModel, ids: Tensor) -> Tensor:
    """Inputs of the head at every position, [R, L, hidden size].

    Args:
        lm: The model.
        ids: Rows padded on the right, [R, L]. Attention is causal, so no token attends to the padding behind it and no
            mask is needed.
    """
    base = base_of(lm)
    return base(input_ids=ids, **without_cache(base)).last_hidden_state


def logits_of(lm: PreTrainedModel, states: Tensor) -> Tensor:
    """Logits [M, V] that `lm` computes from last hidden states [M, hidden size], including any scaling of its own."""
    with _last_hidden_states_are(lm, states[None]):
        ids = torch.zeros(1, len(states), dtype=torch.long, device=states.device)
        return lm.forward(input_ids=ids, **without_cache(lm)).logits[0]


@contextmanager
def _last_hidden_states_are(lm: PreTrainedModel, states: Tensor) -> Iterator[None]:
    """Replace the model below the head by one that returns `states` [R, L, hidden size]."""
    base = base_of(lm)
    base.forward = lambda *args, **kwargs: _Output(states)
    try:
        yield
    finally:
        del base.forward


class _Output:
    """The output of a model without a head; only the last hidden states are known."""

    def __init__(self, states: Tensor):
        self.last_hidden_state = states

    def __getitem__(self, index: int) -> Tensor:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> Any:
        return None
