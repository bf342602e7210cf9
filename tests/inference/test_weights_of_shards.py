"""Agents whose weights are sharded over two processes and that servers sample."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from collm.errors import TrainingError
from collm.inference.endpoint import engine
from collm.models.endpoint_spec import EndpointSpec
from collm.serving.weights import Weights
from curves import scalars
from pair import Run, fit_in_pair
from served import served, team
from toy import toy_config


def config(path: str, url: str) -> dict[str, Any]:
    """Two updates of one agent."""
    made = toy_config(path)
    given = made["model"]["init_args"]
    del given["critic"]
    made["model"]["class_path"] = "collm.algorithms.magrpo.MAGRPO"
    endpoint = EndpointSpec(url, model="a1", trained=True, retries=0)
    given["policy"] |= {"engine": "endpoint", "endpoint": endpoint, "learning_rate": 0.02, "top_p": 0.9}
    made["data"] |= {"environment": {"class_path": "toy.Toy", "init_args": {"num_agents": 1}}, "num_generations": 4}
    return made


@contextmanager
def pushes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Numbers of the updates whose weights reached a server."""
    versions: list[int] = []
    load = Weights.load

    def kept(weights: Weights, content: bytes, version: str) -> None:
        load(weights, content, version)
        versions.append(int(version.partition(":")[2]))

    with monkeypatch.context() as patch:
        patch.setattr(Weights, "load", kept)
        yield versions


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", {"sampling": "gathered"}, {"sampling": "synchronized"}], ids=str)
def test_the_first_process_pushes_the_full_weights_once_per_update(
    strategy: Any, tmp_path: Path, tiny_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = team(tiny_folder)["a1"]
    with served(there, trainable=True) as url, pushes(monkeypatch) as versions:
        fit_in_pair(tmp_path, [Run(str(tmp_path / "run"), config(tiny_folder, url), strategy)], 120, "spawn")
    assert versions == [0, 1, 2]  # two updates, and the evaluation after the last
    logs = tmp_path / "run" / "logs" / "collm" / "version_0"
    trained = torch.load(logs / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for name, weight in there.backbone.own_state().items():
        torch.testing.assert_close(weight, trained[f"backbones.<a1>.lm.{name}"], rtol=0, atol=0)
    drift = scalars(logs)["policy/log_prob_drift/a1"]
    assert len(drift) == 2
    assert max(drift) < 1e-4


@dataclass
class Failing(Run):
    """A run whose pushes fail; each of its processes leaves why it stopped."""

    broken: bool = False  # by an error that no server has to do with

    def fit(self) -> L.Trainer:
        def push(*args: Any) -> None:
            raise MemoryError("no room for them")

        with pytest.MonkeyPatch.context() as patch:
            if self.broken:
                patch.setattr(engine, "push", push)
            with pytest.raises(TrainingError) as stopped:
                super().fit()
        Path(self.folder, f"stopped_{os.environ['LOCAL_RANK']}").write_text(str(stopped.value))
        return None  # type: ignore[return-value]


@pytest.mark.slow
def test_a_push_that_fails_stops_every_process(tmp_path: Path, tiny_folder: str) -> None:
    with served(team(tiny_folder)["a1"]) as url:  # which keeps its weights
        given = config(tiny_folder, url), {}
        runs = [Failing(str(tmp_path / str(broken)), *given, broken=broken) for broken in (False, True)]
        fit_in_pair(tmp_path, runs, 120, "spawn")
    for broken, says in ((False, "did not reach"), (True, "MemoryError")):
        stopped = [path.read_text() for path in (tmp_path / str(broken)).glob("stopped_*")]
        assert len(stopped) == 2
        assert all(says in why for why in stopped), stopped
