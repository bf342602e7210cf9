"""LoRA adapters on some linear layers: the numbers and gradients are peft's, in updates, sampling and exports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from actors import sampled
from collm.algorithms.collm_cc import CoLLMCC
from collm.critics.language_model import LanguageModelCritic
from collm.errors import ConfigurationError
from collm.inference.actors import Actors
from collm.inference.embedded import forward
from collm.models.backbone import Backbone
from collm.models.policy import Policy
from collm.models.policy_spec import PolicySpec
from collm.models.specs import ModelSpec
from collm.packing import TokenSequence, pad_sequences
from collm.serving.agents import load_agent

PROMPT = [7, 11, 13, 17, 19, 23]
TARGETS = {  # the first has no adapter on the layer's first linear layer, the second none on all other layers
    "a1": ["v_proj", "down_proj"],
    "a2": ["layers.1.self_attn.o_proj"],
    "a3": "all-linear",
}


def team(folder: str) -> dict[str, Policy]:
    """Agents on one backbone, each with an adapter on other layers that does something."""
    backbone = Backbone(folder, "float32")
    policies = {}
    torch.manual_seed(1)
    for name, targets in TARGETS.items():
        backbone.add_adapter(name, 2, 4.0, 0.0, targets)
        for weight in backbone.adapter_parameters(name):
            torch.nn.init.normal_(weight, std=0.2)
        spec = PolicySpec(folder, lora_rank=2, lora_alpha=4.0, lora_target_modules=targets, max_new_tokens=6)
        policies[name] = Policy(name, spec, backbone, name)
    return policies


@pytest.mark.parametrize("before", [*TARGETS, None])
@pytest.mark.parametrize("name", [*TARGETS, None])
def test_only_the_selected_adapter_computes_and_trains(tiny_folder: str, name: str | None, before: str | None) -> None:
    switched, fresh = (team(tiny_folder)["a1"].backbone for _ in range(2))
    switched.activate(before)
    switched.activate(name)
    fresh.activate(name)
    assert switched.lm(torch.tensor([PROMPT])).logits.equal(fresh.lm(torch.tensor([PROMPT])).logits)
    trained = {key for key, weight in switched.lm.named_parameters() if weight.requires_grad}
    assert trained == {key for key, _ in switched.lm.named_parameters() if f".{name}." in key}


@pytest.mark.parametrize("name", TARGETS)
def test_log_probabilities_and_gradients_are_those_of_peft(tiny_folder, name):
    policy = team(tiny_folder)[name]
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    theirs = get_peft_model(base, LoraConfig(r=2, lora_alpha=4, target_modules=TARGETS[name], task_type="CAUSAL_LM"))
    weights = policy.backbone.adapter_weights(name)
    expected = {key.replace(".default", ""): one for key, one in theirs.named_parameters() if one.requires_grad}
    assert weights.keys() == expected.keys()
    for key, weight in weights.items():
        expected[key].data.copy_(weight.data)
    ids = [*PROMPT, 31, 37, 41, 5]
    turns = [-1] * len(PROMPT) + [0] * 4
    found, _ = policy.log_probs(pad_sequences([TokenSequence(0, ids, turns)], 0, "cpu"))
    logits = theirs(torch.tensor([ids])).logits[0].log_softmax(-1)
    wanted = logits[len(PROMPT) - 1 : -1].gather(-1, torch.tensor(ids[len(PROMPT) :])[:, None]).squeeze(-1)
    assert_close(found[0, len(PROMPT) :], wanted, rtol=1e-5, atol=1e-5)
    found.sum().backward()
    wanted.sum().backward()
    for key, weight in weights.items():
        assert_close(weight.grad, expected[key].grad, rtol=1e-4, atol=1e-5)
        assert weight.grad.abs().max() > 0


def test_adapters_may_have_more_precision_than_layers_without_one(tiny_folder):
    policy = team(tiny_folder)["a1"]
    policy.backbone.lm.to(torch.bfloat16)
    for weight in policy.parameters():
        weight.data = weight.data.float()
    batch = pad_sequences([TokenSequence(0, [*PROMPT, 31, 37], [-1] * len(PROMPT) + [0] * 2)], 0, "cpu")
    fast, _ = policy.log_probs(batch)
    fast.sum().backward()
    policy.backbone.fast_updates = False
    plain, _ = policy.log_probs(batch)
    assert_close(fast, plain, rtol=0.02, atol=0.05)
    assert all(weight.grad is not None for weight in policy.parameters())


@pytest.mark.parametrize("known", [True, False])
def test_agents_with_adapters_in_other_places_sample_together_from_their_own_policies(tiny_folder, monkeypatch, known):
    """Whether the decoder reads the weights itself or calls the modules."""
    if not known:
        monkeypatch.setattr(forward, "decoder_of", lambda lm: None)
    policies = team(tiny_folder)
    policies["a3"].backbone.eval()
    with Actors(policies).serving(0, keep_cache=False) as actors:
        answers = actors.sample(dict.fromkeys(policies, [PROMPT]), torch.Generator().manual_seed(0), greedy=False)
    for name, (action,) in answers.items():
        turns = [-1] * len(PROMPT) + [0] * len(action.token_ids)
        sequence = TokenSequence(0, [*PROMPT, *action.token_ids], turns)
        found, _ = policies[name].log_probs(pad_sequences([sequence], 0, "cpu"))
        assert_close(found[0, len(PROMPT) :].detach(), torch.tensor(action.log_probs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TARGETS)
def test_an_exported_adapter_says_where_it_is(tiny_folder, tmp_path: Path, name):
    policy = team(tiny_folder)[name]
    policy.backbone.eval()
    answer = sampled(policy, [PROMPT], torch.Generator(), greedy=True)[0]
    policy.save(tmp_path / "a1")
    places = json.loads((tmp_path / "a1" / "adapter_config.json").read_text())["target_modules"]
    assert name == "a3" or sorted(places) == sorted(TARGETS[name])
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_folder), tmp_path / "a1")
    logits = theirs(torch.tensor([[*PROMPT, *answer.token_ids]])).logits[0, len(PROMPT) - 1 : -1]
    assert logits.argmax(-1).tolist() == list(answer.token_ids)
    again = load_agent(tmp_path / "a1")
    assert sampled(again, [PROMPT], torch.Generator(), greedy=True)[0].token_ids == answer.token_ids
    assert len(again.parameters()) == len(policy.parameters())


def test_agents_and_critics_of_an_algorithm_have_their_own_places(tiny_folder):
    module = CoLLMCC(
        agent_ids=["a", "b"],
        policy=PolicySpec(tiny_folder, lora_rank=2, lora_target_modules=["q_proj"]),
        policies={"b": PolicySpec(tiny_folder, lora_rank=2, lora_target_modules=["up_proj", "o_proj"])},
        parameters="lora",
        critic=LanguageModelCritic(ModelSpec(tiny_folder, lora_rank=2, lora_target_modules=["k_proj"])),
    )
    module.configure_model()
    (backbone,) = module.backbones.values()
    adapters = [*(policy.adapter for policy in module.policies.values()), module.critic.network.adapter]
    places = [{key.split(".")[-3] for key in backbone.adapter_weights(adapter)} for adapter in adapters]
    assert places == [{"q_proj"}, {"up_proj", "o_proj"}, {"k_proj"}]


@pytest.mark.parametrize(
    ("targets", "told"),
    [
        (
            ["q_proj", "query"],
            "no linear layer of .* is called 'query'; there are q_proj, k_proj, v_proj, o_proj",
        ),
        (["lm_head"], "is called 'lm_head'"),
        (["proj"], "is called 'proj'"),
        ([], r"is \[\]; give 'all-linear' or a list of names; there are q_proj"),
        ("q_proj", "is 'q_proj'; give 'all-linear' or a list of names"),
        ([3], "give 'all-linear' or a list of names"),
        (None, "is None; give 'all-linear'"),
    ],
)
def test_names_that_do_not_exist_are_refused_with_those_that_do(tiny_folder, no_weights, targets, told):
    spec = ModelSpec(tiny_folder, lora_rank=2, lora_target_modules=targets)
    with pytest.raises(ConfigurationError, match=f"critic.model.lora_target_modules.*{told}"):
        spec.check("critic.model")


def test_the_command_line_refuses_them_before_weights_load(fit, no_weights, capsys):
    lora = ("--model.parameters=lora", "--model.policy.lora_rank=2", "--model.critic.model.lora_rank=2")
    assert fit(*lora, "--model.policy.lora_target_modules=[q_proj,kv_proj]") == 2
    assert "lora_target_modules: no linear layer of" in capsys.readouterr().err
    assert fit(*lora, "--model.critic.model.lora_target_modules=query") == 2
    assert "lora_target_modules" in capsys.readouterr().err
