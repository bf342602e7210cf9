"""Whole networks on different devices of one process, for models of which each fills a card.

Nothing is split or repeated: an agent's weights, gradients and optimizer states are where the agent is. Text and a few
numbers per turn travel between devices. Agents on different devices answer at the same time.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from typing import Any

import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from collm.errors import ConfigurationError


class Placed(SingleDeviceStrategy):
    """One process with every network on a device of its own.

    Args:
        devices: Device of each network by its name, such as `{helper: cuda:0, main: cuda:1, critic: cuda:2}`: the
            agents (`team` where parameters are shared) and the critics. By default they are dealt out, in that order,
            to the GPUs there are.
    """

    def __init__(self, devices: dict[str, str] | None = None):
        super().__init__("cuda:0" if torch.cuda.is_available() else "cpu")
        self.devices = dict(devices or {})

    def connect(self, model: Any) -> None:
        """Tell an algorithm, whose weights are not loaded yet, where each network belongs."""
        super().connect(model)
        if model.parameters_mode == "lora":
            raise ConfigurationError(
                "model.parameters is 'lora', where agents and critics stand on one model, which cannot be on several "
                "devices; use 'separate', or another strategy."
            )
        if any(spec.engine == "vllm" for spec in model.specs.values()):
            raise ConfigurationError("engine 'vllm' takes the first GPU for itself; choose collm for placed agents.")
        names = model.networks()
        if not self.devices:
            cards = [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cpu"]
            self.devices = dict(zip(names, cycle(cards), strict=False))
        if sorted(self.devices) != sorted(names):
            raise ConfigurationError(
                f"trainer.strategy.devices names {', '.join(self.devices)}; it must name each network of this run: "
                f"{', '.join(names)}."
            )
        model.network_devices = {name: existing(name, device) for name, device in self.devices.items()}
        self._root_device = model.network_devices[names[0]]
        rank_zero_info("placed: " + ", ".join(f"{name} on {model.network_devices[name]}" for name in names))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        # Lightning's own collects them all on the root device
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(state)


def existing(name: str, device: str) -> torch.device:
    """The device called `device`, which is for the network `name`."""
    try:
        return torch.empty(0, device=device).device
    except (AssertionError, RuntimeError) as error:  # the former where torch is built without its kind
        cards = ", ".join(f"cuda:{index}" for index in range(torch.cuda.device_count()))
        raise ConfigurationError(
            f"trainer.strategy.devices.{name} is {device!r}, which is not here; there is cpu"
            f"{', ' + cards if cards else ', and no GPU that torch can use'}."
        ) from error
