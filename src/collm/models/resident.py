"""Modules that can be pinned to a device, so that moving the parent module does not move them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Resident(nn.Module):
    """A module that moves with its parent module unless it is pinned to a device.

    Attributes:
        home: The device it is pinned to; None if it is not pinned.
    """

    home: torch.device | None = None

    def keep_on(self, home: torch.device | None) -> None:
        """Move to `home` and pin it there; None unpins it."""
        self.home = home
        if home is not None:
            self.to(home)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Resident:
        home = self.home
        return super()._apply(fn if home is None else lambda tensor: fn(tensor).to(home), recurse)
