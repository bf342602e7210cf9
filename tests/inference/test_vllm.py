"""The engine that samples with vLLM, the real one, on whatever device there is: see docs/engines.md for the command."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from collm.errors import ConfigurationError
from collm.inference import vllm_engine
from collm.inference.actors import Actors, check_engines
from collm.inference.vllm_engine import VLLMEngine
from collm.models.backbone import Backbone
from collm.models.policy import Policy
from collm.models.policy_spec import PolicySpec
from collm.models.tiny import build_tiny
from on_policy import CUTS, log_ratios

PROMPTS = [[7, 8, 9], [20], [30, 31, 32, 33, 34, 35, 36]]
needs_vllm = [
    pytest.mark.vllm,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: docs/engines.md"),
]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random weights with heads of 32, the smallest that vLLM takes on a processor."""
    folder = tmp_path_factory.mktemp("models") / "heads_of_32"
    build_tiny(folder, hidden_size=64, num_layers=2, num_heads=2, context=256)
    return str(folder)


def team_of(folder: str, backbone: Backbone, engine: str, adapters: list[str | None], **options) -> Actors:
    spec = PolicySpec(folder, engine=engine, max_new_tokens=8, lora_rank=4 if adapters[0] else 0, **options)
    names = [f"a{index}" for index in range(len(adapters))]
    return Actors({name: Policy(name, spec, backbone, own) for name, own in zip(names, adapters, strict=True)})


def drawn(team: Actors, greedy: bool = False, seed: int = 0, version: int = 0) -> dict[str, list]:
    with team.serving(version):
        return team.sample(dict.fromkeys(team.policies, PROMPTS), seeded(seed), greedy)


def transcripts(actions: dict[str, list]) -> list[list[int]]:
    return [list(action.token_ids) for own in actions.values() for action in own]


def change(weights: list[torch.nn.Parameter]) -> None:
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=seeded(1))
    torch.optim.AdamW(weights, lr=0.05, fused=True).step()


@pytest.fixture(scope="module")
def whole(folder: str) -> tuple[Backbone, Actors]:
    """A model that trains in full, and vLLM beside it."""
    backbone = Backbone(folder, "float32")
    return backbone, team_of(folder, backbone, "vllm", [None])


class TestWhole:
    pytestmark = needs_vllm

    def test_greedy_transcripts_are_those_of_transformers_also_after_updates(
        self, folder: str, whole: tuple[Backbone, Actors]
    ) -> None:
        backbone, team = whole
        reference = team_of(folder, backbone, "transformers", [None])
        before = []
        for version in range(2):
            found = drawn(team, greedy=True, version=version)
            assert transcripts(found) == transcripts(drawn(reference, greedy=True))
            assert {action.policy_version for action in found["a0"]} == {version}
            before.append(transcripts(found))
            change(list(backbone.lm.parameters()))
        assert before[0] != before[1]

    def test_draws_are_those_of_the_policy_and_of_the_seed(self, whole: tuple[Backbone, Actors]) -> None:
        _, team = whole
        first, again, other = (drawn(team, seed=seed) for seed in (3, 3, 4))
        assert transcripts(first) == transcripts(again) != transcripts(other)
        policy = team.policies["a0"]
        assert all(action.sampling_mask is None for action in first["a0"])
        assert log_ratios(policy, first["a0"]).abs().max() < 1e-3

    @pytest.mark.parametrize("cut", CUTS, ids=str)
    def test_the_policy_that_was_sampled_is_the_one_that_trains(
        self, whole: tuple[Backbone, Actors], cut: dict
    ) -> None:
        _, team = whole
        policy = team.policies["a0"]
        spec = policy.spec
        policy.spec = PolicySpec(spec.path, engine="vllm", max_new_tokens=8, **cut)
        try:
            actions = [action for seed in range(3) for action in drawn(team, seed=seed)["a0"]]
            assert log_ratios(policy, actions).abs().max() < 1e-3
            for action in actions:
                assert len(action.sampling_mask) == len(action.token_ids)
                kept = action.sampling_mask.dense(policy.backbone.vocabulary_size)
                assert kept[range(len(kept)), list(action.token_ids)].all()
                assert not kept.all(1)[: max(1, policy.spec.min_new_tokens)].any()
                if "top_k" in cut:
                    assert kept.sum(1).max() <= cut["top_k"]
                if "min_new_tokens" in cut:
                    assert len(action.token_ids) >= 3
                    assert not kept[: cut["min_new_tokens"], sorted(policy.eos_ids)].any()
        finally:
            policy.spec = spec

    def test_only_allowed_words_and_end_tokens_count(self, folder: str, whole: tuple[Backbone, Actors]) -> None:
        _, team = whole
        policy = team.policies["a0"]
        policy.allowed_ids = list(range(40, 60))
        before, policy.eos_ids = policy.eos_ids, {45, 46, 47, 48}
        try:
            actions = drawn(team)["a0"]
            assert {token for action in actions for token in action.token_ids} <= set(range(40, 60))
            assert any(not action.truncated for action in actions)
            assert log_ratios(policy, actions).abs().max() < 1e-3
        finally:
            policy.allowed_ids, policy.eos_ids = None, before


class TestAdapters:
    pytestmark = needs_vllm

    def test_every_agent_has_its_own_adapter_as_it_is_now(self, folder: str) -> None:
        backbone = Backbone(folder, "float32", random_weights=True)  # which no folder has
        backbone.requires_grad_(False)
        for name in ("first", "second"):
            backbone.add_adapter(name, 4, 8.0, 0.0)
            change(backbone.adapter_parameters(name))
        team, reference = (
            team_of(folder, backbone, engine, ["first", "second"], top_p=0.9) for engine in ("vllm", "transformers")
        )
        answers = []
        for version in range(2):
            found = drawn(team, greedy=True, version=version)
            assert transcripts(found) == transcripts(drawn(reference, greedy=True))
            assert transcripts({"a0": found["a0"]}) != transcripts({"a1": found["a1"]})
            for name, actions in drawn(team, version=version).items():
                assert log_ratios(team.policies[name], actions).abs().max() < 1e-3
            answers.append(found)
            change(backbone.adapter_parameters("second"))
        assert transcripts({"a0": answers[0]["a0"]}) == transcripts({"a0": answers[1]["a0"]})
        assert transcripts({"a1": answers[0]["a1"]}) != transcripts({"a1": answers[1]["a1"]})


class TestRun:
    pytestmark = needs_vllm

    def test_two_agents_with_models_of_their_own_train_through_it(
        self, folder: str, fit: Callable[..., int], run_folder: Path
    ) -> None:
        options = ["--model.policy.engine=vllm", f"--model.policy.path={folder}", "--model.policy.top_p=0.9"]
        assert fit(*options, "--trainer.max_epochs=2") == 0
        assert (run_folder / "agents" / "a2" / "model.safetensors").is_file()


def test_what_it_cannot_do_is_said_before_weights_load(tiny_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = PolicySpec(tiny_folder, engine="vllm")
    monkeypatch.setattr(vllm_engine.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'collm\[vllm\]'"):
        VLLMEngine.check("policy", spec, "a")
    monkeypatch.setattr(vllm_engine.importlib.util, "find_spec", lambda name: object())
    for found in ("0.31.2", "0.33.0"):
        monkeypatch.setattr(vllm_engine, "version", lambda package, found=found: found)
        with pytest.raises(ConfigurationError, match=f"vllm {found} is installed, which was not tested: pip install"):
            VLLMEngine.check("policy", spec, "a")
    monkeypatch.setattr(vllm_engine, "version", lambda package: "0.32.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigurationError, match="have 16 numbers; on a processor vLLM takes 32, 64"):
        VLLMEngine.check("policy", spec, "a")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    VLLMEngine.check("policy", PolicySpec(tiny_folder, engine="vllm", top_p=0.9, top_k=5, min_new_tokens=2), "a")
    with pytest.raises(ConfigurationError, match="trained_policy is 'uncut'"):
        VLLMEngine.check("policy", PolicySpec(tiny_folder, engine="vllm", top_p=0.9, trained_policy="uncut"), "a")
    with pytest.raises(ConfigurationError, match="at most 512"):
        check_engines({"a": PolicySpec(tiny_folder, engine="vllm", lora_rank=1024)})
