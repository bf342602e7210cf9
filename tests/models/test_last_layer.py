"""The last layer at some places only: the same states there and the same gradients, in every family."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from collm.models.last_layer import only_at
from families import FAMILIES

SIZES = (9, 14, 5, 14)


def rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids, mask and the places that are needed: some, all, none and one of a row."""
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
@pytest.mark.parametrize("family", FAMILIES)
def test_states_and_gradients_are_those_of_the_whole_layer(
    family: str, padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(1)
    lm = FAMILIES[family]()
    for name, weight in lm.named_parameters():
        nn.init.normal_(weight, float(("norm" in name or "ln_" in name) and name.endswith("weight")), 0.2)
    ids, mask, needed = rows()
    if not padded:
        ids, mask, needed = ids[[1, 3]], mask[[1, 3]], needed[[1, 3]]
    expected = states_and_gradients(lm, ids, mask, needed)
    seen: list[tuple[int, ...]] = []
    last = lm.model.layers[-1].mlp if hasattr(lm, "model") else lm.transformer.h[-1].mlp
    after = lm.model.layers[-1].mlp.down_proj if hasattr(lm, "model") else last.c_proj
    after.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    with only_at(lm, needed):
        found = states_and_gradients(lm, ids, mask, needed)
    assert seen == [(len(ids), 10, 32)]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    states_and_gradients(lm, ids, mask, needed)
    assert seen[1] == (len(ids), 14, 32)  # it is whole again


def test_where_most_places_are_needed_or_there_is_noise_all_are_computed() -> None:
    lm = FAMILIES["gpt2"]()
    ids, mask, needed = rows()
    with only_at(lm, mask):
        assert "forward" not in vars(lm.transformer.h[-1])
    lm.config.resid_pdrop = 0.1
    with only_at(lm.train(), needed):
        assert "forward" not in vars(lm.transformer.h[-1])
    with only_at(lm.eval(), needed):
        assert "forward" in vars(lm.transformer.h[-1])
