"""Rows that begin alike are computed together, and nothing else about them changes."""

from __future__ import annotations

import pytest
import torch

from collm.kernels import shared_prefix as prefixes
from collm.kernels.shared_prefix import Segment, split
from collm.models.backbone import Backbone
from collm.models.policy import Policy
from collm.models.policy_spec import PolicySpec
from collm.packing import TokenSequence, pad_sequences

SHARED = [[7, 8, 9, *range(14, 34)], [7, 8, 9, *range(14, 32), 3], [7, 8, 9, *range(20, 30)], [5, 6]]


def test_rows_are_split_where_they_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixes, "_MIN_SHARED_TOKENS", 6)
    first, second, end = Segment([0, 1, 2], 0, 3), Segment([0, 1], 3, 21), 23
    assert split(SHARED) == [
        [first, Segment([3], 0, 2)],
        [second, Segment([2], 3, 13, parent=0)],
        [Segment([0], 21, end, parent=0), Segment([1], 21, 22, parent=0)],
    ]


def test_what_is_not_worth_a_pass_is_not_split_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefixes, "_MIN_SHARED_TOKENS", 7)  # three rows share three tokens, which saves six
    assert split(SHARED) == [
        [Segment([0, 1], 0, 21), Segment([2], 0, 13), Segment([3], 0, 2)],
        [Segment([0], 21, 23, parent=0), Segment([1], 21, 22, parent=0)],
    ]


def test_equal_rows_and_rows_that_begin_others() -> None:
    assert split([[1, 2], [1, 2]]) == [[Segment(range(2), 0, 2)]]
    assert split([[1, 2], [1, 2, 3]]) == [[Segment([0], 0, 2), Segment([1], 0, 3)]]


@pytest.mark.parametrize("adapter", ["a1", None])
def test_log_probabilities_and_gradients_are_those_of_every_row_alone(
    monkeypatch: pytest.MonkeyPatch, adapter: str | None
) -> None:
    monkeypatch.setattr(prefixes, "_MIN_SHARED_TOKENS", 6)
    backbone = Backbone("relay", "float32")
    torch.nn.init.normal_(backbone.lm.lm_head.weight)  # it begins at 0
    if adapter:
        torch.manual_seed(0)
        backbone.add_adapter(adapter, 2, 4.0, 0.0)
        for weight in backbone.adapter_parameters(adapter):
            torch.nn.init.normal_(weight, std=0.3)
    backbone.double()
    policy = Policy("a1", PolicySpec("relay"), backbone, adapter)
    rows = [row for row in SHARED for _ in range(2)]
    sequences = [
        TokenSequence(number, row, [-1] + [position % 3 - 1 for position in range(1, len(row))])
        for number, row in enumerate(rows)
    ]
    batch = pad_sequences(sequences, 0, "cpu")
    passes: list[tuple[int, ...]] = []
    backbone.lm.base_model.register_forward_pre_hook(
        lambda model, args, given: passes.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    found = {}
    for shares in (True, False):
        backbone.fast_updates = shares
        log_probs, entropies = policy.log_probs(batch)
        ((log_probs * torch.arange(1.0, 1 + log_probs.numel()).view_as(log_probs)).sum() + entropies.sum()).backward()
        gradients = [weight.grad.clone() for weight in policy.parameters()]
        backbone.zero_grad()
        found[shares] = (log_probs.detach(), entropies.detach(), gradients)
    assert passes == [(2, 3), (2, 18), (2, 2), (8, 23)]
    torch.testing.assert_close(found[True], found[False], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("rows", [[[1, 2, 3]], [[1, 2, 3], [4, 5, 6]]])
def test_rows_that_share_nothing_take_one_pass(tiny_folder: str, rows: list[list[int]]) -> None:
    backbone = Backbone(tiny_folder, "float32")
    passes = []
    backbone.lm.base_model.register_forward_pre_hook(lambda *args: passes.append(1))
    everywhere = torch.ones(len(rows), 3, dtype=torch.bool)
    backbone.hidden_states(torch.tensor(rows), everywhere, everywhere)
    assert len(passes) == 1


def test_a_model_that_drops_its_states_reads_every_row(tiny_folder: str) -> None:
    backbone = Backbone(tiny_folder, "float32")
    backbone.recompute_activations()
    assert not backbone.fast_updates
