"""Parts of the forward pass of a language model of transformers, for every architecture and version."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


@lru_cache(maxsize=256)
def takes(kind: type, argument: str) -> bool:
    """Whether the forward pass of a class of models takes an argument of this name."""
    parameters = signature(kind.forward).parameters
    return argument in parameters or any(one.kind is Parameter.VAR_KEYWORD for one in parameters.values())


@lru_cache(maxsize=256)
def cache_argument(kind: type) -> str:
    """What the argument of a key/value cache is called: `cache` since transformers 5.24, `past_key_values` before."""
    return "cache" if "cache" in signature(kind.forward).parameters else "past_key_values"


def base_of(lm: PreTrainedModel) -> nn.Module:
    """The model below the head; a few classes do not name it as transformers expects."""
    return lm.model if lm.base_model is lm else lm.base_model


def last_hidden_states(lm: PreTrainedModel, ids: Tensor) -> Tensor:
    """What the head reads at every position of rows that are read whole, [R, L, hidden size].

    Args:
        lm: The model.
        ids: Rows padded on the right, [R, L]; no token sees the padding behind it, so there is nothing to mask.
    """
    base = base_of(lm)
    return base(input_ids=ids, **without_cache(base)).last_hidden_state


def without_cache(module: nn.Module) -> dict[str, bool]:
    """What tells `module` to keep no states, if it knows any."""
    return {"use_cache": False} if takes(type(module), "use_cache") else {}


def logits_of(lm: PreTrainedModel, states: Tensor) -> Tensor:
    """Logits [M, V] that `lm` itself makes of last hidden states [M, hidden size], whatever it scales them by."""
    with _last_hidden_states_are(lm, states[None]):
        ids = torch.zeros(1, len(states), dtype=torch.long, device=states.device)
        return lm.forward(input_ids=ids, **without_cache(lm)).logits[0]


@contextmanager
def _last_hidden_states_are(lm: PreTrainedModel, states: Tensor) -> Iterator[None]:
    """While it lasts, the forward pass of `lm` reads no tokens and goes on from `states` [R, L, hidden size]."""
    base = base_of(lm)
    base.forward = lambda *args, **given: _Output(states)
    try:
        yield
    finally:
        del base.forward


class _Output:
    """The output of a model without a head, of which only the last hidden states are known."""

    def __init__(self, states: Tensor):
        self.last_hidden_state = states

    def __getitem__(self, index: int) -> Tensor:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> Any:
        return None
