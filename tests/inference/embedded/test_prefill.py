"""Reading prompts in groups of similar length, and going on from what was read before, against reading all anew."""

from __future__ import annotations

import pytest
import torch

from collm.inference.embedded import prefill
from collm.inference.embedded.cache import Rows, join_rows, make_cache
from collm.inference.embedded.forward import CachedModel, TransformersModel, cached_model
from collm.inference.embedded.generation import generate
from collm.inference.embedded.prefill import PrefixCache
from collm.inference.sampling import Sampling
from collm.models.backbone import Backbone

GREEDY = Sampling(10, greedy=True)
PROMPTS = [[7, 8, 9], [20], [30, 31, 32, 33, 34, 35, 36], [7, 8, 9], [100, 50]]


@pytest.fixture(scope="module", params=["embedded", "transformers"])
def model(request: pytest.FixtureRequest, tiny_folder: str) -> CachedModel:
    backbone = Backbone(tiny_folder, "float32").eval()
    return cached_model([(backbone, None)]) if request.param == "embedded" else TransformersModel(backbone, [None])


@pytest.fixture(autouse=True, params=["branched", "copied"])
def branching(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether prompts that are the same are held once while responses are sampled, or for each response."""
    monkeypatch.setattr(prefill, "_MIN_SHARED_POSITIONS", 0 if request.param == "branched" else 2**30)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def shapes(model: CachedModel, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Rows and new tokens of every forward pass."""
    seen: list[tuple[int, int]] = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda ids, *args: seen.append(tuple(ids.shape)) or forward(ids, *args))
    return seen


def alone(model: CachedModel, prompt: list[int], ends: list[int]) -> tuple[list[int], list[float]]:
    """The answer to one prompt that is read whole."""
    ((tokens, log_probs, _),) = generate(model, [prompt], GREEDY, ends, seeded())
    return tokens, log_probs


def test_later_turns_go_on_from_earlier_ones(model: CachedModel, shapes: list) -> None:
    """Responses and episodes end at different times, histories grow by different lengths, one episode forks."""
    free = generate(model, PROMPTS, GREEDY, [], seeded())
    ends = [free[0][0][3], free[1][0][6], free[4][0][1]]  # so that answers have different lengths
    cache = PrefixCache()
    histories = PROMPTS
    for bridges in ({0: [5], 1: [6, 6, 6], 2: [7, 8], 4: [9]}, {1: [11, 12], 2: [13]}, {0: [40], 1: [41, 42]}):
        shapes.clear()
        drawn = generate(model, histories, GREEDY, ends, seeded(), cache)
        read = [size for size in shapes if size[1] > 1 or size == shapes[0]]
        if histories is not PROMPTS:  # only the bridges and the last tokens of responses
            assert sum(rows * size for rows, size in read) <= len(histories) * (1 + 3)
        for history, (tokens, log_probs, _) in zip(histories, drawn, strict=True):
            expected, expected_log_probs = alone(model, history, ends)
            assert tokens == expected
            assert log_probs == pytest.approx(expected_log_probs, abs=1e-4)
        histories = [[*histories[row], *drawn[row][0], *bridge] for row, bridge in bridges.items()]
        histories.append([*histories[0][:-1], 77, 78])  # goes on from the same response in another way
    assert len({len(tokens) for tokens, _, _ in drawn}) > 1


def test_states_of_equal_rows_are_gone_on_from_where_they_are(
    model: CachedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless a row goes on in two ways, or the order changes."""
    copies: list[int] = []
    join = prefill.join_rows
    monkeypatch.setattr(prefill, "join_rows", lambda parts: copies.append(len(parts)) or join(parts))
    starts = [[7, 8, 9], [20, 21, 22], [30, 31, 32]]
    for chosen, copied in (([0, 1, 2], False), ([0, 1], True), ([2, 1, 0], True), ([0, 1, 2, 1], True)):
        cache = PrefixCache()
        drawn = generate(model, starts, GREEDY, [], seeded(), cache)
        histories = [[*starts[row], *drawn[row][0], 40 + place] for place, row in enumerate(chosen)]
        copies.clear()
        found = generate(model, histories, GREEDY, [], seeded(), cache)
        assert bool(copies) == copied
        assert [tokens for tokens, _, _ in found] == [alone(model, history, [])[0] for history in histories]


def test_what_does_not_go_on_is_read_anew(model: CachedModel, shapes: list) -> None:
    cache = PrefixCache()
    drawn = generate(model, PROMPTS, GREEDY, [], seeded(), cache)
    cut = [*PROMPTS[2][2:], *drawn[2][0], 5]  # a history that lost its beginning
    longer = [*PROMPTS[0], *drawn[0][0], 5, 6]
    shapes.clear()
    results = generate(model, [cut, longer], GREEDY, [], seeded(), cache)
    assert sorted(shapes[:2]) == [(1, 3), (1, len(cut))]
    assert [tokens for tokens, _, _ in results] == [alone(model, prompt, [])[0] for prompt in (cut, longer)]


def test_a_prompt_that_was_read_whole_is_read_again(model: CachedModel) -> None:
    """Its last token has to be read for the logits after it, so the known beginning must be shorter."""
    cache = PrefixCache()
    drawn = generate(model, PROMPTS, GREEDY, [], seeded(), cache)
    whole = [*PROMPTS[0], *drawn[0][0][:-1]]
    assert cache.lookup([(0, tuple(whole))]) == [None]
    assert generate(model, [whole], GREEDY, [], seeded(), cache)[0][0] == alone(model, whole, [])[0]


def test_only_the_newest_is_kept(model: CachedModel) -> None:
    cache = PrefixCache()
    first = generate(model, [[7, 8, 9]], GREEDY, [], seeded(), cache)[0][0]
    generate(model, [[20]], GREEDY, [], seeded(), cache)
    assert cache.lookup([(0, (7, 8, 9, *first, 5))]) == [None]


def test_prompts_of_different_length_are_read_in_groups(model: CachedModel, shapes: list) -> None:
    prompts = [[7] * size for size in (100, 3, 40, 101, 41, 100)]
    prompts[5] = [8] * 100
    drawn = generate(model, [*prompts, prompts[0], prompts[1]], GREEDY, [], seeded())
    assert shapes[:2] == [(3, 41), (3, 101)]  # a little padding is free
    assert shapes[2:] == [(8, 1)] * 9
    for prompt, (tokens, _, _) in zip([*prompts, prompts[0], prompts[1]], drawn, strict=True):
        assert tokens == alone(model, prompt, [])[0]


def test_rows_are_joined_without_what_does_not_count(model: CachedModel) -> None:
    torch.manual_seed(0)
    parts = []
    for mask in ([[0, 1, 1, 0], [1, 1, 1, 1]], [[1, 0], [0, 1]]):
        cache = make_cache(model.config)
        for layer in range(2):
            cache.update(torch.randn(2, 2, len(mask[0]), 16), torch.randn(2, 2, len(mask[0]), 16), layer)
        parts.append(Rows(cache, torch.tensor(mask, dtype=torch.bool)))
    # rows 0 and 2 are the two of the first part in turn, row 1 is the second of the second part
    joined = join_rows(
        [(parts[0], torch.tensor([0, 1]), torch.tensor([0, 2])), (parts[1], torch.tensor([1]), torch.tensor([1]))]
    )
    assert joined.mask.int().tolist() == [[0, 0, 1, 1], [0, 0, 0, 1], [1, 1, 1, 1]]
    for layer in range(2):
        own = joined.cache.layers[layer]
        first, second = (part.cache.layers[layer] for part in parts)
        for name in ("keys", "values"):
            found = getattr(own, name)
            assert found.isfinite().all()
            assert (found[0][:, 2:] == getattr(first, name)[0][:, 1:3]).all()
            assert (found[1][:, 3:] == getattr(second, name)[1][:, 1:]).all()
            assert (found[2] == getattr(first, name)[1]).all()
