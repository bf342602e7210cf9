"""A causal language model that one or more policies and critics stand on.

With low-rank adapters a single frozen backbone serves many of them: `using(name)` says whose adapter is active, and
`using(None)` is the frozen model itself, which doubles as the reference policy at no cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import groupby
from typing import Any, TypeVar

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from collm.kernels import shared_prefix as prefixes
from collm.models.loading import load_model
from collm.models.resident import Resident

T = TypeVar("T")


class Backbone(Resident):
    """A causal language model with any number of LoRA adapters.

    Args:
        path: Built-in name, local folder or hub name of the weights.
        dtype: Number format of the weights.
        random_weights: Start from random weights of the same shape.
        gradient_checkpointing: Recompute activations in the backward pass to save memory.
        home: Device where it is loaded and stays; by default it goes along with the module that holds it.
    """

    def __init__(
        self,
        path: str,
        dtype: str,
        random_weights: bool = False,
        gradient_checkpointing: bool = False,
        home: torch.device | None = None,
    ):
        super().__init__()
        # Lightning has everything made on the first card, which another network may fill
        with home if home is not None and home.type == "cuda" else nullcontext():
            self.lm: PreTrainedModel = load_model(path, dtype, random_weights)
        self.lm.train()  # from_pretrained leaves it in evaluation mode
        self.adapters: list[str] = []
        # not where the states of a pass are dropped, nor where all ranks have to make the same passes
        self.saves_work = not gradient_checkpointing
        self.computes_on: torch.device | None = None  # set by a strategy that keeps the weights elsewhere
        self.engine: Any = None  # what samples with weights of its own, if anything does
        if gradient_checkpointing:
            self.lm.gradient_checkpointing_enable({"use_reentrant": False})
            self.lm.enable_input_require_grads()
        self.settle(home)

    @property
    def device(self) -> torch.device:
        """Where its forward passes run, which for sharded weights is not always where the weights are."""
        return self.computes_on or self.lm.device

    @property
    def hidden_size(self) -> int:
        return self.lm.config.get_text_config().hidden_size

    def freeze(self) -> None:
        """Train nothing of the language model itself."""
        self.lm.requires_grad_(False)

    def add_adapter(self, name: str, rank: int, alpha: float, dropout: float) -> None:
        """Put a LoRA adapter on every linear layer but the head; the language model itself is frozen."""
        self.lm.add_adapter(
            LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules="all-linear"),
            adapter_name=name,
        )
        self.adapters.append(name)

    @contextmanager
    def using(self, adapter: str | None) -> Iterator[None]:
        """Make `adapter` the active one; None is the language model without adapters.

        A backward pass has to run inside the same `using`: peft switches gradients off for inactive adapters.
        """
        if not self.adapters:
            yield
            return
        if adapter is None:
            self.lm.disable_adapters()
        else:
            self.lm.enable_adapters()
            self.lm.set_adapter(adapter)
        yield

    @contextmanager
    def mixed(self, adapters: Sequence[str]) -> Iterator[Callable[[Sequence[int]], None]]:
        """While it lasts, every row of a forward pass has an adapter of its own; for passes without gradients.

        What it yields has to be told before a pass which of `adapters` each row uses, those of one next to each other.
        (peft can mix adapters too, but looks them up row by row in every layer.)
        """
        spans: list[tuple[str, slice]] = []

        def announce(owners: Sequence[int]) -> None:
            spans.clear()
            for owner, rows in groupby(range(len(owners)), key=lambda row: owners[row]):
                first, *others = rows
                spans.append((adapters[owner], slice(first, first + 1 + len(others))))

        def add(layer: LoraLayer, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            for adapter, rows in spans:
                down, up = layer.lora_A[adapter], layer.lora_B[adapter]
                change = up(down(inputs[0][rows].to(down.weight.dtype))) * layer.scaling[adapter]
                output[rows] += change.to(output.dtype)

        self.lm.disable_adapters()
        hooks = [layer.register_forward_hook(add) for layer in self.lm.modules() if isinstance(layer, LoraLayer)]
        try:
            yield announce
        finally:
            for hook in hooks:
                hook.remove()

    def adapter_parameters(self, adapter: str | None) -> list[nn.Parameter]:
        """What trains for `adapter`: its matrices, or the whole language model where there are no adapters."""
        if adapter is None:
            return list(self.lm.parameters())
        return [weight for name, weight in self.lm.named_parameters() if f".{adapter}." in name and "lora_" in name]

    def own_state(self) -> dict[str, Tensor]:
        """The state dict of the language model with tied weights once, as transformers writes it."""
        again = dict(self.lm.named_parameters(remove_duplicate=False)).keys() - dict(self.lm.named_parameters()).keys()
        return {name: value for name, value in self.lm.state_dict().items() if name not in again}

    def within(self, work: Callable[[], T]) -> T:
        """Call `work`, which reads weights other than through a forward pass of the language model.

        A strategy that shards the weights puts a method in the place of this one that gathers them first.
        """
        return work()

    def hidden_states(self, ids: Tensor, attention_mask: Tensor, needed: Tensor) -> Tensor:
        """Last hidden states, [R, L, hidden size]; the head is not applied. Call it `within`.

        Args:
            ids: Rows padded on the right, [R, L].
            attention_mask: True at tokens, False at padding, [R, L].
            needed: True at the positions whose states are read, [R, L]; those of others may be anything.
        """
        if self.saves_work:
            return prefixes.hidden_states(self.lm, ids, attention_mask, needed)
        return self.lm.base_model(input_ids=ids, use_cache=False).last_hidden_state  # no token sees padding behind it
