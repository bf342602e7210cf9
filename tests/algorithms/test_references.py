"""The policy that a KL divergence is from is the one that training began with, and so is what adapters leave with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from actors import actors_of
from collm.algorithms.base import MultiAgentModule
from collm.models.policy_spec import PolicySpec
from collm.samplers.parallel import Parallel
from collm.trajectory import collate
from toy import Toy
from untrained import without_trainer

RANDOM = [{"random_weights": True}, {"path": "relay"}, {}]


@pytest.mark.parametrize("start", RANDOM, ids=["random", "relay", "loaded"])
@pytest.mark.parametrize("mode", ["separate", "shared"])
def test_the_reference_is_the_initial_policy(tiny_folder: str, start: dict, mode: str) -> None:
    torch.manual_seed(0)
    spec = PolicySpec(**{"path": tiny_folder, "learning_rate": 1e-2, "max_new_tokens": 3, **start})
    env = Toy(2, horizon=1)
    module = without_trainer(MultiAgentModule(agent_ids=env.agent_ids, policy=spec, parameters=mode, kl_weight=0.1))
    for agent_id, policy in module.policies.items():
        own, frozen = policy.backbone.lm.state_dict(), module.references[agent_id].backbone.lm.state_dict()
        assert all(own[name].equal(frozen[name]) for name in own)
        assert not any(weight.requires_grad for weight in module.references[agent_id].backbone.parameters())
    initial = {name: weight.clone() for name, weight in frozen.items()}
    for _ in range(2):
        batch = collate(Parallel().rollout(env, env.tasks("train"), actors_of(module.policies), 0, "cpu"))
        module.update_policies(batch, dict.fromkeys(env.agent_ids, torch.tensor([[1.0], [-1.0], [2.0], [0.0]])))
    kl = [value for name, value in module.logged if name == "policy/kl/a1"]
    assert kl[0] == pytest.approx(0.0, abs=1e-6)
    assert kl[1] > 1e-6
    assert all(frozen[name].equal(weight) for name, weight in initial.items())
    assert any(not weight.equal(own[name]) for name, weight in initial.items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_adapter_on_random_weights_leaves_with_them(
    fit: Callable[..., int], run_folder: Path, tiny_folder: str, dtype: str
) -> None:
    lora = ("--model=MAGRPO", "--model.parameters=lora", "--model.policy.lora_rank=2", "--model.kl_weight=0.1")
    args = (*lora, "--model.policy.random_weights=true", f"--model.policy.dtype={dtype}", "--data.num_generations=2")
    assert fit(*args, "--seed_everything=3") == 0
    checkpoint = run_folder / "checkpoints" / "last.ckpt"
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    prefix = "backbones.<base%200>.lm."
    base = {name.removeprefix(prefix): weight for name, weight in state.items()}
    for agent_id in ("a1", "a2"):
        exported = AutoModelForCausalLM.from_pretrained(run_folder / "agents" / agent_id).state_dict()
        assert exported["model.norm.weight"].dtype == torch.float32
        layer = "model.layers.0.mlp.up_proj"
        down, up = (base[f"{layer}.{part}.<{agent_id}>.weight"].float() for part in ("lora_A", "lora_B"))
        assert up.any()
        expected = base[f"{layer}.base_layer.weight"].float() + up @ down * 32 / 2
        assert_close(exported[f"{layer}.weight"], expected)
        assert exported["model.embed_tokens.weight"].equal(base["model.embed_tokens.weight"].float())
    pretrained = AutoModelForCausalLM.from_pretrained(tiny_folder).state_dict()
    assert not torch.allclose(exported["model.embed_tokens.weight"], pretrained["model.embed_tokens.weight"])

    # a run that goes on from another seed has the base of the checkpoint
    assert fit(*args, "--seed_everything=5", "--trainer.max_epochs=3", f"--ckpt_path={checkpoint}") == 0
    again = torch.load(run_folder.with_name("version_1") / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    frozen = [name for name in state if "lora_" not in name]
    assert frozen
    assert all(again[name].equal(state[name]) for name in frozen)


def test_the_reference_is_in_the_checkpoint_if_it_was_drawn(fit: Callable[..., int], run_folder: Path) -> None:
    args = ("--model=MAGRPO", "--model.kl_weight=0.1", "--model.policy.random_weights=true", "--data.num_generations=2")
    assert fit(*args, "--seed_everything=3", "--trainer.max_epochs=1") == 0
    paths = [run_folder.with_name(f"version_{number}") / "checkpoints" / "last.ckpt" for number in range(2)]
    assert fit(*args, "--seed_everything=5", "--trainer.max_epochs=2", f"--ckpt_path={paths[0]}") == 0
    first, second = (torch.load(path, weights_only=True)["state_dict"] for path in paths)
    frozen = [name for name in first if name.startswith("reference_backbones.")]
    assert frozen
    assert all(first[name].equal(second[name]) for name in frozen)
