"""Networks on devices of their own: what they learn, where everything of theirs is, and that they act at once."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cards import cards
from collm.inference import actors
from collm.inference.actors import Actors
from collm.inference.base import Engine
from collm.models.policy_spec import PolicySpec
from collm.runtime.profiler import meter
from collm.samplers.parallel import Parallel
from collm.trajectory import Action
from pair import Run
from test_devices import LOGS, config, result, uneven
from toy import Toy

# Names of networks, and what a case is about
CASES = {
    "cc": (
        "collm_cc.CoLLMCC",
        "separate",
        {"kl_weight": 0.1, "critic": {"normalize": True, "value_clip": 0.2, "replay": 2}},
        ["a1", "a2", "critic"],
    ),
    "dc": ("collm_dc.CoLLMDC", "separate", {}, ["a1", "a2", "critic/a1", "critic/a2"]),
    "dc_shared": ("collm_dc_shared.CoLLMDCShared", "separate", {}, ["a1", "a2"]),
    "team": ("collm_cc.CoLLMCC", "shared", {}, ["team", "critic"]),
}


@pytest.fixture
def cards_in_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    generate = actors._generate

    def answered_together(*args: Any) -> dict[str, list[Action]]:
        with cards():
            return generate(*args)

    monkeypatch.setattr(actors, "_generate", answered_together)


@pytest.mark.parametrize("case", CASES)
def test_networks_on_separate_devices_learn_the_same(tmp_path: Path, tiny_folder: str, case: str) -> None:
    """Any operation on tensors of two devices would end the run."""
    algorithm, parameters, given, names = CASES[case]
    made = config(tiny_folder, algorithm, parameters, given)
    made["model"]["init_args"] |= {
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"eps": 0.01}},
        "tokens_per_micro_batch": 4096,
    }
    made["trainer"]["max_epochs"] = 2
    devices = {name: f"cpu:{index + 1}" for index, name in enumerate(names)}
    Run(str(tmp_path / "together"), made).fit()
    with cards():
        Run(str(tmp_path / "begun"), made, {"devices": devices}, trainer={"max_epochs": 1}).fit()
        checkpoint = str(tmp_path / "begun" / LOGS / "checkpoints" / "last.ckpt")
        trainer = Run(str(tmp_path / "apart"), made, {"devices": devices}, checkpoint).fit()
    module = trainer.lightning_module
    assert {name: {str(weight.device) for weight in module.learners[name]} for name in module.learners} == {
        name: {devices[name]} for name in module.learners
    }
    assert all(weight.device.index for weight in module.parameters())  # frozen ones too
    (weights, curves), (apart, apart_curves) = (result(tmp_path / name) for name in ("together", "apart"))
    torch.testing.assert_close(apart, weights)
    for name, values in apart_curves.items():
        assert values == pytest.approx(curves[name][-len(values) :], rel=1e-4, abs=1e-5, nan_ok=True), name
    for agent_id in ("a1", "a2"):
        files = [tmp_path / name / LOGS / "agents" / agent_id / "model.safetensors" for name in ("together", "apart")]
        torch.testing.assert_close(*map(load_file, files))


@pytest.mark.usefixtures("cards_in_threads")
def test_sampled_log_probs_match_trained_ones_on_separate_devices(tmp_path: Path, tiny_folder: str) -> None:
    made = uneven(tiny_folder)
    made["model"]["init_args"] |= {"parameters": "separate", "tokens_per_micro_batch": 4096}
    for spec in ("policy", "critic"):
        made["model"]["init_args"][spec] |= {"lora_rank": 0}
    made["trainer"]["max_epochs"] = 1
    devices = {"a1": "cpu:1", "a2": "cpu:2", "critic": "cpu:1"}
    with cards():
        Run(str(tmp_path), made, {"devices": devices}).fit()
    _, curves = result(tmp_path)
    assert curves["rollout/return"][0] > 0
    for agent_id in ("a1", "a2"):
        assert curves[f"policy/entropy/{agent_id}"][0] > 1
        assert curves[f"policy/log_prob_drift/{agent_id}"][0] < 1e-5
    texts = [path.read_text() for path in sorted((tmp_path / LOGS / "transcripts").iterdir())]
    assert len(texts) == 2


class Waiting:
    """A policy on a device of its own."""

    def __init__(self, device: str):
        self.device = device
        self.spec = PolicySpec()

    def prompt(self, observations: Sequence[str], actions: Sequence[Action]) -> list[int]:
        return [1]


class Together(Engine):
    """Answers once all engines on other devices have been asked."""

    barrier: threading.Barrier

    def generate(self, prompts: Mapping[str, Any], generator: torch.Generator, greedy: bool) -> dict[str, list[Action]]:
        self.barrier.wait(timeout=20)
        number = int(torch.randint(2**62, (), generator=generator))
        with meter.phase("generate"):
            meter.count(3, 4)
        return {name: [Action(str(number), prompt, [0], [0.0]) for prompt in own] for name, own in prompts.items()}


def test_agents_on_different_devices_answer_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(actors, "engine_class", lambda name: Together)
    monkeypatch.setattr(Together, "barrier", threading.Barrier(2), raising=False)
    drawn = []
    for _ in range(2):
        policies = {"a1": Waiting("first"), "a2": Waiting("second")}
        meter.take()
        with Actors(policies).serving(0) as team:
            (trajectory,) = Parallel().rollout(Toy(horizon=1), [Toy().tasks("train")[0]], team, 7, "cpu")
        assert meter.take().computed == {"generate": 8}
        drawn.append({name: action.text for name, action in trajectory.turns[0].actions.items()})
    assert drawn[0] == drawn[1]  # whichever thread is the faster one
    assert drawn[0]["a1"] != drawn[0]["a2"]
