"""What a run takes: time by phase, speed, padding and memory."""

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
    """Logs after every update what it and its rollout took.

    `time/...` are seconds of this process: `generate`, `environment`, `values` (of critics, before the update),
    `update/policy`, `update/critic` and `other` add up to the time since the update before, evaluations apart;
    `rollout` and `update` are the same time in two parts. `throughput/tokens_per_second` counts sampled tokens and
    `throughput/joint_samples_per_hour` joint actions with a reward, of all processes, in that time. `padding_share`,
    of `rollout` and `update`, is the share of computed tokens that belong to no sequence. `memory/peak_rss_gb` is the
    most main memory held so far, weights and libraries included, `memory/peak_cuda_gb` what PyTorch has
    allocated on the fullest of the run's CUDA devices; both in units of 10^9 bytes.

    Args:
        synchronize: Wait for the GPU at the borders of phases, so that its time counts where it is spent; the run
            gets slower by it.
    """

    def __init__(self, synchronize: bool = False):
        self.synchronize = synchronize
        self.reading = Reading({}, {}, {})  # of the last update
        self._update_began = 0.0
        self._interrupted = Reading({}, {}, {})

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        for name, policy in pl_module.policies.items():
            if policy.slower:
                rank_zero_info(f"{name}: {policy.slower}, which is slower: its model is not one of the fastest kinds.")
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
        num_tokens = sum(len(action.token_ids) for action in distinct_actions(batch.trajectories))
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
        for name, gigabytes in peak_memory(pl_module.device, *pl_module.places.values()).items():
            pl_module.log(f"memory/{name}", gigabytes)


def peak_memory(*devices: torch.device) -> dict[str, float]:
    """The most memory held so far, of GPUs that of the fullest one, in units of 10^9 bytes."""
    # kilobytes everywhere but on macOS
    unit = 1 if sys.platform == "darwin" else 1024
    peaks = {"peak_rss_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9}
    held = [torch.cuda.max_memory_allocated(device) for device in devices if device.type == "cuda"]
    if held:
        peaks["peak_cuda_gb"] = max(held) / 1e9
    return peaks
