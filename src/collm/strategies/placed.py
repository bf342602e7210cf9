"""One device for each network, in one process, for models that each fill a GPU.

Nothing is sharded or replicated: the weights, gradients and optimizer states of an agent are on its device. Only text
and a few numbers per turn move between devices. Agents on different devices answer at the same time.
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
    """One process with every network on its own device.

    Args:
        devices: Device of each network by name, such as `{helper: cuda:0, main: cuda:1, critic: cuda:2}`: first the
            agents (`team` where parameters are shared), then the critics. By default they are assigned to the
            available GPUs in that order.
    """

    def __init__(self, devices: dict[str, str] | None = None):
        super().__init__("cuda:0" if torch.cuda.is_available() else "cpu")
        self.devices = dict(devices or {})

    def connect(self, model: Any) -> None:
        """Tell an algorithm the device of each network, before its weights are loaded."""
        super().connect(model)
        if model.parameters_mode == "lora":
            raise ConfigurationError(
                "model.parameters is 'lora', where agents and critics share one model, which cannot be on several "
                "devices; use 'separate', or another strategy."
            )
        if any(spec.engine == "vllm" for spec in model.specs.values()):
            raise ConfigurationError("engine 'vllm' always uses the first GPU; choose engine collm for this strategy.")
        names = model.networks()
        if not self.devices:
            gpus = [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cpu"]
            self.devices = dict(zip(names, cycle(gpus), strict=False))
        if sorted(self.devices) != sorted(names):
            raise ConfigurationError(
                f"trainer.strategy.devices names {', '.join(self.devices)}; it must name each network of this run: "
                f"{', '.join(names)}."
            )
        model.network_devices = {name: available_device(name, device) for name, device in self.devices.items()}
        self._root_device = model.network_devices[names[0]]
        rank_zero_info("placed: " + ", ".join(f"{name} on {model.network_devices[name]}" for name in names))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        # Lightning's own method moves all states to the root device
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(state)


def available_device(name: str, device: str) -> torch.device:
    """The device called `device`, for the network `name`; refuses a device that does not exist."""
    try:
        return torch.empty(0, device=device).device
    except (AssertionError, RuntimeError) as error:  # the former if torch is built without support for the device type
        gpus = ", ".join(f"cuda:{index}" for index in range(torch.cuda.device_count()))
        raise ConfigurationError(
            f"trainer.strategy.devices.{name} is {device!r}, which is not available; there is cpu"
            f"{', ' + gpus if gpus else ', and no GPU that torch can use'}."
        ) from error
