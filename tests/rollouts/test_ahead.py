"""The next rollout is generated before or, on servers, during an update, with policies one update behind."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
import yaml

from collm.data import RolloutDataModule
from collm.errors import ConfigurationError
from collm.models.policy import Policy
from collm.rollouts.ahead import before_updates, beside_updates
from collm.studies.runs import read_run
from collm.trajectory import RolloutBatch, distinct_actions
from on_policy import log_ratios
from served import served, team
from toy import Toy

SECONDS = 30.0


class Events:
    """Agents and rollouts that note what happens, in order."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.updated = threading.Event()
        self.given_up = threading.Event()

    @contextmanager
    def serving(self) -> Iterator[Any]:
        self.log.append("weights")
        yield SimpleNamespace(rest=self.given_up.set)
        self.log.append("end")

    def rollout(self, number: int, play: Callable[[], Any]) -> tuple[int, Callable[[Any], Any]]:
        def played(actors: Any) -> Any:
            return play() or number

        return number, played


def test_a_rollout_begins_before_the_update_of_the_one_in_front_of_it_and_ends_after() -> None:
    """Number 1 ends only when the learner, which has number 0, updates: in order, both would wait for ever."""
    events = Events()
    plays = [events.rollout(0, lambda: None), events.rollout(1, lambda: (events.updated.wait(SECONDS), None)[1])]
    seen, drawn = [], []
    for batch in beside_updates(plays, events.serving):
        seen.append(batch)
        drawn.append(torch.initial_seed())
        events.log.append(f"update {batch}")
        events.updated.set()
    assert events.updated.is_set()
    assert (seen, drawn) == ([0, 1], [0, 1])
    assert events.log[:4] == ["weights", "end", "weights", "update 0"]
    assert events.log[4:] == ["end", "update 1"]
    assert not events.given_up.is_set()


def test_in_this_process_a_rollout_is_played_before_the_update_of_the_one_in_front_of_it() -> None:
    """Updates draw their random numbers from the seed of their own rollout."""
    log: list[str] = []

    def playing(number: int) -> tuple[int, Callable[[], Any]]:
        def play() -> Any:
            log.append(f"play {number} with {torch.initial_seed()}")
            return number

        return 10 + number, play

    for batch in before_updates(map(playing, range(3))):
        log.append(f"update {batch} with {torch.initial_seed()}")
    assert log[:3] == ["play 0 with 10", "play 1 with 11", "update 0 with 10"]
    assert log[3:] == ["play 2 with 12", "update 1 with 11", "update 2 with 12"]
    assert list(before_updates(map(playing, range(1)))) == [0]
    assert list(before_updates([])) == []


def test_a_learner_that_stops_waits_for_no_answers() -> None:
    events = Events()
    plays = [events.rollout(0, lambda: None), events.rollout(1, lambda: (events.given_up.wait(SECONDS), None)[1])]
    rollouts = beside_updates(plays, events.serving)
    assert next(rollouts) == 0
    rollouts.close()
    assert events.given_up.is_set()


def test_what_goes_wrong_beside_an_update_stops_the_run() -> None:
    def broken() -> None:
        raise RuntimeError("a reward broke")

    events = Events()
    rollouts = beside_updates([events.rollout(0, lambda: None), events.rollout(1, broken)], events.serving)
    assert next(rollouts) == 0
    with pytest.raises(RuntimeError, match="a reward broke"):
        next(rollouts)


class Recomputed(L.Callback):
    """Compares the log-probabilities of every rollout with those of all weights so far."""

    weights: list[dict[str, torch.Tensor]] = []
    gaps: list[list[float]] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: RolloutBatch, batch_idx: int) -> None:
        policy: Policy = pl_module.policies["a1"]
        now = {name: value.clone() for name, value in policy.backbone.lm.state_dict().items()}
        Recomputed.weights.append(now)
        actions = [turn.actions["a1"] for path in batch.trajectories for turn in path.turns]
        assert {action.absent for action in distinct_actions(batch.trajectories)} == {""}
        gaps = []
        for weights in Recomputed.weights:
            policy.backbone.lm.load_state_dict(weights)
            gaps.append(log_ratios(policy, actions).abs().max().item())
        policy.backbone.lm.load_state_dict(now)
        Recomputed.gaps.append(gaps)


OPTIONS = [
    "--model=MAGRPO",
    "--data.num_generations=2",
    "--data.rollouts_per_epoch=3",
    "--trainer.max_epochs=1",
    "--data.max_staleness=1",
    "--trainer.callbacks+=test_ahead.Recomputed",
]


def check_run(folder: Path) -> None:
    """Rollouts 0 and 1 are of the first policies and rollout 2 of those after one update; so are log-probabilities."""
    logged = read_run(folder).scalars
    assert list(logged["rollout/policy_version"].values()) == [0, 0, 1]
    assert list(logged["rollout/staleness"].values()) == [0, 1, 1]
    first_gaps, second_gaps, third_gaps = Recomputed.gaps
    assert first_gaps[0] < 1e-4
    assert second_gaps[0] < 1e-4 < second_gaps[1]
    assert third_gaps[1] < 1e-4 < min(third_gaps[0], third_gaps[2])
    assert list(logged["policy/log_prob_drift/a1"].values())[1] > 1e-5


@pytest.fixture(autouse=True)
def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Recomputed, "weights", [])
    monkeypatch.setattr(Recomputed, "gaps", [])


def test_a_run_in_this_process_learns_from_rollouts_of_the_policies_before(
    fit: Callable[..., int], run_folder: Path
) -> None:
    assert fit(*OPTIONS, "--model.policy.learning_rate=1e-3") == 0
    check_run(run_folder)


@pytest.mark.slow
def test_a_run_with_servers_learns_from_rollouts_of_the_policies_before(
    fit: Callable[..., int], tmp_path: Path, run_folder: Path, tiny_folder: str
) -> None:
    with (
        served(team(tiny_folder)["a1"], trainable=True) as first,
        served(team(tiny_folder)["a2"], trainable=True) as second,
    ):
        policy = {"path": tiny_folder, "max_new_tokens": 4, "learning_rate": 1e-3, "engine": "endpoint"}
        policies = {
            name: {**policy, "endpoint": {"url": url, "trained": True}} for name, url in (("a1", first), ("a2", second))
        }
        path = tmp_path / "servers.yaml"
        path.write_text(yaml.safe_dump({"model": {"init_args": {"policies": policies}}}))
        assert fit(f"--config={path}", *OPTIONS) == 0
    check_run(run_folder)


def test_settings_that_cannot_overlap() -> None:
    for staleness in (2, -1, 0.5):
        with pytest.raises(ConfigurationError, match=f"data.max_staleness is {staleness}; choose 0 or 1: with 1 an it"):
            RolloutDataModule(Toy(), max_staleness=staleness)
    with pytest.raises(ConfigurationError, match="replace_equal_groups is 1, but with data.max_staleness 1"):
        RolloutDataModule(Toy(), max_staleness=1, replace_equal_groups=1, num_generations=2)
