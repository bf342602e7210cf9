"""Batched sampling against transformers' own generation and against the model's probabilities."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from collm.errors import TrainingError
from collm.inference.embedded.cache import ReservedLayer, make_cache
from collm.inference.embedded.forward import CachedModel, TransformersModel, cached_model
from collm.inference.embedded.generation import generate
from collm.inference.sampling import Sampling, draw
from collm.models.backbone import Backbone

PROMPTS = [[7, 8, 9], [20], [30, 31, 32, 33, 34, 35, 36], [7, 8, 9], [100, 50]]
GREEDY = Sampling(12, greedy=True)


@pytest.fixture(scope="module")
def lm(tiny_folder: str):
    return AutoModelForCausalLM.from_pretrained(tiny_folder).eval()


@pytest.fixture(scope="module", params=["embedded", "transformers"])
def model(request: pytest.FixtureRequest, tiny_folder: str) -> CachedModel:
    backbone = Backbone(tiny_folder, "float32").eval()
    return cached_model([(backbone, None)]) if request.param == "embedded" else TransformersModel(backbone, [None])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ends_of(model: CachedModel) -> list[int]:
    """Tokens that end the greedy answers at different lengths."""
    free = generate(model, PROMPTS, GREEDY, [], seeded())
    return [free[0][0][3], free[1][0][6], free[4][0][1]]


def test_greedy_tokens_are_those_of_transformers(lm, model: CachedModel) -> None:
    ends = ends_of(model)
    width = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in PROMPTS])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in PROMPTS])
    options = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": ends, "pad_token_id": 0}
    expected = lm.generate(ids, attention_mask=mask, **options)[:, width:].tolist()
    drawn = generate(model, PROMPTS, GREEDY, ends, seeded())
    for (tokens, log_probs, _), reference in zip(drawn, expected, strict=True):
        assert tokens == reference[: len(tokens)]
        assert len(tokens) == len(log_probs)
        assert tokens[-1] in ends or len(tokens) == 12
        assert not set(tokens[:-1]) & set(ends)
    assert len({len(tokens) for tokens, _, _ in drawn}) > 2


def test_rows_that_leave_early_do_not_change_the_others(model: CachedModel) -> None:
    ends = ends_of(model)
    together = generate(model, PROMPTS, GREEDY, ends, seeded())
    for prompt, (tokens, log_probs, _) in zip(PROMPTS, together, strict=True):
        ((alone, alone_log_probs, _),) = generate(model, [prompt], GREEDY, ends, seeded())
        assert tokens == alone
        assert log_probs == pytest.approx(alone_log_probs, abs=1e-4)


@pytest.mark.parametrize("greedy", [True, False])
def test_log_probs_are_those_of_the_whole_sequence(lm, model: CachedModel, greedy: bool) -> None:
    sampling = Sampling(9, temperature=0.6, top_p=0.9, top_k=50, greedy=greedy, uncut=True)
    drawn = generate(model, PROMPTS, sampling, list(range(0, 400, 9)), seeded())
    for prompt, (tokens, log_probs, _) in zip(PROMPTS, drawn, strict=True):
        logits = lm(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
        expected = (logits / 0.6).log_softmax(-1).gather(-1, torch.tensor(tokens)[:, None]).squeeze(-1)
        torch.testing.assert_close(torch.tensor(log_probs), expected, atol=1e-4, rtol=1e-4)


def test_equal_prompts_share_their_prefill_and_are_sampled_independently(
    model: CachedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[tuple[int, ...]] = []
    forward = model.forward
    monkeypatch.setattr(model, "forward", lambda ids, *args: sizes.append(tuple(ids.shape)) or forward(ids, *args))
    drawn = generate(model, [[7, 8, 9]] * 6 + [[20, 21]], Sampling(5), [], seeded())
    assert sizes == [(2, 3), *[(7, 1)] * 4]
    assert len({tuple(tokens) for tokens, _, _ in drawn}) == 7


def test_the_generator_alone_decides(model: CachedModel) -> None:
    first, again, other = (generate(model, PROMPTS, Sampling(6), [], seeded(seed)) for seed in (3, 3, 4))
    assert first == again
    assert first != other


@pytest.mark.parametrize("sampling", [Sampling(12, top_k=1), Sampling(12, top_p=1e-6), Sampling(12, temperature=1e-4)])
def test_limits_of_sampling_are_greedy(model: CachedModel, sampling: Sampling) -> None:
    drawn, greedy = (generate(model, PROMPTS, one, [], seeded()) for one in (sampling, GREEDY))
    assert [tokens for tokens, _, _ in drawn] == [tokens for tokens, _, _ in greedy]


def test_one_token(model: CachedModel) -> None:
    drawn = generate(model, PROMPTS, Sampling(1, greedy=True), [], seeded())
    assert [tokens for tokens, _, _ in drawn] == [
        tokens[:1] for tokens, _, _ in generate(model, PROMPTS, GREEDY, [], seeded())
    ]


def test_draws_follow_the_softmax(lm, model: CachedModel) -> None:
    num_draws, temperature = 20_000, 0.7
    logits = lm(torch.tensor([[7, 8, 9]])).logits[0, -1]
    probabilities = (logits / temperature).softmax(-1)
    drawn = generate(model, [[7, 8, 9]] * num_draws, Sampling(1, temperature=temperature), [], seeded())
    counts = torch.bincount(torch.tensor([tokens[0] for tokens, _, _ in drawn]), minlength=len(logits))
    freedom = len(logits) - 1

    def deviations(expected: torch.Tensor) -> float:
        """Standard deviations between the chi-square statistic and its mean."""
        chi_square = ((counts - num_draws * expected).square() / (num_draws * expected)).sum().item()
        return (chi_square - freedom) / (2 * freedom) ** 0.5

    assert abs(deviations(probabilities)) < 4
    assert deviations(logits.softmax(-1)) > 6  # another temperature would be seen


@pytest.mark.parametrize(
    ("options", "allowed"), [({"top_p": 0.7}, {1, 3}), ({"top_k": 3}, {0, 1, 3}), ({}, {0, 1, 2, 3})]
)
@pytest.mark.parametrize("uncut", [False, True])
def test_cuts_keep_the_likely_tokens(options: dict, allowed: set[int], uncut: bool) -> None:
    probabilities = torch.tensor([0.15, 0.5, 0.05, 0.3])
    tokens, log_probs, _ = draw(probabilities.log().repeat(2000, 1), Sampling(1, uncut=uncut, **options), seeded())
    assert set(tokens.tolist()) == allowed
    kept = probabilities * torch.tensor([float(token in allowed) for token in range(4)])
    of_policy = probabilities if uncut else kept / kept.sum()
    torch.testing.assert_close(log_probs, of_policy.log()[tokens])
    shares = torch.bincount(tokens, minlength=4) / 2000
    torch.testing.assert_close(shares, kept / kept.sum(), atol=0.04, rtol=0)


def test_weights_that_diverged_are_named(tiny_folder: str) -> None:
    backbone = Backbone(tiny_folder, "float32")
    backbone.lm.get_input_embeddings().weight.data.fill_(float("nan"))
    for model in (cached_model([(backbone, None)]), TransformersModel(backbone, [None])):
        with pytest.raises(TrainingError, match="not finite"):
            generate(model, PROMPTS, GREEDY, [], seeded())


def test_the_reserving_cache_holds_what_the_cache_of_transformers_holds(lm) -> None:
    ours, plain = make_cache(lm.config), DynamicCache(config=lm.config)
    assert all(type(layer) is ReservedLayer for layer in ours.layers)
    torch.manual_seed(0)
    rows, length = 4, 0
    for step, new in enumerate([5, 1, 1, 70, 1, 1, 120, 1]):
        for layer in range(2):
            keys, values = torch.randn(rows, 2, new, 16), torch.randn(rows, 2, new, 16)
            found, expected = (cache.update(keys, values, layer) for cache in (ours, plain))
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
        length += new
        assert ours.get_seq_length() == plain.get_seq_length() == length
        if step in (1, 4):  # one row leaves, and one is there twice
            chosen = torch.tensor([2, 0, 2])
            ours.batch_select_indices(chosen)
            plain.batch_select_indices(chosen)
            rows = 3


@pytest.mark.parametrize("greedy", [True, False])
def test_nothing_ends_a_response_before_its_smallest_length(lm, model: CachedModel, greedy: bool) -> None:
    every_other = list(range(0, lm.config.vocab_size, 2))
    drawn = generate(model, PROMPTS, Sampling(40, greedy=greedy, min_new_tokens=5), every_other, seeded())
    for tokens, _, _ in drawn:
        assert not set(tokens[:5]) & set(every_other)
    assert all(len(tokens) >= 5 for tokens, _, _ in drawn)
    if not greedy:
        assert min(len(tokens) for tokens, _, _ in drawn) < 40
    fixed = generate(model, PROMPTS, Sampling(7, greedy=greedy, min_new_tokens=7), every_other, seeded())
    assert [len(tokens) for tokens, _, _ in fixed] == [7] * len(PROMPTS)
    options = {"do_sample": False, "max_new_tokens": 12, "min_new_tokens": 5, "eos_token_id": every_other}
    ids = torch.tensor([PROMPTS[0]])
    expected = lm.generate(ids, attention_mask=ids.ne(-1), pad_token_id=0, **options)[0, 3:].tolist()
    ((tokens, _, _),) = generate(model, PROMPTS[:1], Sampling(12, greedy=True, min_new_tokens=5), every_other, seeded())
    assert tokens == expected
