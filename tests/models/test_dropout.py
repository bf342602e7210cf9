"""The dropout of language models is off in updates and values, whatever mode they are in, unless it is asked for."""

from __future__ import annotations

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from architectures import SHAPE, SHAPE_OF_GPT2
from collm.critics.value_network import ValueNetwork
from collm.models.backbone import Backbone
from collm.models.policy import Policy
from collm.models.policy_spec import PolicySpec
from collm.packing import TokenSequence, pad_sequences

NOISY = {
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(**{**SHAPE_OF_GPT2, "attn_pdrop": 0.2, "embd_pdrop": 0.2, "resid_pdrop": 0.2})
    ),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, attention_dropout=0.5)),
    # a layer that asks its own mode in its forward pass
    "opt": lambda: OPTForCausalLM(
        OPTConfig(
            **{**SHAPE, "eos_token_id": 1}, ffn_dim=48, word_embed_proj_dim=32, dropout=0.2, attention_dropout=0.2
        )
    ),
}
ROWS = [[5, 6, 7, 8, 9, 10, 11], [5, 6, 7, 12, 13]]


@pytest.fixture(params=NOISY)
def noisy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every backbone is made of the same random weights."""

    def load(*args: object) -> torch.nn.Module:
        torch.manual_seed(0)
        return NOISY[request.param]()

    monkeypatch.setattr("collm.models.backbone.load_model", load)


def batch():
    return pad_sequences(
        [TokenSequence(row, ids, [-1, -1] + [0] * (len(ids) - 2)) for row, ids in enumerate(ROWS)], 0, "cpu"
    )


def log_probs(backbone: Backbone, folder: str) -> torch.Tensor:
    return Policy("a1", PolicySpec(folder), backbone, None).log_probs(batch())[0]


def test_the_first_importance_ratio_is_one(noisy: None, tiny_folder: str) -> None:
    backbone = Backbone(tiny_folder, "float32")
    sampled = log_probs(backbone.eval(), tiny_folder).detach()
    for _ in range(2):
        trained = log_probs(backbone.train(), tiny_folder)
        torch.testing.assert_close((trained - sampled).exp(), torch.ones_like(sampled), rtol=0, atol=1e-5)
    values = ValueNetwork(backbone, None, 1, tiny_folder)
    torch.nn.init.normal_(values.head.weight)
    first, second = values.train()(batch()), values.train()(batch())
    assert first.abs().max() > 0.1
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_dropout_can_be_asked_for(noisy: None, tiny_folder: str) -> None:
    backbone = Backbone(tiny_folder, "float32", dropout=True)
    first, second = (log_probs(backbone.train(), tiny_folder).detach() for _ in range(2))
    assert (first - second).abs().max() > 1e-4
    first, second = (log_probs(backbone.eval(), tiny_folder).detach() for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_activations_are_recomputed_without_dropout(
    noisy: None, tiny_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for recomputes in (False, True):
        backbone = Backbone(tiny_folder, "float32").train()
        if recomputes:
            backbone.recompute_activations()
        passes: list[int] = []
        for module in backbone.lm.modules():
            if type(module).__name__ in backbone.lm._no_split_modules:
                inner = next(iter(module.children()))
                inner.register_forward_pre_hook(lambda *args, passes=passes: passes.append(1))
        values = log_probs(backbone, tiny_folder)
        values.sum().backward()
        assert not recomputes or len(passes) == 4  # two layers, again in the backward pass
        found.append((values.detach(), [weight.grad for weight in backbone.lm.parameters() if weight.grad is not None]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)


def test_dropout_of_adapters_is_their_own_setting(noisy: None, tiny_folder: str) -> None:
    backbone = Backbone(tiny_folder, "float32")
    backbone.add_adapter("a1", 2, 4.0, 0.5)
    for weight in backbone.adapter_parameters("a1"):
        torch.nn.init.normal_(weight, std=0.2)
    policy = Policy("a1", PolicySpec(tiny_folder, lora_rank=2), backbone, "a1")
    backbone.train()
    first, second = (policy.log_probs(batch())[0].detach() for _ in range(2))
    assert (first - second).abs().max() > 1e-4
    frozen, again = (policy.log_probs(batch(), adapter=None)[0].detach() for _ in range(2))
    torch.testing.assert_close(frozen, again, rtol=0, atol=0)
