"""Measures the rounds of a `fit` run; a round is one rollout and one update."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning as L
import torch

from collm.benchmark.floor import Floor
from collm.callbacks.resources import LogResources, peak_memory
from collm.errors import ConfigurationError
from collm.runtime.collectives import sum_over_ranks
from collm.runtime.files import write_text
from collm.runtime.profiler import meter
from collm.trajectory import RolloutBatch, distinct_actions

MARK = "@round "


class Rounds(L.Callback):
    """Writes the measurements of every round to a JSON file; must come after `LogResources` in the callbacks.

    Args:
        path: File to write.
        warmup: Number of first rounds to leave out.
        floor: Repeat the work of every round with the floor, for comparison.
        in_turn: Print the measurements of every round to standard output, and start the next round only after a line
            on standard input, so that several processes can be measured alternately.
    """

    def __init__(self, path: str, warmup: int = 1, floor: bool = True, in_turn: bool = False):
        self.path = path
        self.warmup = warmup
        self.with_floor = floor
        self.in_turn = in_turn
        self.rounds: list[dict[str, Any]] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if self.with_floor and trainer.world_size > 1:
            raise ConfigurationError("the floor runs in one process; give --no-floor with several processes.")
        self.floor = Floor(pl_module) if self.with_floor else None
        self._wait(trainer)

    def on_train_batch_start(self, *args: Any) -> None:
        self._update_began = meter.clock()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: RolloutBatch, *args: Any
    ) -> None:
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        reading = next(callback for callback in callbacks if isinstance(callback, LogResources)).reading
        actions = distinct_actions(batch.played)
        sizes = (
            batch.joint_samples,
            sum(len(action.prompt_ids) for action in actions),
            sum(len(action.token_ids) for action in actions),
        )
        totals = sum_over_ranks(torch.tensor(sizes), pl_module.device).tolist()
        record = {
            "seconds": reading.wall_time,
            "update_seconds": meter.clock() - self._update_began,
            "phases": reading.seconds,
            **dict(zip(("joint_samples", "prompt_tokens", "sampled_tokens"), totals, strict=True)),
            "padding_share": {
                "rollout": reading.padding_share("generate"),
                "update": reading.padding_share("values", "update"),
            },
        }
        if self.floor:
            phases = self.floor.round(batch)
            record["floor"] = {"seconds": sum(phases.values()), "phases": phases}
        self.rounds.append(record)
        if self.in_turn and trainer.is_global_zero:
            print(MARK + json.dumps(record), flush=True)
        self._wait(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        result = {
            "num_threads": torch.get_num_threads(),
            "clock": meter.clock.__name__,
            "device": str(pl_module.device),
            "warmup": self.warmup,
            "memory": peak_memory(pl_module.device),
            "rounds": self.rounds,
            "summary": summarize(self.rounds[self.warmup :]),
        }
        if trainer.is_global_zero:
            write_text(self.path, json.dumps(result, indent=1))

    def _wait(self, trainer: L.Trainer) -> None:
        """Wait for the line that starts the next round; this time is not measured."""
        if self.in_turn and trainer.is_global_zero:
            sys.stdin.readline()
        trainer.strategy.barrier()
        meter.take()


def summarize(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Medians over rounds; with a floor also the ratio of the medians, and the range of the ratios of single rounds.

    Raises:
        statistics.StatisticsError: There are no rounds.
    """

    def median(read: Callable[[Mapping[str, Any]], float]) -> float:
        return statistics.median(map(read, rounds))

    def medians(part: Callable[[Mapping[str, Any]], Mapping[str, float]]) -> dict[str, float]:
        return {name: statistics.median(part(one)[name] for one in rounds) for name in part(rounds[0])}

    seconds = median(lambda one: one["seconds"])
    summary = {
        "num_rounds": len(rounds),
        "seconds": seconds,
        "seconds_range": [min(one["seconds"] for one in rounds), max(one["seconds"] for one in rounds)],
        "phases": medians(lambda one: one["phases"]),
        "update_seconds": median(lambda one: one["update_seconds"]),
        "joint_samples_per_hour": 3600 * median(lambda one: one["joint_samples"] / one["seconds"]),
        "tokens_per_second": median(lambda one: one["sampled_tokens"] / one["seconds"]),
        "generated_tokens_per_second": median(lambda one: one["sampled_tokens"] / one["phases"]["generate"]),
        "padding_share": medians(lambda one: one["padding_share"]),
        "overhead_share": median(overhead_share),
    }
    if "floor" in rounds[0]:
        floor = median(lambda one: one["floor"]["seconds"])
        ratios = [one["seconds"] / one["floor"]["seconds"] for one in rounds]
        summary["floor"] = {
            "seconds": floor,
            "phases": medians(lambda one: one["floor"]["phases"]),
            "ratio": seconds / floor,
            "ratio_range": [min(ratios), max(ratios)],
        }
    return summary


def overhead_share(one: Mapping[str, Any]) -> float:
    """Share of a round's time outside of model calls: environment, collation, logging, Lightning."""
    return (one["phases"]["other"] + one["phases"]["environment"]) / one["seconds"]
