"""How much memory a run takes."""

from __future__ import annotations

import resource
import sys
from typing import Any

import lightning as L
import torch


class LogResources(L.Callback):
    """Logs the most memory the process has held so far, after every update.

    `memory/peak_rss_gb` is main memory, weights and libraries included; `memory/peak_cuda_gb` is what PyTorch has
    allocated on the run's CUDA device. Both in units of 10^9 bytes.
    """

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        for name, gigabytes in peak_memory(pl_module.device).items():
            pl_module.log(f"memory/{name}", gigabytes)


def peak_memory(device: torch.device) -> dict[str, float]:
    """The most memory held so far, in units of 10^9 bytes."""
    # kilobytes everywhere but on macOS
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = {"peak_rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9}
    if device.type == "cuda":
        peaks["peak_cuda_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
    return peaks
