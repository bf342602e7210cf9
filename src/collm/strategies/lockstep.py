"""Sampling from sharded models without gathering them whole: all ranks make the same forward passes, in one order.

A forward pass of a sharded model needs every rank, but ranks play different episodes: responses end at different
tokens, episodes at different turns, and a rank may have none at all. So before each pass the ranks agree whose model
runs next. A rank that wanted another one, or none any more, takes part with a pass of a single token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


class Lockstep:
    """Keeps the forward passes of several ranks in step while `running`.

    Args:
        lms: The models that are sampled from, in the same order on all ranks.
        device: Where they compute.
    """

    def __init__(self, lms: Sequence[nn.Module], device: torch.device):
        self.lms = list(lms)
        self.device = device
        self.passes = 0  # forward passes of this rank, those for others included
        self._helping = False

    @contextmanager
    def running(self) -> Iterator[None]:
        """All ranks have to enter and leave; the last to finish keeps the others."""

        def before(lm: nn.Module, args: Any) -> None:
            if not self._helping:
                self._wait_for(self.lms.index(lm))

        # in front of the hook that gathers the weights
        handles = [lm.register_forward_pre_hook(before, prepend=True) for lm in self.lms]
        try:
            yield
            self._wait_for(len(self.lms))
        finally:
            for handle in handles:
                handle.remove()

    def _wait_for(self, wish: int) -> None:
        """Return when it is the turn of model `wish` on all ranks, or when nobody wants any of them."""
        while True:
            agreed = torch.tensor(wish, device=self.device)
            dist.all_reduce(agreed, dist.ReduceOp.MIN)
            self.passes += int(agreed) < len(self.lms)
            if int(agreed) == wish:
                return
            self._helping = True
            with torch.no_grad():
                self.lms[int(agreed)](
                    input_ids=torch.zeros(1, 1, dtype=torch.long, device=self.device), use_cache=False
                )
            self._helping = False
