"""Runs of two processes that sample with vLLM: each has one of its own, with replicas and with shards."""

from __future__ import annotations

import importlib.util
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from collm.inference.vllm_engine import VLLMEngine
from collm.models.backbone import Backbone
from collm.models.policy import Policy
from collm.models.policy_spec import PolicySpec
from collm.models.tiny import build_tiny
from curves import scalars
from on_policy import log_ratios
from pair import Run, fit_in_pair
from toy import toy_config

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: docs/engines.md"),
]
LORA = {"lora_rank": 4, "lora_alpha": 8.0}
RUNS: dict[str, tuple[Any, str]] = {
    "ddp": ("ddp", "separate"),
    "ddp_lora": ("ddp", "lora"),
    "gathered": ({"sampling": "gathered"}, "separate"),
    "synchronized": ({"sampling": "synchronized"}, "separate"),
    "synchronized_lora": ({"sampling": "synchronized"}, "lora"),
}


@dataclass
class Kept(Run):
    """A run whose processes each leave the responses they drew and their weights at the end."""

    def fit(self) -> L.Trainer:
        drawn: list[Any] = []
        generate = VLLMEngine.generate

        def kept(*args: Any) -> Any:
            drawn.append(generate(*args))
            return drawn[-1]

        VLLMEngine.generate = kept  # type: ignore[method-assign]
        try:
            trainer = super().fit()
        finally:
            VLLMEngine.generate = generate  # type: ignore[method-assign]
        weights = {name: weight.detach().clone() for name, weight in trainer.strategy.model.state_dict().items()}
        full = {name: getattr(weight, "full_tensor", lambda w=weight: w)() for name, weight in weights.items()}
        Path(self.folder, f"left_{trainer.global_rank}").write_bytes(pickle.dumps((drawn, full)))
        return trainer


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two updates each on one task, which both processes play: prompts are the same, seeds are not."""
    root = tmp_path_factory.mktemp("runs")
    build_tiny(root / "model", hidden_size=64, num_layers=2, num_heads=2, context=256)
    both = []
    for name, (strategy, parameters) in RUNS.items():
        made = toy_config(str(root / "model"))
        given = made["model"]["init_args"]
        del given["critic"]
        made["model"]["class_path"] = "collm.algorithms.magrpo.MAGRPO"
        given |= {"parameters": parameters}
        given["policy"] |= {"engine": "vllm", "learning_rate": 0.02, "max_new_tokens": 8, "top_p": 0.9}
        given["policy"] |= LORA if parameters == "lora" else {}
        agents = 2 if parameters == "lora" else 1
        toy = {"class_path": "toy.Toy", "init_args": {"num_agents": agents, "num_tasks": 1}}
        made["data"] |= {"environment": toy, "num_generations": 4}
        made["trainer"]["limit_val_batches"] = 0
        both.append(Kept(str(root / name), made, strategy))
    fit_in_pair(root, both, start="spawn")
    return root


@pytest.mark.parametrize("name", RUNS)
def test_each_process_samples_the_weights_of_the_last_update_with_seeds_of_its_own(runs: Path, name: str) -> None:
    (first, weights), (second, others) = (pickle.loads((runs / name / f"left_{rank}").read_bytes()) for rank in (0, 1))
    for key, weight in weights.items():
        torch.testing.assert_close(others[key], weight, rtol=0, atol=0, msg=key)
    curves = scalars(runs / name / "logs" / "collm" / "version_0")
    assert len(curves["policy/log_prob_drift/a1"]) == 2
    assert max(curves["policy/log_prob_drift/a1"]) < 1e-3
    spec = PolicySpec(str(runs / "model"), engine="vllm", max_new_tokens=8, top_p=0.9)
    initial = Policy("a1", spec, Backbone(spec.path, "float32"), None)
    for drawn in (first, second):
        assert [{action.policy_version for action in one["a1"]} for one in drawn] == [{0}, {0}, {1}, {1}]
        # recorded by what sampled, against the weights before the first update
        assert log_ratios(initial, drawn[0]["a1"]).abs().max() < 1e-3
        assert log_ratios(initial, drawn[2]["a1"]).abs().max() > 0.05
    prompts, responses = (
        [[getattr(action, field) for action in drawn[0]["a1"]] for drawn in (first, second)]
        for field in ("prompt_ids", "token_ids")
    )
    assert prompts[0] == prompts[1]
    assert responses[0] != responses[1]
