"""Sampling from sharded models without gathering all their weights: all ranks make the same sequence of forward passes.

A forward pass of a sharded model needs every rank, but ranks play different episodes: responses end at different
tokens, episodes at different turns, and a rank may have no episodes at all. So before each pass the ranks agree on the
model that runs next. A rank that needs another model, or is done, takes part with a pass over a single token.
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
        device: The device of their computations.
    """

    def __init__(self, lms: Sequence[nn.Module], device: torch.device):
        self.lms = list(lms)
        self.device = device
        self._helping = False

    @contextmanager
    def running(self) -> Iterator[None]:
        """Context for sampling; all ranks have to enter it, and leave it when the last rank is done."""

        def before(lm: nn.Module, args: Any) -> None:
            if not self._helping:
                self._wait_for(self.lms.index(lm))

        # before the hook that gathers the weights
        handles = [lm.register_forward_pre_hook(before, prepend=True) for lm in self.lms]
        try:
            yield
            self._wait_for(len(self.lms))
        finally:
            for handle in handles:
                handle.remove()

    def _wait_for(self, wanted: int) -> None:
        """Return when all ranks run model number `wanted`; the number of models stands for no model at all."""
        while True:
            agreed = torch.tensor(wanted, device=self.device)
            dist.all_reduce(agreed, dist.ReduceOp.MIN)
            if int(agreed) == wanted:
                return
            self._helping = True
            with torch.no_grad():
                self.lms[int(agreed)](
                    input_ids=torch.zeros(1, 1, dtype=torch.long, device=self.device), use_cache=False
                )
            self._helping = False
