"""A causal language model that one or more policies and critics stand on.

With low-rank adapters a single frozen backbone serves many of them: `using(name)` says whose adapter is active, and
`using(None)` is the frozen model itself, which doubles as the reference policy at no cost.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from copy import copy, deepcopy
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import LoraConfig
from peft.functional import inject_adapter_in_model, set_adapter
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from collm.kernels import shared_prefix as prefixes
from collm.models.dropout import train_without_dropout
from collm.models.forward import last_hidden_states, logits_of
from collm.models.loading import load_model, resolve_path, starts_at_random
from collm.models.resident import Resident
from collm.models.support import Support, support_of

T = TypeVar("T")


class Backbone(Resident):
    """A causal language model with any number of LoRA adapters.

    Args:
        path: Built-in name, local folder or hub name of the weights.
        dtype: Number format of the weights.
        random_weights: Start from random weights of the same shape.
        gradient_checkpointing: Recompute activations in the backward pass to save memory.
        dropout: Train with the dropout of the language model, where its configuration has any.
        home: Device where it is loaded and stays; by default it goes along with the module that holds it.

    Attributes:
        drawn: Whether its weights were drawn at random, so that they cannot be loaded again.
    """

    def __init__(
        self,
        path: str,
        dtype: str,
        random_weights: bool = False,
        gradient_checkpointing: bool = False,
        dropout: bool = False,
        home: torch.device | None = None,
    ):
        super().__init__()
        self.path = path
        self.drawn = starts_at_random(path, random_weights)
        # Lightning has everything made on the first card, which another network may fill
        with home if home is not None and home.type == "cuda" else nullcontext():
            self.lm: PreTrainedModel = load_model(path, dtype, random_weights)
            self.support: Support = support_of(self.lm, path)
        self.dropout = dropout
        self.adapters: list[str] = []
        # not where the states of a pass are dropped, nor where all ranks have to make the same passes
        self.saves_work = True
        self.computes_on: torch.device | None = None  # set by a strategy that keeps the weights elsewhere
        self.engine: Any = None  # what samples with weights of its own, if anything does
        if gradient_checkpointing:
            self.recompute_activations()
        self.train()  # from_pretrained leaves it in evaluation mode
        self.settle(home)

    @property
    def device(self) -> torch.device:
        """Where its forward passes run, which for sharded weights is not always where the weights are."""
        return self.computes_on or self.lm.device

    def train(self, mode: bool = True) -> Backbone:
        """Training or evaluation mode; the dropout of the language model is off in both, unless it was asked for."""
        super().train(mode)
        if mode and not self.dropout:
            train_without_dropout(self.lm)
        return self

    @property
    def hidden_size(self) -> int:
        return self.lm.config.get_text_config().hidden_size

    @property
    def vocabulary_size(self) -> int:
        """How many logits there are for each position."""
        return self.lm.get_output_embeddings().weight.shape[0]

    def recompute_activations(self) -> None:
        """From now on, recompute activations in the backward pass to save memory."""
        if not self.lm.is_gradient_checkpointing:
            self.lm.gradient_checkpointing_enable({"use_reentrant": False})
            self.lm.enable_input_require_grads()
            self.train(self.training)
        self.saves_work = False

    def freeze(self) -> None:
        """Train nothing of the language model itself."""
        self.lm.requires_grad_(False)

    def frozen_copy(self) -> Backbone:
        """A copy that does not train, with the weights as they are now."""
        frozen = deepcopy(self)
        frozen.freeze()
        return frozen

    def add_adapter(self, name: str, rank: int, alpha: float, dropout: float) -> None:
        """Put a LoRA adapter on every linear layer but the head; the language model itself is frozen.

        This is done by peft alone: `add_adapter` of transformers does the same and demands versions of peft for it.
        """
        config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules="all-linear")
        config.base_model_name_or_path = self.lm.name_or_path
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")  # of the adapters before
            inject_adapter_in_model(config, self.lm, name)
        set_adapter(self.lm, name)
        self.adapters.append(name)
        self.train(self.training)

    @contextmanager
    def using(self, adapter: str | None) -> Iterator[None]:
        """Make `adapter` the active one; None is the language model without adapters.

        A backward pass has to run inside the same `using`: peft switches gradients off for inactive adapters.
        """
        if not self.adapters:
            yield
            return
        self.enable_adapters(adapter is not None)
        if adapter is not None:
            set_adapter(self.lm, adapter)
        yield

    def enable_adapters(self, enabled: bool) -> None:
        """Whether adapters count at all."""
        for layer in self.lm.modules():
            if isinstance(layer, LoraLayer):
                layer.enable_adapters(enabled)

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

        self.enable_adapters(False)
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
        return list(self.adapter_weights(adapter).values())

    def adapter_weights(self, adapter: str) -> dict[str, nn.Parameter]:
        """The matrices of `adapter`, by their names in a PEFT folder, which leave out the name of the adapter."""
        return {
            f"base_model.model.{path}.{kind}.weight": getattr(layer, kind)[adapter].weight
            for path, layer in self.lm.named_modules()
            if isinstance(layer, LoraLayer)
            for kind in ("lora_A", "lora_B")
            if adapter in getattr(layer, kind)
        }

    def save(self, folder: str | Path, adapter: str | None, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write what `adapter` makes of the language model: an adapter alone if its base can be loaded again.

        Args:
            folder: Where to; it is made.
            adapter: Whose; None for the language model itself.
            weights: The state dict of the language model, where it is not at hand in one piece.
        """
        if adapter is None:
            self.lm.save_pretrained(folder, state_dict=weights)
        elif not self.drawn:
            self.save_adapter(folder, adapter)
        else:
            merged = self.merged_state(adapter, self.own_state() if weights is None else weights)
            with torch.device("meta"):
                plain = type(self.lm)(deepcopy(self.lm.config)).float()
            plain.generation_config = self.lm.generation_config
            plain.save_pretrained(folder, state_dict=merged)

    def save_adapter(self, folder: str | Path, adapter: str) -> None:
        """Write an adapter as a PEFT folder."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        config = copy(self.lm.peft_config[adapter])
        config.base_model_name_or_path = resolve_path(self.path)
        config.save_pretrained(folder)
        weights = {name: weight.detach().cpu().contiguous() for name, weight in self.adapter_weights(adapter).items()}
        save_file(weights, Path(folder, "adapter_model.safetensors"), metadata={"format": "pt"})

    def merged_state(self, adapter: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state dict of the language model without adapters, `adapter` added to its weights, in float32."""
        layers = {path: one for path, one in self.lm.named_modules() if isinstance(one, LoraLayer)}
        of_adapters = tuple(f"{path}.{kind}." for path, one in layers.items() for kind in one.adapter_layer_names)
        merged = {}
        for name, value in weights.items():
            path, base, leaf = name.rpartition(".base_layer.")
            if name.startswith(of_adapters):
                continue
            if base and leaf == "weight" and adapter in layers[path].lora_A:
                down, up = (
                    part[adapter].weight.to(value.device).float() for part in (layers[path].lora_A, layers[path].lora_B)
                )
                change = up @ down * layers[path].scaling[adapter]
                value = value.float() + (change.T if layers[path].fan_in_fan_out else change)
            merged[f"{path}.{leaf}" if base else name] = value.float() if value.is_floating_point() else value
        return merged

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
        if self.saves_work and self.support.shared_prefixes:
            return prefixes.hidden_states(self.lm, ids, attention_mask, needed)
        return last_hidden_states(self.lm, ids)  # no token sees padding behind it

    def logits(self, states: Tensor) -> Tensor:
        """Logits [M, V] of last hidden states [M, hidden size], scaled as the model scales them. Call it `within`."""
        return self.lm.get_output_embeddings()(states) if self.support.plain_head else logits_of(self.lm, states)
