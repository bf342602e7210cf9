"""The two engines that sample: the same tokens where nothing is left to chance, and the same distribution elsewhere."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from actors import sampled
from collm.errors import ConfigurationError
from collm.inference import transformers_engine
from collm.inference.embedded import generation
from collm.inference.embedded.forward import CachedModel, cached_model
from collm.inference.sampling import Sampling
from collm.models.backbone import Backbone
from collm.models.policy import Policy, Response
from collm.models.policy_spec import PolicySpec
from collm.runtime.progress import progress

PROMPTS = [[7, 8, 9], [20], [30, 31, 32, 33, 34, 35, 36], [7, 8, 9], [100, 50]]


@pytest.fixture(scope="module")
def lm(tiny_folder: str):
    return AutoModelForCausalLM.from_pretrained(tiny_folder).eval()


@pytest.fixture(scope="module")
def model(tiny_folder: str) -> CachedModel:
    return cached_model([(Backbone(tiny_folder, "float32").eval(), None)])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("options", [{}, {"min_new_tokens": 5}, {"temperature": 0.6}, {"allowed_ids": range(9, 200)}])
def test_greedy_responses_are_the_same(lm, model: CachedModel, options: dict) -> None:
    free = generation.generate(model, PROMPTS, Sampling(12, greedy=True), [], seeded())
    ends = [free[0][0][3], free[1][0][6], free[4][0][1]]
    sampling = Sampling(12, greedy=True, **options)
    ours = generation.generate(model, PROMPTS, sampling, ends, seeded())
    theirs = transformers_engine.generate(lm, PROMPTS, sampling, ends, seeded())
    assert len({len(tokens) for tokens, _, _ in ours}) > 1
    for (tokens, log_probs, _), (other, other_log_probs, _) in zip(ours, theirs, strict=True):
        assert tokens == other
        assert log_probs == pytest.approx(other_log_probs, abs=1e-4)


@pytest.mark.parametrize("engine", ["collm", "transformers"])
def test_both_tell_how_far_they_have_come(lm, model: CachedModel, monkeypatch, engine: str) -> None:
    told: list[str] = []
    monkeypatch.setattr("collm.runtime.progress.PAUSE", 0.0)
    with progress.told_to(told.append):
        if engine == "collm":
            generation.generate(model, PROMPTS, Sampling(3, greedy=True), [], seeded())
        else:
            transformers_engine.generate(lm, PROMPTS, Sampling(3, greedy=True), [], seeded())
    layers = [f"prompts, layer {layer} of 2" for layer in (1, 2)]
    reading = told[: told.index("token 1 of at most 3")]
    assert reading == (layers * (len(reading) // 2) if engine == "collm" else [])
    assert bool(reading) == (engine == "collm")
    assert told[len(reading) :] == [f"token {token} of at most 3" for token in (1, 2, 3)]


def test_sampled_responses_are_alike(lm, model: CachedModel) -> None:
    """Each engine's first two tokens against the exact distribution of the pairs that are likely enough to count."""
    sampling, num_draws, ends = Sampling(2, temperature=0.8, top_k=3), 4000, [5]
    first = lm(torch.tensor([[7, 8, 9]])).logits[0, -1] / 0.8
    pairs = {}
    kept = first.topk(3)
    for token, probability in zip(kept.indices.tolist(), kept.values.softmax(0).tolist(), strict=True):
        second = (lm(torch.tensor([[7, 8, 9, token]])).logits[0, -1] / 0.8).topk(3)
        for other, conditional in zip(second.indices.tolist(), second.values.softmax(0).tolist(), strict=True):
            pairs[token, other] = probability * conditional
    assert len(pairs) == 9
    assert not {5} & {token for pair in pairs for token in pair}
    for engine, with_what in ((generation, model), (transformers_engine, lm)):
        drawn = engine.generate(with_what, [[7, 8, 9]] * num_draws, sampling, ends, seeded(1))
        counts = dict.fromkeys(pairs, 0)
        for tokens, _, _ in drawn:
            counts[tuple(tokens)] += 1  # nothing else is drawn
        deviation = sum((counts[pair] - num_draws * p) ** 2 / (num_draws * p) for pair, p in pairs.items())
        assert deviation < 26.1  # chi-square of 8 degrees of freedom: one run in a thousand is above
        uniform = sum((counts[pair] - num_draws / 9) ** 2 / (num_draws / 9) for pair in pairs)
        assert uniform > 26.1  # another distribution would be seen


def test_log_probs_of_both_are_those_of_the_whole_sequence(lm) -> None:
    sampling = Sampling(9, temperature=0.6, top_p=0.9, uncut=True)
    for prompt, (tokens, log_probs, _) in zip(
        PROMPTS, transformers_engine.generate(lm, PROMPTS, sampling, list(range(0, 400, 9)), seeded()), strict=True
    ):
        logits = lm(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
        expected = (logits / 0.6).log_softmax(-1).gather(-1, torch.tensor(tokens)[:, None]).squeeze(-1)
        torch.testing.assert_close(torch.tensor(log_probs), expected, atol=1e-4, rtol=1e-4)


def test_the_generator_alone_decides(lm) -> None:
    torch.manual_seed(5)
    expected = torch.rand(())
    torch.manual_seed(5)
    first, again, other = (
        transformers_engine.generate(lm, PROMPTS, Sampling(6), [], seeded(seed)) for seed in (3, 3, 4)
    )
    assert torch.rand(()) == expected  # and torch's own chance is left as it was
    assert first == again
    assert first != other


def test_one_switch_chooses(tiny_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def generate(lm: object, prompts: list, *args: object) -> list:
        asked.append(len(prompts))
        return [Response([1], [0.0])] * len(prompts)

    monkeypatch.setattr(transformers_engine, "generate", generate)
    for engine in ("collm", "transformers"):
        spec = PolicySpec(tiny_folder, engine=engine, max_new_tokens=3)
        policy = Policy("a1", spec, Backbone(tiny_folder, "float32"), None)
        sampled(policy, [[7], [8]], seeded(), greedy=True)
    assert asked == [2]
    with pytest.raises(ConfigurationError, match="choose one of collm, transformers, vllm, endpoint, human"):
        PolicySpec(tiny_folder, engine="sglang").check("policy")
