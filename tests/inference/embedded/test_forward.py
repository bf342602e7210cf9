"""The forward pass straight from the weights against that of transformers: architectures, adapters, several models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import Gemma2Config, Gemma2ForCausalLM, MistralConfig, MistralForCausalLM, PreTrainedModel

from actors import actors_of
from architectures import ARCHITECTURES, SHAPE
from collm.callbacks import resources
from collm.inference.actors import Actors
from collm.inference.embedded import decoder, engine
from collm.inference.embedded.cache import make_cache
from collm.inference.embedded.decoder import EmbeddedModel
from collm.inference.embedded.forward import CachedModel, TransformersModel, cached_model
from collm.inference.embedded.generation import generate
from collm.inference.embedded.prefill import PrefixCache
from collm.inference.sampling import Sampling, pad_left
from collm.models import backbone as backbone_module
from collm.models.backbone import Backbone
from collm.models.policy import Policy
from collm.models.policy_spec import PolicySpec
from collm.samplers.parallel import Parallel
from toy import Toy

GREEDY = Sampling(16, greedy=True)
PROMPTS = [[(7 * size + 11 * place) % 97 for place in range(size)] for size in (5, 60, 1, 17, 30, 31, 90)]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Backbone]:
    """Makes a backbone with random weights, norms and biases included, and adapters that do something."""

    def backbone(
        build: Callable[[], PreTrainedModel], adapters: int = 0, seed: int = 0, dtype: torch.dtype = torch.float32
    ) -> Backbone:
        lm = build()
        torch.manual_seed(seed)
        for name, weight in lm.named_parameters():
            is_norm = "norm" in name or "ln_" in name
            nn.init.normal_(weight, float(is_norm and name.endswith("weight")), 0.2)
        monkeypatch.setattr(backbone_module, "load_model", lambda *args: lm.to(dtype))
        made = Backbone("made here", "float32")
        for number in range(adapters):
            made.add_adapter(f"a{number}", 3, 6.0, 0.0)
            for weight in made.adapter_parameters(f"a{number}"):
                nn.init.normal_(weight, std=0.2)
        return made.eval()

    return backbone


def respond(
    model: CachedModel,
    ends: Sequence[int] = (),
    owners: Sequence[int] | None = None,
    cache: PrefixCache | None = None,
    prompts: Sequence[Sequence[int]] = PROMPTS,
) -> list[tuple[list[int], list[float]]]:
    with model.active():
        return generate(model, prompts, GREEDY, ends, torch.Generator(), cache, owners)


def ends_of(free: Sequence[tuple[list[int], list[float]]]) -> list[int]:
    """Tokens that end some of the answers early, at different lengths."""
    return [free[0][0][3], free[1][0][6], free[4][0][1]]


def assert_equal(found: Sequence, expected: Sequence) -> None:
    assert len({len(tokens) for tokens, _, _ in expected}) > 1  # rows leave one after the other
    for (tokens, log_probs, _), (other, other_log_probs, _) in zip(found, expected, strict=True):
        assert tokens == other
        assert log_probs == pytest.approx(other_log_probs, abs=2e-5)


@pytest.mark.parametrize("copied", [True, False])
@pytest.mark.parametrize("adapters", [0, 3])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_responses_are_those_of_transformers(
    make: Callable, monkeypatch: pytest.MonkeyPatch, architecture: str, adapters: int, copied: bool
) -> None:
    """Two turns, the second one from the states of the first."""
    monkeypatch.setattr(decoder, "_MAX_COPIED_WEIGHTS", 2**23 if copied else 0)
    monkeypatch.setattr(decoder, "_TOKENS_PER_CHUNK", 1024 if copied else 5)
    backbone = make(ARCHITECTURES[architecture], adapters)
    names = [f"a{number}" for number in range(adapters)] or [None]
    owners = [0, 0, 0, 1, 1, 2, 2] if adapters else None
    own, plain = cached_model([(backbone, name) for name in names]), TransformersModel(backbone, names)
    assert isinstance(own, EmbeddedModel)
    cache = PrefixCache()
    ends = ends_of(respond(plain, (), owners))
    first = respond(own, ends, owners, cache)
    assert_equal(first, respond(plain, ends, owners))
    later = [[*prompt, *tokens, 20, 30, 40][-110:] for prompt, (tokens, _, _) in zip(PROMPTS, first, strict=True)]
    assert_equal(respond(own, ends, owners, cache, later), respond(plain, ends, owners, prompts=later))


@pytest.mark.parametrize("at_once", [1024, 5])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_models_side_by_side_answer_as_each_alone(
    make: Callable, monkeypatch: pytest.MonkeyPatch, architecture: str, at_once: int
) -> None:
    monkeypatch.setattr(decoder, "_TOKENS_PER_CHUNK", at_once)
    backbones = [make(ARCHITECTURES[architecture], seed=seed) for seed in range(3)]
    model, owners = cached_model([(backbone, None) for backbone in backbones]), [0, 0, 0, 0, 1, 1, 2]
    ends = ends_of(respond(model, (), owners))
    alone = [respond(TransformersModel(backbone, [None]), ends) for backbone in backbones]
    assert_equal(respond(model, ends, owners), [*alone[0][:4], *alone[1][4:6], alone[2][6]])
    assert alone[0][4][0] != alone[1][4][0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_in_bfloat16_it_rounds_no_worse_than_transformers(make: Callable, architecture: str) -> None:
    """Distance of the logits from those of the same weights at full precision."""
    own, plain = [], []
    for seed in range(4):
        backbone = make(ARCHITECTURES[architecture], adapters=1, seed=seed, dtype=torch.bfloat16)
        members = [(backbone, "a0")]
        logits = first_logits(cached_model(members)), first_logits(TransformersModel(backbone, ["a0"]))
        assert logits[0].dtype == torch.bfloat16
        backbone.float()
        exact = first_logits(TransformersModel(backbone, ["a0"]))
        for errors, found in zip((own, plain), logits, strict=True):
            errors.append((found.float() - exact).square().mean().item())
    assert 0 < sum(own) < 1.5 * sum(plain)


def first_logits(model: CachedModel) -> torch.Tensor:
    """Logits after prompts of different length, padded on the left."""
    ids, mask = pad_left(PROMPTS, torch.device("cpu"))
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with model.active(), torch.no_grad():
        return model.forward(ids, mask, positions, make_cache(model.config), [0] * len(ids))


def test_all_other_models_are_read_by_transformers(make: Callable) -> None:
    def gemma() -> PreTrainedModel:
        return Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=8))

    def sliding() -> PreTrainedModel:
        return MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=16))

    def quantized() -> PreTrainedModel:
        lm = ARCHITECTURES["llama"]()
        lm.model.layers[0].mlp.up_proj = nn.Sequential(lm.model.layers[0].mlp.up_proj)
        return lm

    for build in (gemma, sliding, quantized):
        backbone = make(build)
        assert isinstance(cached_model([(backbone, None)]), TransformersModel)
        assert len(respond(cached_model([(backbone, None)]))) == len(PROMPTS)


def test_agents_with_small_models_of_one_shape_take_one_decode_loop(
    tiny_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[int] = []
    forward = EmbeddedModel.forward

    def spy(self, ids: torch.Tensor, *args) -> torch.Tensor:
        rows.append(len(ids))
        return forward(self, ids, *args)

    monkeypatch.setattr(EmbeddedModel, "forward", spy)
    game, spec = Toy(2, horizon=3), PolicySpec(tiny_folder, max_new_tokens=8)
    policies = {name: Policy(name, spec, Backbone(tiny_folder, "float32"), None) for name in ("a1", "a2")}
    policies["a2"].backbone.lm.get_input_embeddings().weight.data.neg_()  # another model of the same shape
    played = {}
    for small in (True, False):
        monkeypatch.setattr(decoder, "_MAX_COPIED_WEIGHTS", 2**23 if small else 0)
        rows.clear()
        played[small] = Parallel().rollout(game, game.tasks("train"), actors_of(policies), 0, "cpu", greedy=True)
        assert max(rows) == len(game.tasks("train")) * (2 if small else 1)
    for one, other in zip(played[True], played[False], strict=True):
        for turn, expected in zip(one.turns, other.turns, strict=True):
            for name, action in turn.actions.items():
                assert action.token_ids == expected.actions[name].token_ids


def test_weights_are_read_as_they_are_in_each_rollout(tiny_folder: str) -> None:
    policy = Policy("a1", PolicySpec(tiny_folder, max_new_tokens=4), Backbone(tiny_folder, "float32"), None)
    actors, answers = Actors({"a1": policy}), []
    for _ in range(2):
        with actors.serving(0, keep_cache=True):
            kept = [
                actors.sample({"a1": [[7, 8, 9]]}, torch.Generator(), greedy=True)["a1"][0].log_probs for _ in range(2)
            ]
        assert kept[0] == kept[1]
        answers.append(kept[0])
        policy.backbone.lm.model.layers[0].mlp.up_proj.weight.data.mul_(2)
    assert answers[0] != pytest.approx(answers[1], abs=1e-4)


def test_a_run_says_which_agents_are_sampled_the_slower_way(tiny_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(resources, "rank_zero_info", said.append)
    backbone = Backbone(tiny_folder, "float32")
    ways = {"ours": "collm", "theirs": "transformers"}
    slower = "ours: sampled by the forward pass of transformers, which is slower: its model is not one of the fastest"
    policies = {name: Policy(name, PolicySpec(tiny_folder, engine=way), backbone, None) for name, way in ways.items()}
    for known in (True, False):
        monkeypatch.setattr(engine, "decoder_of", lambda lm, known=known: known or None)
        trainer = SimpleNamespace(datamodule=SimpleNamespace(actors=Actors(policies)))
        resources.LogResources().on_train_start(trainer, SimpleNamespace(policies=policies))
        assert said == ([] if known else [f"{slower} kinds."])
