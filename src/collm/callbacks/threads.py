"""How many threads torch uses for small models on a processor."""

from __future__ import annotations

import os
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from collm.runtime.checks import COUNT, check_number

SMALL = (
    20_000_000  # parameters; dividing products of matrices this small among threads takes longer than computing them
)


class ChooseThreads(L.Callback):
    """Computes with one thread if all models are small (under 20 million parameters) and on the processor.

    With the shipped models a run with two threads takes three to four times as long as with one. `OMP_NUM_THREADS`, if
    it is set, or `num_threads` decides instead.

    Args:
        num_threads: Number of threads; by default as described.
    """

    def __init__(self, num_threads: int | None = None):
        self.num_threads = check_number("ChooseThreads.num_threads", num_threads, COUNT.or_none)

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        wanted = self.num_threads
        if wanted is None and not os.environ.get("OMP_NUM_THREADS") and pl_module.device.type == "cpu":
            sizes = [sum(weight.numel() for weight in one.parameters()) for one in pl_module.backbones.values()]
            wanted = 1 if max(sizes, default=0) < SMALL else None
        if wanted is not None and wanted != torch.get_num_threads():
            torch.set_num_threads(wanted)
            rank_zero_info(
                f"torch uses {wanted} thread(s), as ChooseThreads.num_threads says"
                if self.num_threads
                else "torch uses one thread, with which small models are fastest; OMP_NUM_THREADS can say otherwise"
            )

    on_validation_start = on_fit_start
    on_test_start = on_fit_start
    on_predict_start = on_fit_start
