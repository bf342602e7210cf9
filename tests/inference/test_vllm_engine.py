"""The engine that samples with vLLM, against a stand-in with its interface: vLLM itself needs a GPU.

The stand-in keeps weights of its own, as vLLM does, so that what is asked of it and when its weights follow is real.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.functional import delete_adapter, inject_adapter_in_model, set_adapter, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from collm.errors import ConfigurationError
from collm.inference import transformers_engine as stock
from collm.inference import vllm_engine
from collm.inference.generation import Sampling
from collm.models.backbone import Backbone
from collm.models.policy import Policy, PolicySpec

PROMPTS = [[7, 8, 9], [20], [30, 31, 32, 33, 34, 35, 36]]


class SamplingParams(SimpleNamespace):
    pass


class LoRARequest:
    def __init__(self, lora_name: str, lora_int_id: int, lora_path: str):
        self.lora_name, self.lora_int_id, self.lora_path = lora_name, lora_int_id, lora_path


class LLM:
    """A transformers model that answers as vLLM does."""

    def __init__(self, model: str, enable_lora: bool, **options: Any):
        self.model, self.options, self.enable_lora = AutoModelForCausalLM.from_pretrained(model), options, enable_lora
        self.llm_engine, self.loads, self.adapters, self.params = self, 0, {}, []

    def apply_model(self, function: Any) -> list[Any]:
        def load_weights(weights: Any) -> None:
            self.loads += 1
            self.model.load_state_dict(dict(weights), strict=False)

        return [function(SimpleNamespace(load_weights=load_weights))]

    def reset_prefix_cache(self) -> None:
        pass

    def add_lora(self, request: LoRARequest) -> None:
        assert Path(request.lora_path, "adapter_model.safetensors").is_file()
        name = f"number_{request.lora_int_id}"
        inject_adapter_in_model(LoraConfig.from_pretrained(request.lora_path), self.model, name)
        weights = load_file(Path(request.lora_path, "adapter_model.safetensors"))
        weights = {key.removeprefix("base_model.model."): weight for key, weight in weights.items()}
        set_peft_model_state_dict(self.model, weights, adapter_name=name)
        self.adapters[request.lora_int_id] = name

    def remove_lora(self, number: int) -> None:
        delete_adapter(self.model, self.adapters.pop(number), prefix="lora_")

    def generate(self, prompts: Any, sampling_params: Any, use_tqdm: bool, lora_request: Any) -> list[Any]:
        self.params = sampling_params
        answers = []
        for index, (prompt, params) in enumerate(zip(prompts, sampling_params, strict=True)):
            if self.enable_lora:
                set_adapter(self.model, self.adapters[lora_request[index].lora_int_id])
            greedy = params.temperature == 0
            sampling = Sampling(
                params.max_tokens, params.temperature or 1.0, greedy=greedy, allowed_ids=params.allowed_token_ids
            )
            chance = torch.Generator().manual_seed(params.seed)
            ids = [prompt["prompt_token_ids"]]
            [(tokens, log_probs)] = stock.generate(self.model, ids, sampling, params.stop_token_ids, chance)
            at = [{token: SimpleNamespace(logprob=value)} for token, value in zip(tokens, log_probs, strict=True)]
            answers.append(SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(tokens), logprobs=at)]))
        return answers


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    package, lora, request = ModuleType("vllm"), ModuleType("vllm.lora"), ModuleType("vllm.lora.request")
    package.LLM, package.SamplingParams, request.LoRARequest = LLM, SamplingParams, LoRARequest
    for module in (package, lora, request):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def policies(folder: str, adapters: list[str | None], engine: str, backbone: Backbone) -> list[Policy]:
    spec = PolicySpec(folder, engine=engine, max_new_tokens=6, temperature=0.7, lora_rank=4 if adapters[0] else 0)
    return [Policy(f"a{index}", spec, backbone, adapter) for index, adapter in enumerate(adapters)]


def answers(team: list[Policy], greedy: bool, seed: int = 0) -> list[list[tuple[list[int], list[float]]]]:
    drawn = team[0].sample_together(team, [PROMPTS] * len(team), chance(seed), greedy)
    return [[(action.token_ids, action.log_probs) for action in own] for own in drawn]


def change(weights: list[torch.nn.Parameter]) -> None:
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=chance(1))
    torch.optim.AdamW(weights, lr=0.05, fused=True).step()


def test_its_weights_follow_those_that_train(vllm: None, tiny_folder: str) -> None:
    backbone = Backbone(tiny_folder, "float32")
    [theirs], [ours] = (policies(tiny_folder, [None], engine, backbone) for engine in ("vllm", "collm"))

    def responses(policy: Policy) -> list[list[int]]:
        return [action.token_ids for action in policy.sample(PROMPTS, chance(), greedy=True)]

    before = responses(ours)
    assert responses(theirs) == responses(theirs) == before
    assert backbone.engine.llm.loads == 1
    change(list(backbone.lm.parameters()))
    theirs.keep_cache(True)  # as a rollout begins
    assert responses(theirs) == responses(ours) != before
    assert backbone.engine.llm.loads == 2


def test_every_agent_has_its_own_adapter(vllm: None, tiny_folder: str) -> None:
    backbone = Backbone(tiny_folder, "float32")
    backbone.freeze()
    for name in ("first", "second"):
        backbone.add_adapter(name, 4, 8.0, 0.0)
        change(backbone.adapter_parameters(name))
    theirs, ours = (policies(tiny_folder, ["first", "second"], engine, backbone) for engine in ("vllm", "collm"))
    for _ in range(2):
        found, expected = answers(theirs, greedy=True), answers(ours, greedy=True)
        assert [[ids for ids, _ in own] for own in found] == [[ids for ids, _ in own] for own in expected]
        assert found[0] != found[1]
        change(backbone.adapter_parameters("second"))
        for policy in theirs:
            policy.keep_cache(False)
    assert backbone.engine.loaded == 4
    assert len(backbone.engine.llm.adapters) == 2
    assert backbone.engine.llm.options["max_lora_rank"] == 8


def test_draws_are_those_of_the_policy_and_of_the_seed(vllm: None, tiny_folder: str) -> None:
    backbone = Backbone(tiny_folder, "float32")
    team = policies(tiny_folder, [None], "vllm", backbone)
    first, again, other = (answers(team, greedy=False, seed=seed) for seed in (3, 3, 4))
    assert first == again != other
    params = backbone.engine.llm.params
    assert len({one.seed for one in params}) == len(PROMPTS)
    assert {(one.temperature, one.max_tokens, one.logprobs, one.detokenize) for one in params} == {(0.7, 6, 0, False)}
    assert set(params[0].stop_token_ids) == team[0].eos_ids
    assert backbone.engine.llm.options["logprobs_mode"] == "processed_logprobs"
    for prompt, (ids, log_probs) in zip(PROMPTS, first[0], strict=True):
        logits = backbone.lm(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
        expected = (logits / 0.7).log_softmax(-1).gather(-1, torch.tensor(ids)[:, None]).squeeze(-1)
        torch.testing.assert_close(torch.tensor(log_probs), expected, atol=1e-4, rtol=1e-4)


def test_what_it_cannot_do_is_said_before_weights_load(tiny_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = PolicySpec(tiny_folder, engine="vllm")
    monkeypatch.setattr(vllm_engine.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'collm\[vllm\]'"):
        spec.check("policy")
    monkeypatch.setattr(vllm_engine.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigurationError, match="needs a GPU"):
        spec.check("policy")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for cut in ({"top_p": 0.9}, {"top_k": 5}, {"min_new_tokens": 2}):
        with pytest.raises(ConfigurationError, match="cut the distribution"):
            PolicySpec(tiny_folder, engine="vllm", **cut).check("policy")
    with pytest.raises(ConfigurationError, match="at most 512"):
        PolicySpec(tiny_folder, engine="vllm", lora_rank=1024).check("policy")
    spec.check("policy")
