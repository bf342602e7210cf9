"""A causal language model under one or more policies and critics.

With LoRA adapters a single frozen backbone serves many of them: `activate(name)` selects an adapter, and
`activate(None)` the frozen model itself, which doubles as the reference policy at no cost.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from copy import copy, deepcopy
from pathlib import Path
from typing import Any, TypeVar

import torch
from peft import LoraConfig
from peft.functional import inject_adapter_in_model, set_adapter
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from collm.architectures.forward import last_hidden_states, logits_of
from collm.models.dropout import train_without_dropout
from collm.models.dtypes import dtype_on
from collm.models.loading import load_model, resolve_path, starts_at_random
from collm.models.quantized import full_weights, prepare_quantized, quantizer_of
from collm.models.resident import Resident
from collm.models.support import Support, support_of

T = TypeVar("T")


class Backbone(Resident):
    """A causal language model with any number of LoRA adapters.

    Args:
        path: Built-in name, local folder or hub name of the weights.
        dtype: Number format of the weights, or `auto`: see `dtype_on`.
        random_weights: Start from random weights of the same shape.
        dropout: Train with the dropout of the language model, where its configuration has any.
        home: Device on which it is loaded and stays; by default it moves with the module that holds it.
        fast_updates: Compute updates with the layers of `collm.kernels` and shared beginnings of rows once.
        quantization: How its linear layers are quantized, if they are; see `ModelSpec`.

    Attributes:
        random_weights: Whether its weights were initialized at random, so that they cannot be loaded again.
        adapters: Names of its adapters.
        adapted: Its layers that have an adapter.
        support: What of its forward pass updates may compute themselves.
        computes_on: Device of its forward passes where a strategy keeps the weights elsewhere.
    """

    def __init__(
        self,
        path: str,
        dtype: str,
        random_weights: bool = False,
        dropout: bool = False,
        home: torch.device | None = None,
        fast_updates: bool = True,
        quantization: str | None = None,
    ):
        super().__init__()
        self.path = path
        self.random_weights = starts_at_random(path, random_weights)
        self.dropout = dropout
        self.quantization = quantization
        self.adapters: list[str] = []
        self.adapted: list[Any] = []  # LoraLayer, which is a module too
        # off where activations are recomputed, and where all ranks have to make the same forward passes
        self.fast_updates = fast_updates
        self.computes_on: torch.device | None = None
        # Lightning creates everything on the first card, which another network may fill
        with home if home is not None and home.type == "cuda" else nullcontext():
            chosen = dtype_on(dtype, torch.get_default_device())
            quantizer = quantizer_of(path, quantization, self.random_weights, chosen)
            self.lm: PreTrainedModel = load_model(path, chosen, random_weights, quantizer)
            prepare_quantized(self.lm)
            self.support: Support = support_of(self.lm, path, fast_updates)
        self.train()  # from_pretrained leaves it in evaluation mode
        self.keep_on(home)

    @property
    def device(self) -> torch.device:
        """Device of its forward passes, which for sharded weights is not always that of the weights."""
        return self.computes_on or self.lm.device

    @property
    def dtype(self) -> str:
        """Name of the number format of the weights."""
        return str(self.lm.dtype).removeprefix("torch.")

    def train(self, mode: bool = True) -> Backbone:
        """Training or evaluation mode; the dropout of the language model is off in both, unless it was asked for."""
        super().train(mode)
        if mode and not self.dropout:
            train_without_dropout(self.lm)
        return self

    @property
    def hidden_size(self) -> int:
        """Size of a hidden state."""
        return self.lm.config.get_text_config().hidden_size

    @property
    def vocabulary_size(self) -> int:
        """Number of logits for each position."""
        return self.lm.get_output_embeddings().weight.shape[0]

    def recompute_activations(self) -> None:
        """From now on, recompute activations in the backward pass to save memory."""
        if not self.lm.is_gradient_checkpointing:
            self.lm.gradient_checkpointing_enable({"use_reentrant": False})
            self.lm.enable_input_require_grads()
            self.train(self.training)
        self.fast_updates = False

    def add_adapter(
        self, name: str, rank: int, alpha: float, dropout: float, targets: Sequence[str] | str = "all-linear"
    ) -> None:
        """Put a LoRA adapter on the linear layers called `targets`, by default all but the head; the rest is frozen.

        peft is called directly: `add_adapter` of transformers does the same and demands certain versions of peft.
        """
        scale: Any = alpha  # peft takes any number, but says int
        modules: Any = targets if isinstance(targets, str) else set(targets)
        config = LoraConfig(r=rank, lora_alpha=scale, lora_dropout=dropout, target_modules=modules)
        config.task_type = "CAUSAL_LM"  # without it peft cannot load the exported folder
        config.base_model_name_or_path = self.lm.name_or_path
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config` attribute")  # of the adapters before
            # drawn on the CPU, so that a seed gives the same matrices on every device
            with torch.device("meta" if self.device.type == "meta" else "cpu"):
                inject_adapter_in_model(config, self.lm, name)
        set_adapter(self.lm, name)
        self.adapters.append(name)
        self.adapted = [layer for layer in self.lm.modules() if isinstance(layer, LoraLayer)]
        self.train(self.training)

    def activate(self, adapter: str | None) -> None:
        """Select the adapter of the next forward passes; None is the language model without adapters.

        It stays selected until another one is, because a backward pass needs the adapter of its forward pass: peft
        switches gradients off for inactive adapters, and checkpointed layers run their forward pass again.
        """
        for layer in self.adapted:  # switching takes a while, so what is selected already stays
            if adapter is not None and layer.active_adapters != [adapter]:
                layer.set_adapter(adapter)
            if layer.disable_adapters != (adapter is None):
                layer.enable_adapters(adapter is not None)

    def adapter_parameters(self, adapter: str | None) -> list[nn.Parameter]:
        """Parameters that train for `adapter`: its matrices, or for None those of the language model."""
        if adapter is None:
            return list(self.lm.parameters())
        return list(self.adapter_weights(adapter).values())

    def adapter_weights(self, adapter: str) -> dict[str, nn.Parameter]:
        """Matrices of `adapter` by their names in a PEFT folder, which leave out the name of the adapter."""
        return {
            f"base_model.model.{path}.{kind}.weight": getattr(layer, kind)[adapter].weight
            for path, layer in self.lm.named_modules()
            if isinstance(layer, LoraLayer)
            for kind in ("lora_A", "lora_B")
            if adapter in getattr(layer, kind)
        }

    def save(
        self,
        folder: str | Path,
        adapter: str | None,
        weights: Mapping[str, Tensor] | None = None,
        merged: bool = False,
        base: str | None = None,
    ) -> None:
        """Write the language model, or an adapter alone if its base can be loaded again, or else both merged.

        Args:
            folder: Folder to write; it is created.
            adapter: Name of the adapter; None for the language model itself.
            weights: State dict of the language model, where its own parameters are sharded.
            merged: Write both merged although the base can be loaded again.
            base: Path of the base model in the adapter's configuration; by default the path it was loaded from.
        """
        if adapter is None:
            self.lm.save_pretrained(folder, state_dict=None if weights is None else dict(weights))
        elif not self.random_weights and not merged:
            self.save_adapter(folder, adapter, base)
        else:
            state = self.merged_state(adapter, self.own_state() if weights is None else weights)
            with torch.device("meta"):
                plain = type(self.lm)(deepcopy(self.lm.config)).float()
            plain.generation_config = self.lm.generation_config
            plain.save_pretrained(folder, state_dict=state)

    def save_adapter(self, folder: str | Path, adapter: str, base: str | None = None) -> None:
        """Write an adapter as a PEFT folder that names `base`, or the path it was loaded from, as its base model."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        config = copy(self.lm.peft_config[adapter])
        config.base_model_name_or_path = base or resolve_path(self.path)
        config.save_pretrained(folder)
        weights = {name: weight.detach().cpu().contiguous() for name, weight in self.adapter_weights(adapter).items()}
        save_file(weights, Path(folder, "adapter_model.safetensors"), metadata={"format": "pt"})

    def merged_state(self, adapter: str, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The state dict of the language model without adapters, `adapter` added to its weights, in float32."""
        layers: dict[str, Any] = {
            path: layer for path, layer in self.lm.named_modules() if isinstance(layer, LoraLayer)
        }
        of_adapters = tuple(f"{path}.{kind}." for path, layer in layers.items() for kind in layer.adapter_layer_names)
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
        """The state dict of the language model with tied weights once, as transformers writes it.

        Of weights that are gathered to sample from them it has those; `state_dict` of sharded models gives them up. Of
        quantized layers it has the weights that they compute with.
        """
        state: dict[str, Tensor] = {**dict(self.lm.named_parameters()), **dict(full_weights(self.lm))}
        for path, module in self.lm.named_modules():
            for name, buffer in module.named_buffers(path, recurse=False):
                if name.rpartition(".")[2] not in module._non_persistent_buffers_set:
                    state[name] = buffer
        return {name: value.detach() for name, value in state.items()}

    def with_weights(self, work: Callable[[], T]) -> T:
        """Call `work`, which uses weights other than by calling the language model.

        A strategy that shards the weights replaces this method by one that gathers them first.
        """
        return work()

    def hidden_states(self, ids: Tensor, attention_mask: Tensor, needed: Tensor) -> Tensor:
        """Last hidden states, [R, L, hidden size], before the head; call it in `with_weights`.

        Args:
            ids: Rows padded on the right, [R, L].
            attention_mask: True at tokens, False at padding, [R, L].
            needed: True at the positions whose states are read, [R, L]; the states of others may be anything.
        """
        if self.fast_updates and self.support.shared_prefixes:
            from collm.kernels import shared_prefix

            return shared_prefix.hidden_states(self.lm, ids, attention_mask, needed)
        return last_hidden_states(self.lm, ids)

    def logits(self, states: Tensor) -> Tensor:
        """Logits [M, V] of last hidden states [M, hidden size], with the model's own scaling; in `with_weights`."""
        return self.lm.get_output_embeddings()(states) if self.support.plain_head else logits_of(self.lm, states)
