"""Rows that share their beginning against rows that each have all of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import DynamicCache

from architectures import ARCHITECTURES
from collm.inference.embedded import prefill
from collm.inference.embedded.cache import ReservedLayer, Rows
from collm.inference.embedded.forward import CachedModel, TransformersModel, cached_model
from collm.inference.embedded.generation import generate
from collm.inference.embedded.prefill import PrefixCache
from collm.inference.embedded.shared_cache import SharedPrefixCache, expand_rows
from collm.inference.sampling import Sampling
from collm.models import backbone as backbone_module
from collm.models.backbone import Backbone

PROMPTS = [[7, 8, 9] * 8, [20, 21], list(range(40, 71))]
COPIES = {"in order": [0, 0, 0, 1, 1, 1, 2, 2, 2], "mixed": [2, 0, 2, 1, 2, 2, 0]}


def states(rows: int, length: int) -> torch.Tensor:
    return torch.randn(rows, 2, length, 4, dtype=torch.float64)


@pytest.mark.parametrize("copies", COPIES.values(), ids=COPIES)
def test_attention_is_that_of_whole_rows(copies: list[int]) -> None:
    """Through new tokens, and rows that leave."""
    torch.manual_seed(0)
    trunk = DynamicCache()
    trunk.layers = [ReservedLayer()]
    shared = trunk.layers[0].update(states(3, 5), states(3, 5))
    mask = torch.rand(3, 5) < 0.7
    parents = torch.tensor(copies)
    cache, whole = SharedPrefixCache(trunk, parents), [part[parents] for part in shared]
    mask = mask[parents]
    for step in range(4):
        if step == 2:
            keep = torch.tensor([0, 2, 3, 6])
            cache.batch_select_indices(keep)
            whole, mask = [part[keep] for part in whole], mask[keep]
        new = states(len(mask), 1), states(len(mask), 1)
        cache.layers[0].update(*new)
        whole = [torch.cat(parts, dim=2) for parts in zip(whole, new, strict=True)]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        seen = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -1e300)[:, None, None]
        queries = states(len(mask), 3)  # that share a key
        expected = F.scaled_dot_product_attention(queries, *whole, attn_mask=seen, scale=0.3)
        torch.testing.assert_close(cache.attend(0, queries, seen, 0.3), expected)
    chosen = torch.tensor([3, 1])
    rows, copies = expand_rows(Rows(cache, mask), chosen)
    assert torch.equal(rows.mask[copies], mask[chosen])
    assert torch.equal(rows.cache.layers[0].keys[copies], whole[0][chosen])
    assert torch.equal(rows.cache.layers[0].values[copies], whole[1][chosen])


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Backbone]:
    def backbone(architecture: str) -> Backbone:
        lm = ARCHITECTURES[architecture]()
        torch.manual_seed(0)
        for weight in lm.parameters():
            nn.init.normal_(weight, std=0.2)
        monkeypatch.setattr(backbone_module, "load_model", lambda *args: lm)
        return Backbone("made here", "float32").eval()

    return backbone


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("copies", COPIES.values(), ids=COPIES)
def test_groups_are_sampled_as_from_copies(
    made: Callable, monkeypatch: pytest.MonkeyPatch, architecture: str, copies: list[int]
) -> None:
    """Responses of different lengths drawn with the same seed, and continuations of those."""
    backbone = made(architecture)
    monkeypatch.setattr(prefill, "_MIN_SHARED_POSITIONS", 0)
    branched = cached_model([(backbone, None)])
    assert branched.shares_prefixes
    whole = TransformersModel(backbone, [None])
    found, expected = (rollout(model, copies) for model in (branched, whole))
    assert len({len(tokens) for tokens, _, _ in expected}) > 1  # rows leave one after the other
    assert len({tuple(tokens) for tokens, _, _ in expected}) > len(PROMPTS)
    for (tokens, log_probs, _), (other, other_log_probs, _) in zip(found, expected, strict=True):
        assert tokens == other
        assert log_probs == pytest.approx(other_log_probs, abs=2e-5)


def rollout(model: CachedModel, copies: list[int]) -> list[tuple[list[int], list[float]]]:
    """Two turns; two responses to each history of the second."""
    generator, cache = torch.Generator().manual_seed(0), PrefixCache()
    sampling, ends = Sampling(12, temperature=2.0), range(0, 97, 9)
    first = generate(model, [PROMPTS[copy] for copy in copies], sampling, ends, generator, cache)
    histories = [[*PROMPTS[copy], *tokens, 5] for copy, (tokens, _, _) in zip(copies, first, strict=True)]
    return [*first, *generate(model, histories + histories, sampling, ends, generator, cache)]


def test_what_is_shared_is_held_once(made: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone, caches = made("llama"), []
    model = cached_model([(backbone, None)])
    for worth in (0, 2**30):
        monkeypatch.setattr(prefill, "_MIN_SHARED_POSITIONS", worth)
        rows, _ = prefill.prefill(model, [(0, tuple(PROMPTS[2]))] * 8, PrefixCache())
        caches.append(rows.cache)
    assert [type(cache) is SharedPrefixCache for cache in caches] == [True, False]
    assert len(caches[0].prefixes.layers[0].keys) == 1
    assert len(caches[1].layers[0].keys) == 8
