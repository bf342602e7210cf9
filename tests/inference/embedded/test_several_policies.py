"""Agents that share a model answer in one decode loop, each with its own adapter, as they would one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from actors import actors_of, sampled
from collm.inference.actors import Actors
from collm.inference.embedded import decoder
from collm.inference.embedded import forward as model
from collm.inference.embedded.decoder import EmbeddedModel
from collm.inference.embedded.engine import batch_key
from collm.inference.embedded.forward import TransformersModel
from collm.models.backbone import Backbone
from collm.models.policy import Policy
from collm.models.policy_spec import PolicySpec
from collm.samplers.parallel import Parallel
from collm.trajectory import Trajectory
from toy import Toy

AGENTS = ("a1", "a2", "a3")


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def team(folder: str, lora: bool = True, **options) -> dict[str, Policy]:
    backbone = Backbone(folder, "float32")
    spec = PolicySpec(folder, max_new_tokens=8, lora_rank=2 if lora else 0, **options)
    torch.manual_seed(1)
    for name in AGENTS if lora else ():
        backbone.add_adapter(name, 2, 4.0, 0.0)
        for weight in backbone.adapter_parameters(name):
            torch.nn.init.normal_(weight, std=0.3)  # a fresh adapter does nothing
    backbone.eval()
    policies = {name: Policy(name, spec, backbone, name if lora else None) for name in AGENTS}
    for policy in policies.values():
        policy.eos_ids |= set(range(0, 446, 5))  # so that answers end at different times
    return policies


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every forward pass."""
    seen: list[int] = []
    for kind in (EmbeddedModel, TransformersModel):

        def spy(self, ids: torch.Tensor, *args, forward=kind.forward) -> torch.Tensor:
            seen.append(len(ids))
            return forward(self, ids, *args)

        monkeypatch.setattr(kind, "forward", spy)
    return seen


def played(game: Toy, policies: dict[str, Policy]) -> list[Trajectory]:
    with Actors(policies).serving(0, keep_cache=True) as actors:
        return Parallel().rollout(game, game.tasks("train"), actors, 0, "cpu", num_generations=2, greedy=True)


@pytest.mark.parametrize("lora", [True, False])
@pytest.mark.parametrize("keep_cache", [True, False])
@pytest.mark.parametrize("known", [True, False])
def test_episodes_are_those_of_agents_asked_one_by_one(
    tiny_folder: str, sizes: list[int], monkeypatch: pytest.MonkeyPatch, lora: bool, keep_cache: bool, known: bool
) -> None:
    """Whether the architecture is one that is read straight from its weights or not."""
    if not known:
        monkeypatch.setattr(model, "decoder_of", lambda lm: None)
    game = Toy(len(AGENTS), horizon=3)
    policies = team(tiny_folder, lora, keep_cache=keep_cache)
    together = played(game, policies)
    assert max(sizes) == len(AGENTS) * 8
    sizes.clear()
    for index, policy in enumerate(policies.values()):
        policy.spec = replace(policy.spec, temperature=1.0 + index / 100)  # which changes nothing when greedy
    alone = played(game, policies)
    assert max(sizes) == 8
    texts = set()
    for one, other in zip(together, alone, strict=True):
        for turn, expected in zip(one.turns, other.turns, strict=True):
            for name in AGENTS:
                assert turn.actions[name].token_ids == expected.actions[name].token_ids
                texts.add(tuple(turn.actions[name].token_ids))
    assert len(texts) > 1


def test_adapters_differ_and_are_each_rows_own(tiny_folder: str) -> None:
    policies = team(tiny_folder)
    prompts = [[[7, 8, 9], [20] * 90], [[7, 8, 9]], [[7, 8, 9], [7, 8, 9], [5]]]
    drawn = actors_of(policies).sample(dict(zip(AGENTS, prompts, strict=True)), seeded(), greedy=True)
    found = [drawn[name] for name in AGENTS]
    assert [len(answers) for answers in found] == [2, 1, 3]
    for policy, own, answers in zip(policies.values(), prompts, found, strict=True):
        expected = sampled(policy, own, seeded(), greedy=True)
        assert [answer.token_ids for answer in answers] == [answer.token_ids for answer in expected]
        for answer, other in zip(answers, expected, strict=True):
            assert answer.log_probs == pytest.approx(other.log_probs, abs=1e-4)
    assert len({tuple(answers[0].token_ids) for answers in found}) == len(AGENTS)


@pytest.mark.parametrize(
    ("largest", "models"),
    [
        (2**23, True),  # small: all models of one shape
        (0, False),  # large: one model for all adapters
    ],
)
def test_who_is_asked_together(tiny_folder: str, monkeypatch: pytest.MonkeyPatch, largest: int, models: bool) -> None:
    policies = team(tiny_folder)
    monkeypatch.setattr(decoder, "_MAX_COPIED_WEIGHTS", largest)
    assert len(set(map(batch_key, policies.values()))) == 1
    assert (batch_key(team(tiny_folder)["a1"]) == batch_key(policies["a1"])) == models
    for change in ({"temperature": 0.5}, {"keep_cache": False}):
        other = Policy("a1", PolicySpec(tiny_folder, **change), policies["a1"].backbone, "a1")
        assert batch_key(other) != batch_key(policies["a1"])
