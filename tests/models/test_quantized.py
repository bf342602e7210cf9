"""LoRA on frozen weights of 4 bits: what is sampled, trained and saved is one policy, on the quantized model."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from actors import sampled
from collm.errors import ConfigurationError
from collm.models.backbone import Backbone
from collm.models.policy import Policy
from collm.models.policy_spec import PolicySpec
from collm.models.quantized import full_weights
from collm.models.tiny import build_tiny
from collm.serving.agents import load_agent
from collm.serving.command import serve
from collm.strategies.fsdp import FullySharded
from curves import scalars
from on_policy import batch_of, log_ratios
from pair import Run
from toy import toy_config

PROMPTS = [[5, 6, 7], [20], [7, 8, 9, 10, 11]]
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed: pip install collm[lowbit]"
)


def quantized(folder: str, **options: object) -> Policy:
    """An agent whose adapter is not nothing."""
    torch.manual_seed(0)
    spec = PolicySpec(folder, lora_rank=4, lora_alpha=8.0, quantization="nf4", max_new_tokens=8, **options)
    backbone = Backbone(folder, "float32", quantization="nf4")
    backbone.lm.requires_grad_(False)
    backbone.add_adapter("a1", 4, 8.0, 0.0)
    for weight in backbone.adapter_parameters("a1"):
        weight.data += 0.05 * torch.randn_like(weight)
    return Policy("a1", spec, backbone, "a1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random weights, with rows of 192 and 512, multiples of 64."""
    folder = tmp_path_factory.mktemp("models") / "rows_of_192"
    build_tiny(folder, hidden_size=192, num_layers=2, num_heads=6, context=256)
    return str(folder)


@needs_bitsandbytes
@pytest.mark.parametrize("options", [{}, {"top_p": 0.9}, {"engine": "transformers"}, {"fast_updates": False}], ids=str)
def test_the_policy_that_samples_is_the_one_that_trains(folder: str, options: dict) -> None:
    policy = quantized(folder, **options)
    layers = dict(policy.backbone.lm.named_parameters())
    base = {name: weight.clone() for name, weight in layers.items() if weight.dtype == torch.uint8}
    assert len(base) == 2 * 7  # layers, each with queries, keys, values, output and three of the feed-forward part
    actions = sampled(policy, PROMPTS, torch.Generator().manual_seed(0), False)
    assert log_ratios(policy, actions).abs().max() < 1e-4  # a ratio of 1
    weights = policy.parameters()
    optimizer = torch.optim.AdamW(weights, lr=0.01)
    policy.backbone.train()
    before = [weight.clone() for weight in weights]
    policy.log_probs(batch_of("a1", actions))[0].sum().backward()
    optimizer.step()
    assert all(not weight.equal(old) for weight, old in zip(weights, before, strict=True))
    assert all(layers[name].equal(weight) for name, weight in base.items())
    again = sampled(policy, PROMPTS, torch.Generator().manual_seed(0), False)
    assert log_ratios(policy, actions).abs().max() > 0.05
    assert log_ratios(policy, again).abs().max() < 1e-4


@needs_bitsandbytes
def test_an_exported_agent_is_the_same_policy_as_an_adapter_and_merged(folder: str, tmp_path: Path) -> None:
    policy = quantized(folder)
    actions = sampled(policy, PROMPTS, torch.Generator().manual_seed(0), False)
    policy.save(tmp_path / "adapter")
    policy.save(tmp_path / "merged", merged=True)
    for name, quantization, error in (("adapter", "nf4", 1e-5), ("merged", None, 1e-3)):
        loaded = load_agent(tmp_path / name)
        assert loaded.spec.quantization == loaded.backbone.quantization == quantization
        assert log_ratios(loaded, actions).abs().max() < error
    assert "quantization_config" not in json.loads((tmp_path / "merged" / "config.json").read_text())
    path = tmp_path / "adapter" / "collm_agent.json"
    path.write_text(path.read_text().replace('"nf4"', "null"))
    assert log_ratios(load_agent(tmp_path / "adapter"), actions).abs().max() > 1e-2  # on the model before it


@needs_bitsandbytes
def test_weights_in_full_are_near_those_that_were_quantized(folder: str) -> None:
    plain, policy = Backbone(folder, "float32").own_state(), quantized(folder)
    full = {name.replace(".base_layer", ""): weight for name, weight in full_weights(policy.backbone.lm)}
    assert len(full) == 14
    for name, weight in full.items():
        # no two neighbours of its 16 values from -1 to 1 are further apart than 0.304, in units of the largest of 64
        largest = plain[name].view(-1, 64).abs().amax(1, keepdim=True)
        assert ((weight.float() - plain[name]).view(-1, 64).abs() <= 0.153 * largest).all()
        assert not weight.float().equal(plain[name])
    assert policy.backbone.own_state().keys() >= {name for name, _ in full_weights(policy.backbone.lm)}


@needs_bitsandbytes
@pytest.mark.slow
def test_a_run_goes_on_from_its_checkpoint(folder: str, tmp_path: Path) -> None:
    made = toy_config(folder)
    arguments = made["model"]["init_args"]
    lora = {"lora_rank": 4, "lora_alpha": 8.0, "quantization": "nf4", "learning_rate": 0.01}
    arguments |= {"parameters": "lora", "optimizer": "bitsandbytes.optim.AdamW8bit"}
    arguments["policy"] |= lora
    arguments["critic"]["init_args"]["model"] |= lora
    whole = Run(str(tmp_path / "whole"), made)
    trainer = whole.fit()
    made["trainer"]["max_epochs"] = 1
    Run(str(tmp_path / "half"), made).fit()
    checkpoint = str(tmp_path / "half" / "logs" / "collm" / "version_0" / "checkpoints" / "last.ckpt")
    assert not any("base_layer" in name for name in torch.load(checkpoint, weights_only=True)["state_dict"])
    made["trainer"]["max_epochs"] = 2
    resumed = Run(str(tmp_path / "resumed"), made, checkpoint=checkpoint).fit()
    stored = trainer.lightning_module.stored_names()
    assert len(stored) > 50
    for name in stored:
        assert_close(resumed.lightning_module.state_dict()[name], trainer.lightning_module.state_dict()[name], msg=name)
    drift = scalars(tmp_path / "whole" / "logs" / "collm" / "version_0")["policy/log_prob_drift/a1"]
    assert len(drift) == 2
    assert max(drift) < 1e-4


@needs_bitsandbytes
@pytest.mark.vllm
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: docs/engines.md")
def test_vllm_samples_with_the_weights_of_the_quantized_model(folder: str) -> None:
    policy = quantized(folder, engine="vllm")
    actions = sampled(policy, PROMPTS, torch.Generator().manual_seed(0), False)
    assert log_ratios(policy, actions).abs().max() < 1e-3


@needs_bitsandbytes
def test_rows_that_bitsandbytes_would_mix_up_are_refused(tiny_folder: str) -> None:
    with pytest.raises(ConfigurationError, match="q_proj has 32 inputs, and on processors bitsandbytes needs a mult"):
        Backbone(tiny_folder, "float32", quantization="nf4")


def test_what_cannot_work_is_said_before_weights_load(
    folder: str, no_weights: None, monkeypatch: pytest.MonkeyPatch, fit: Callable[..., int], capsys
) -> None:
    with pytest.raises(ConfigurationError, match="quantized weights cannot train; give lora_rank a rank"):
        PolicySpec(folder, quantization="nf4").check("policy")
    with pytest.raises(ConfigurationError, match="quantization is 'int8'; choose one of nf4"):
        PolicySpec(folder, lora_rank=4, quantization="int8").check("policy")  # type: ignore[arg-type]
    monkeypatch.setattr("collm.models.quantized.importlib.util.find_spec", lambda name: None)
    assert fit("--model.policy.lora_rank=4", "--model.policy.quantization=nf4") == 2
    assert r"needs bitsandbytes: pip install 'collm[lowbit]'" in capsys.readouterr().err


def test_models_and_devices_without_quantized_layers_are_refused(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="starts at random"):
        Backbone(folder, "float32", random_weights=True, quantization="nf4")
    monkeypatch.setattr(torch, "get_default_device", lambda: torch.device("mps"))
    with pytest.raises(ConfigurationError, match="works on cpu and cuda, and this device is mps"):
        Backbone(folder, "float32", quantization="nf4")


def test_shards_and_servers_of_vllm_are_refused(tiny_folder: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        module = Backbone(tiny_folder, "float32", random_weights=True, quantization="nf4")
    strategy = FullySharded()
    strategy._lightning_module = module  # type: ignore[assignment]
    with pytest.raises(ConfigurationError, match="quantized weights cannot be sharded; use strategy ddp"):
        strategy.setup(SimpleNamespace(validate_loop=SimpleNamespace(inference_mode=False)))
    (tmp_path / "agents" / "a1").mkdir(parents=True)
    (tmp_path / "agents" / "a1" / "collm_agent.json").write_text('{"agent_id": "a1", "quantization": "nf4"}')
    with pytest.raises(ConfigurationError, match="would not quantize the model of 'a1' as in training; choose collm"):
        serve(str(tmp_path), backend="vllm")
