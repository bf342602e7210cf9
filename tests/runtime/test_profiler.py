"""Time by phase: by hand with a clock that ticks, and in a run against the clock on the wall."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch

from collm.callbacks.resources import LogResources
from collm.inference.embedded.forward import cached_model
from collm.inference.embedded.generation import generate
from collm.inference.sampling import Sampling
from collm.models.backbone import Backbone
from collm.runtime.profiler import Meter, Reading, meter
from collm.trajectory import Action, Task, Trajectory, Turn, collate, distinct_actions
from curves import scalars


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self):
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_nested_phase_pauses_the_outer_phase() -> None:
    clock = Clock()
    meter = Meter(clock)
    clock.now += 1
    with meter.phase("update/policy"):
        clock.now += 2
        with meter.phase("generate"):
            clock.now += 4
        clock.now += 8
    with meter.phase("generate"):
        clock.now += 16
    clock.now += 32
    reading = meter.take()
    assert reading.seconds == {"other": 33, "update/policy": 10, "generate": 20}
    assert reading.wall_time == 63
    clock.now += 1
    assert meter.take().seconds == {"other": 1}


def test_a_phase_that_fails_ends() -> None:
    clock = Clock()
    meter = Meter(clock)

    @meter.phase("generate")
    def fail() -> None:
        clock.now += 2
        raise ValueError("broken")

    for _ in range(2):
        with pytest.raises(ValueError, match="broken"):
            fail()
    clock.now += 3
    assert meter.take().seconds == {"other": 3, "generate": 4}


def test_time_to_compute_items_counts_as_their_own_phase() -> None:
    clock = Clock()
    meter = Meter(clock)

    def items():
        for number in range(3):
            clock.now += 1
            yield number

    with meter.phase("update/critic"):
        for _ in meter.each("other", items()):
            clock.now += 10
    assert meter.take().seconds == {"other": 3, "update/critic": 30}


def test_an_earlier_reading_can_be_added_back() -> None:
    clock = Clock()
    meter = Meter(clock)
    clock.now += 1
    meter.count(3, 4)
    before = meter.take()
    clock.now += 50
    meter.take()
    meter.put(before)
    clock.now += 2
    assert meter.take() == Reading({"other": 3}, {"other": 3}, {"other": 4})


def test_a_thread_in_aside_counts_tokens_but_no_time() -> None:
    clock = Clock()
    meter = Meter(clock)

    def work() -> None:
        with meter.aside():
            meter.count(1, 2)
            with meter.phase("values"):
                clock.now += 4
                meter.count(8, 16)
            meter.count(32, 64)

    with meter.phase("generate"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        clock.now += 1
    clock.now += 2
    assert meter.take() == Reading(
        {"other": 2, "generate": 5}, {"generate": 33, "values": 8}, {"generate": 66, "values": 16}
    )


def test_padding_share() -> None:
    meter = Meter()
    for phase, useful, computed in (("generate", 8, 10), ("update/policy", 6, 10), ("update/critic", 30, 30)):
        with meter.phase(phase):
            meter.count(useful, computed)
    reading = meter.take()
    assert reading.padding_share("generate") == pytest.approx(0.2)
    assert reading.padding_share("update") == pytest.approx(0.1)
    assert reading.padding_share("generate", "update") == pytest.approx(6 / 50)
    assert reading.padding_share("up") == 0


def test_decoding_counts_what_it_computes(tiny_folder: str) -> None:
    model = cached_model([(Backbone(tiny_folder, "float32"), None)])
    prompts = [[5, 6, 7], [8], [8]]  # the equal ones are read once: 6 positions in the prefill, 4 of them prompt
    meter.take()
    generate(model, prompts, Sampling(6, min_new_tokens=6), [], torch.Generator().manual_seed(0))
    reading = meter.take()
    # of 6 tokens each the last is not read
    assert reading.useful["generate"] == 4 + 3 * 5
    assert reading.computed["generate"] == 6 + 3 * 5


def test_shared_actions_count_once() -> None:
    shared, own = Action("a", token_ids=[1, 2]), Action("b", token_ids=[3])
    turns = [
        Turn({"x": "?", "y": "?"}, {"x": shared, "y": own}, 1.0),
        Turn({"x": "?", "y": "?"}, {"x": shared, "y": shared}, 0.0),
    ]
    batch = collate([Trajectory(Task("t", {}), 0, 1, 1.0, [turn]) for turn in turns])
    assert distinct_actions(batch.trajectories) == [shared, own]


class Watch(LogResources):
    """Reads the clock on the wall wherever the meter is read."""

    walls: list[float] = []  # seconds from update to update without evaluations
    readings: list[Reading] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.since = time.perf_counter()
        super().on_train_start(trainer, pl_module)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.began = time.perf_counter()
        super().on_validation_start(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.since += time.perf_counter() - self.began
        super().on_validation_end(trainer, pl_module)

    def on_train_batch_end(self, *args: Any) -> None:
        now = time.perf_counter()
        self.walls.append(now - self.since)
        self.since = now
        super().on_train_batch_end(*args)
        self.readings.append(self.reading)


def test_the_phases_of_a_run_add_up_to_its_time(fit: Callable[..., int], run_folder: Path) -> None:
    Watch.walls.clear()
    Watch.readings.clear()
    assert fit("--data.rollouts_per_epoch=3", "--trainer.callbacks=[test_profiler.Watch]") == 0
    assert len(Watch.walls) == len(Watch.readings) == 6
    for wall, reading in zip(Watch.walls, Watch.readings, strict=True):
        phases = {"generate", "environment", "values", "update/policy", "update/critic", "other"}
        assert reading.seconds.keys() == phases
        assert all(seconds > 0 for seconds in reading.seconds.values())
        assert reading.wall_time == pytest.approx(wall, abs=5e-3)
    curves = scalars(run_folder)
    for name in phases:
        logged = curves[f"time/{name}"]
        assert logged == pytest.approx([reading.seconds[name] for reading in Watch.readings])


def test_throughput_counts_rollout_and_update(monkeypatch: pytest.MonkeyPatch) -> None:
    reading = Reading({"generate": 3.0, "other": 1.0}, {"generate": 9}, {"generate": 10})
    monkeypatch.setattr(meter, "take", lambda: reading)
    turn = Turn({"x": "?"}, {"x": Action("a", token_ids=[1] * 8)}, 1.0)
    logged = {}
    module = SimpleNamespace(device=torch.device("cpu"), network_devices={}, log=logged.__setitem__)
    batch = collate([Trajectory(Task("t", {}), 0, 1, 1.0, [turn])])
    LogResources().on_train_batch_end(None, module, None, batch, 0)
    assert logged["throughput/tokens_per_second"] == 2
    assert logged["throughput/joint_samples_per_hour"] == 900
    assert logged["rollout/padding_share"] == pytest.approx(0.1)
    assert logged["time/generate"] == 3
    # of a failed episode and of a replaced one too: 8 + 4 + 4 tokens and 3 joint samples in 4 seconds
    others = [Turn({"x": "?"}, {"x": Action("a", token_ids=[1] * 4)}, 1.0) for _ in range(2)]
    batch.left_out, batch.replaced = ([Trajectory(Task("t", {}), 0, 1, 1.0, [one])] for one in others)
    LogResources().on_train_batch_end(None, module, None, batch, 0)
    assert logged["throughput/tokens_per_second"] == 4
    assert logged["throughput/joint_samples_per_hour"] == 2700
