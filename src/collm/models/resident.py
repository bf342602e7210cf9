"""Modules that stay on a device of their own when the module that holds them is moved."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Resident(nn.Module):
    """A module that moves with the one that holds it, until it is told to stay on a device.

    Attributes:
        home: The device on which it stays; None where it moves along.
    """

    home: torch.device | None = None

    def keep_on(self, home: torch.device | None) -> None:
        """Move to `home` and stay there; None moves along with the holder."""
        self.home = home
        if home is not None:
            self.to(home)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Resident:
        home = self.home
        return super()._apply(fn if home is None else lambda tensor: fn(tensor).to(home), recurse)
