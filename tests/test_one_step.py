"""One step of CoLLM-CC can be followed in nine files; what else runs is known by the room it is in."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest

import collm
from collm.algorithms.collm_cc import CoLLMCC
from collm.data import RolloutDataModule
from toy import REPOSITORY

READING = (
    "data.py",
    "samplers/base.py",
    "trajectory.py",
    "algorithms/collm_cc.py",
    "algorithms/actor_critic.py",
    "critics/language_model.py",
    "algorithms/base.py",
    "packing.py",
    "models/policy.py",
)
"""From tasks to the optimizer step, in reading order."""

# Rooms that a reader of the step takes as given, and single files with one thing each that their name says.
GIVEN = ("inference/", "kernels/", "architectures/", "runtime/", "callbacks/", "environments/")
LEAVES = {
    "samplers/parallel.py",  # all agents are asked at once
    "samplers/episode.py",  # one episode: what agents have seen, and a step of the environment
    "models/dialogue.py",  # a history as tokens
    "models/loading.py",  # text as tokens
    "models/backbone.py",  # tokens as hidden states and logits
    "models/policy_spec.py",  # settings of a policy
    "models/scores.py",  # logits as log-probabilities and entropies
    "sampling_mask.py",  # the tokens that each token was drawn from
    "models/dropout.py",  # train mode without dropout
    "critics/base.py",  # the interface of critics
    "critics/histories.py",  # a joint history as tokens
    "critics/value_network.py",  # tokens as values
    "algorithms/agents.py",  # evaluation mode while agents sample
    "algorithms/rollout_hooks.py",  # checks and metrics before an update
    "objectives.py",  # advantages and losses
    "returns.py",
    "metrics.py",
    "algorithms/optimizers.py",
    "rollouts/epochs.py",  # which tasks are played with which seeds
}
# What these files of the list hold are data. Leaves use them, but call nothing else that is in the list.
USED_BY_LEAVES = {"trajectory.py", "packing.py"}
PLAIN = (
    "--model.policy.engine=transformers",
    "--model.policy.fast_updates=false",
    "--model.critic.model.fast_updates=false",
)


def test_one_step_of_cc_is_in_nine_files(fit: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    """From the moment that the data module plays a rollout to the end of `training_step`."""
    package = str(Path(collm.__file__).parent) + "/"
    called: set[str] = set()
    calls: set[tuple[str, str]] = set()  # a file, and one that is called from it
    play, training_step = RolloutDataModule.play, CoLLMCC.training_step

    def record(frame: FrameType, event: str, argument: object) -> None:
        if not frame.f_code.co_filename.startswith(package):
            return
        called.add(name := frame.f_code.co_filename.removeprefix(package))
        caller = frame.f_back
        while caller is not None and not caller.f_code.co_filename.startswith(package):
            caller = caller.f_back
        # what runs in a comprehension or an iterator is called by whoever exhausts it
        if caller is not None and event == "call" and not frame.f_code.co_name.startswith("<"):
            calls.add((caller.f_code.co_filename.removeprefix(package), name))

    def recorded_play(data: RolloutDataModule, *args: object, **kwargs: object) -> object:
        if data.trainer.training:
            sys.setprofile(record)
        return play(data, *args, **kwargs)

    def recorded_step(module: CoLLMCC, *args: object) -> None:
        try:
            training_step(module, *args)
        finally:
            sys.setprofile(None)

    monkeypatch.setattr(RolloutDataModule, "play", recorded_play)
    monkeypatch.setattr(CoLLMCC, "training_step", recorded_step)
    try:
        assert fit(*PLAIN, "--trainer.max_epochs=1", "--trainer.limit_val_batches=0") == 0
    finally:
        sys.setprofile(None)
    assert set(READING) <= called
    followed = {name for name in called if not name.startswith(GIVEN)}
    assert followed - LEAVES - set(READING) == set()
    back = {(leaf, name) for leaf, name in calls if leaf in LEAVES and name in set(READING) - USED_BY_LEAVES}
    assert back == set()


def test_the_readme_names_them() -> None:
    text = (REPOSITORY / "README.md").read_text()
    assert all(f"`{name}`" in text for name in READING)
