"""Modules with a device of their own, where they stay whatever happens to the module that holds them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Resident(nn.Module):
    """A module that goes along with the one that holds it until it has settled somewhere."""

    home: torch.device | None = None

    def settle(self, home: torch.device | None) -> Resident:
        """Move to `home` and stay there; None: go along as before."""
        self.home = home
        return self if home is None else self.to(home)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Resident:
        home = self.home
        return super()._apply(fn if home is None else lambda tensor: fn(tensor).to(home), recurse)
