"""Resources that a run uses: time by phase, throughput, padding and memory."""

from __future__ import annotations

import resource
import sys
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from collm.runtime.collectives import sum_over_ranks
from collm.runtime.profiler import Reading, meter
from collm.trajectory import RolloutBatch, distinct_actions


class LogResources(L.Callback):
    """Logs after every update the resources that it and its rollout used.

    `time/...` are seconds of this process: `generate`, `environment`, `values` (of critics, before the update),
    `update/policy`, `update/critic` and `other` add up to the time since the previous update, without evaluations;
    `rollout` and `update` split the same time in two. `throughput/tokens_per_second` counts sampled tokens and
    `throughput/joint_samples_per_hour` joint actions with a reward, of all processes, in that time, also those of
    episodes that failed or were replaced. `padding_share` of `rollout` and `update` is the share of padding among the
    computed tokens. `memory/peak_rss_gb` is the peak main memory of the process so far, including weights and
    libraries. `memory/peak_cuda_gb` is the peak memory that PyTorch has allocated on the fullest of the run's CUDA
    devices. Both are in units of 10^9 bytes.

    Args:
        synchronize: Wait for the GPU at the start and end of phases, so that its time counts in the right phase; this
            slows down the run.
    """

    def __init__(self, synchronize: bool = False):
        self.synchronize = synchronize
        self.reading = Reading({}, {}, {})  # measurements of the last update
        self._update_began = 0.0
        self._interrupted = Reading({}, {}, {})

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        for agent_id, how in trainer.datamodule.actors.slower().items():
            rank_zero_info(f"{agent_id}: {how}, which is slower: its model is not one of the fastest kinds.")
        meter.synchronize = self.synchronize
        meter.take()

    def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._interrupted = meter.take()

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        meter.take()
        meter.put(self._interrupted)

    def on_train_batch_start(self, *args: Any) -> None:
        self._update_began = meter.clock()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: RolloutBatch, *args: Any
    ) -> None:
        self.reading = reading = meter.take()
        num_tokens = sum(len(action.token_ids) for action in distinct_actions(batch.played))
        totals = sum_over_ranks(torch.tensor([num_tokens, batch.joint_samples]), pl_module.device).tolist()
        scalars = {f"time/{name}": seconds for name, seconds in reading.seconds.items()} | {
            "time/update": meter.clock() - self._update_began,
            "throughput/tokens_per_second": totals[0] / reading.wall_time,
            "throughput/joint_samples_per_hour": 3600 * totals[1] / reading.wall_time,
            "rollout/padding_share": reading.padding_share("generate"),
            "update/padding_share": reading.padding_share("values", "update"),
        }
        for name, value in scalars.items():
            pl_module.log(name, value)
        for name, gigabytes in peak_memory(pl_module.device, *pl_module.network_devices.values()).items():
            pl_module.log(f"memory/{name}", gigabytes)


def peak_memory(*devices: torch.device) -> dict[str, float]:
    """Peak memory so far, in units of 10^9 bytes; of several GPUs the largest value."""
    # ru_maxrss is in kilobytes, except on macOS
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = {"peak_rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9}
    allocated = [torch.cuda.max_memory_allocated(device) for device in devices if device.type == "cuda"]
    if allocated:
        peaks["peak_cuda_gb"] = max(allocated) / 1e9
    return peaks
