"""Layers as updates compute them: the same states at the positions that are needed, and the same gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.functional import inject_adapter_in_model, set_adapter
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import PreTrainedModel

from architectures import ARCHITECTURES
from collm.kernels import layers
from collm.kernels.layers import needed_at

SIZES = (9, 14, 5, 14)


def rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, mask and the positions that are needed: some, all, none and one of a row."""
    torch.manual_seed(0)
    ids = torch.randint(2, 97, (len(SIZES), max(SIZES)))
    mask = torch.arange(max(SIZES)) < torch.tensor(SIZES)[:, None]
    needed = torch.zeros_like(mask)
    needed[0, [2, 5, 8]] = needed[1, 4:14] = needed[3, 13] = True
    return ids, mask, needed


def states_and_gradients(
    lm: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, needed: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    states = lm.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[needed]
    (states * torch.arange(1.0, 1 + states.numel()).view_as(states).sin()).sum().backward()
    gradients = [weight.grad for weight in lm.parameters()]
    lm.zero_grad()
    return states.detach(), gradients


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_states_and_gradients_are_those_of_the_whole_layer(
    architecture: str, padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    lm = ARCHITECTURES[architecture]()
    for name, weight in lm.named_parameters():
        nn.init.normal_(weight, float(("norm" in name or "ln_" in name) and name.endswith("weight")), 0.2)
    ids, mask, needed = rows()
    if not padded:
        ids, mask, needed = ids[[1, 3]], mask[[1, 3]], needed[[1, 3]]
    expected = states_and_gradients(lm, ids, mask, needed)
    seen: list[tuple[int, ...]] = []
    compute = layers.recomputed_linear

    def spy(*args: Any) -> tuple[torch.Tensor, ...]:
        outputs = compute(*args)
        seen.append(outputs[0].shape)
        return outputs

    monkeypatch.setattr(layers, "recomputed_linear", spy)
    with needed_at(lm, needed):
        found = states_and_gradients(lm, ids, mask, needed)
    assert seen[-1] == (len(ids), 10, 32)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    number = len(seen)
    states_and_gradients(lm, ids, mask, needed)
    assert len(seen) == number  # it is itself again


def test_where_most_positions_are_needed_or_there_is_dropout_the_model_computes_itself() -> None:
    lm = ARCHITECTURES["gpt2"]()
    ids, mask, needed = rows()
    with needed_at(lm, mask):
        assert "forward" not in vars(lm.transformer.h[-1])
    lm.config.resid_pdrop = 0.1
    with needed_at(lm.train(), needed):
        assert "forward" not in vars(lm.transformer.h[-1])
    with needed_at(lm.eval(), needed):
        assert "forward" in vars(lm.transformer.h[-1])
    lm.config.resid_pdrop = 0.0
    inject_adapter_in_model(LoraConfig(r=2, lora_dropout=0.1, target_modules="all-linear"), lm, "noisy")
    with needed_at(lm.train(), needed):
        assert "forward" not in vars(lm.transformer.h[-1])
    with needed_at(lm.eval(), needed):
        assert "forward" in vars(lm.transformer.h[0])


def with_adapters(architecture: str, dtype: torch.dtype) -> PreTrainedModel:
    """Two adapters that change a lot; the second is in use."""
    torch.manual_seed(1)
    lm = ARCHITECTURES[architecture]().to(dtype)
    for name in ("other", "own"):
        inject_adapter_in_model(LoraConfig(r=3, lora_alpha=6.0, target_modules="all-linear"), lm, name)
    set_adapter(lm, "own")
    for name, weight in lm.named_parameters():
        if "lora" in name:
            nn.init.normal_(weight, 0.0, 0.2)
    return lm


@pytest.mark.parametrize("everywhere", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_adapters_learn_as_they_do_in_peft(architecture: str, everywhere: bool) -> None:
    lm = with_adapters(architecture, torch.float64)
    ids, mask, needed = rows()
    needed = mask if everywhere else needed
    expected = states_and_gradients(lm, ids, mask, needed)
    with needed_at(lm, needed):
        found = states_and_gradients(lm, ids, mask, needed)
    names = [name for name, _ in lm.named_parameters()]
    learned = {name for name, gradient in zip(names, found[1], strict=True) if gradient is not None}
    assert learned == {name for name in names if ".own." in name}
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)  # norms compute in single precision
    for layer in lm.modules():
        if isinstance(layer, LoraLayer):
            layer.enable_adapters(False)
    plain = lm.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[needed]
    with needed_at(lm, needed), torch.no_grad():
        frozen = lm.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[needed]
    assert (frozen - expected[0]).abs().max() > 0.1
    torch.testing.assert_close(frozen, plain.detach(), rtol=1e-4, atol=1e-5)


def test_adapters_of_higher_precision_than_the_model_lose_no_more_than_in_peft() -> None:
    lm = with_adapters("llama", torch.bfloat16)
    for name, weight in lm.named_parameters():
        if "lora" in name:
            weight.data = weight.data.float()
    ids, mask, needed = rows()
    states, gradients = states_and_gradients(lm, ids, mask, needed)
    with needed_at(lm, needed):
        found, own = states_and_gradients(lm, ids, mask, needed)
    exact, true = states_and_gradients(lm.float(), ids, mask, needed)
    assert (found - exact).norm() < 1.3 * (states - exact).norm()
    learned = [number for number, gradient in enumerate(true) if gradient is not None]
    assert all(own[number].dtype == torch.float32 for number in learned)
    errors = {
        kind: sum(float((some[number] - true[number]).square().sum()) for number in learned)
        for kind, some in (("found", own), ("peft", gradients))
    }
    assert 0 < errors["found"] < 1.5 * errors["peft"]  # sums of squares; torch 2.9 and 2.13 differ by a third


def test_a_layer_refuses_what_it_does_not_know() -> None:
    lm = ARCHITECTURES["llama"]()
    ids, mask, needed = rows()
    with needed_at(lm, needed), pytest.raises(TypeError, match="LlamaDecoderLayer was given 'cache_of_tomorrow'"):
        lm.base_model(input_ids=ids, use_cache=False, cache_of_tomorrow=[1])
