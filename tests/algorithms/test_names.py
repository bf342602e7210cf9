"""Agents with awkward names: each trains what is its own, and leaves with it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from actors import actors_of
from awkward import NAMES, Awkward
from collm.algorithms.base import MultiAgentModule
from collm.algorithms.collm_cc import CoLLMCC
from collm.algorithms.collm_dc import CoLLMDC
from collm.critics.language_model import LanguageModelCritic
from collm.errors import ConfigurationError
from collm.models.policy_spec import PolicySpec
from collm.models.specs import ModelSpec
from collm.models.tiny import build_tiny
from collm.packing import action_sequences
from collm.runtime.naming import NamedModules, folder_name, module_name
from collm.samplers.parallel import Parallel
from collm.trajectory import RolloutBatch, collate
from untrained import without_trainer

PER_ADAPTER = 2 * 7  # two matrices beside each linear layer of the one layer


@pytest.fixture(scope="module")
def smallest_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("models") / "smallest"
    build_tiny(folder, hidden_size=8, num_layers=1, num_heads=1, context=512)
    return str(folder)


def build(cls: type[MultiAgentModule], agent_ids: Any, folder: str, rank: int, **kwargs: Any) -> MultiAgentModule:
    torch.manual_seed(0)
    if cls is not MultiAgentModule:
        kwargs["critic"] = LanguageModelCritic(ModelSpec(folder, lora_rank=rank))
    spec = PolicySpec(folder, learning_rate=1.0, max_new_tokens=1, lora_rank=rank)
    return cls(agent_ids=agent_ids, policy=spec, optimizer=torch.optim.SGD, gradient_clip_norm=0.0, **kwargs)


def played(module: MultiAgentModule) -> RolloutBatch:
    env = Awkward()
    env.agent_ids = module.agent_ids
    return collate(Parallel().rollout(env, env.tasks("train"), actors_of(module.policies), 0, "cpu"))


def stored(module: MultiAgentModule) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in module.named_parameters()}


def test_there_are_two_hundred() -> None:
    assert len(NAMES) == len(set(NAMES)) >= 200


@pytest.fixture(scope="module", params=range(6))
def team(smallest_folder: str, request: pytest.FixtureRequest) -> Iterator[MultiAgentModule]:
    """A sixth of them on one model, each with an adapter, and a KL divergence from the model without."""
    size = -(-len(NAMES) // 6)
    names = NAMES[request.param * size :][:size]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield without_trainer(build(MultiAgentModule, names, smallest_folder, 1, parameters="lora", kl_weight=0.1))


def test_every_adapter_belongs_to_one_learner(team: MultiAgentModule) -> None:
    assert list(team.learners) == list(team.policies) == list(team.agent_ids)
    owned = [weight for weights in team.learners.values() for weight in weights]
    assert all(len(weights) == PER_ADAPTER for weights in team.learners.values())
    assert len(set(map(id, owned))) == len(owned) == PER_ADAPTER * len(team.agent_ids)
    assert all(weight.requires_grad for weight in team.learners[team.agent_ids[-1]])
    frozen = {name for name, weight in team.named_parameters() if id(weight) not in set(map(id, owned))}
    assert frozen
    assert not any("lora_" in name for name in frozen)  # all that is left over is the model itself


def test_each_trains_alone_and_leaves_with_what_it_learned(team: MultiAgentModule, tmp_path: Path) -> None:
    batch = played(team)
    for number, agent_id in enumerate(team.agent_ids):  # every matrix says whose it is
        for weight in team.learners[agent_id]:
            weight.data.fill_((number + 1) / 1024)
    before = stored(team)
    some = team.agent_ids[::7]
    for agent_id in some:
        team.optimize(agent_id, team.policy_losses(agent_id, *sequences(batch, agent_id)), "loss")
    names = {id(weight): name for name, weight in team.named_parameters()}
    moved = {name for name, weight in stored(team).items() if not weight.equal(before[name])}
    assert moved == {names[id(weight)] for agent_id in some for weight in team.learners[agent_id]}

    for agent_id in team.agent_ids:
        team.policies[agent_id].backbone.save(tmp_path / folder_name(agent_id), team.policies[agent_id].adapter)
    assert len(list(tmp_path.iterdir())) == len(team.agent_ids)
    for agent_id in team.agent_ids:
        saved = load_file(tmp_path / folder_name(agent_id) / "adapter_model.safetensors")
        assert len(saved) == PER_ADAPTER
        for name, weight in saved.items():
            path = name.removeprefix("base_model.model.").removesuffix(".weight")
            module = team.policies[agent_id].backbone.lm.get_submodule(path)
            assert weight.equal(module[team.policies[agent_id].adapter].weight)
            assert agent_id in some or weight.eq((team.agent_ids.index(agent_id) + 1) / 1024).all()


def sequences(batch: RolloutBatch, agent_id: str) -> tuple[Any, set[int], Tensor]:
    rows = len(batch.trajectories)
    return action_sequences(batch.trajectories, agent_id), set(range(rows)), torch.ones(rows, 1)


def test_an_exported_adapter_speaks_as_its_agent(team: MultiAgentModule, tmp_path: Path) -> None:
    for agent_id in team.agent_ids[2::20]:
        policy = team.policies[agent_id]
        policy.save(tmp_path / folder_name(agent_id))
        again = AutoModelForCausalLM.from_pretrained(tmp_path / folder_name(agent_id))
        ids = torch.arange(3, 9)[None]
        policy.backbone.activate(policy.adapter)
        with torch.no_grad():
            expected = policy.backbone.lm(ids).logits
            torch.testing.assert_close(again(ids).logits, expected)
        policy.backbone.activate(None)
        with torch.no_grad():
            assert not torch.allclose(policy.backbone.lm(ids).logits, expected)


@pytest.mark.parametrize("cls", [CoLLMCC, CoLLMDC])
def test_separate_models_with_critics_and_references(cls: type[MultiAgentModule], smallest_folder: str) -> None:
    """Names at which learners, critics, references and submodules could meet."""
    ids = ["critic", "team", "x", "reference_x", "critic/x", "policy/critic", "keys", "train", "0", "a.b", "a_b", "a/b"]
    module = without_trainer(build(cls, ids, smallest_folder, 0, kl_weight=0.1))
    critics = ["critic"] if cls is CoLLMCC else [f"critic/{name}" for name in ids]
    assert list(module.policies) == ids
    assert list(module.critics) == critics
    assert set(module.learners) == {*map(module.learner_name, ids), *critics}
    assert len(module.learners) == len(ids) + len(critics) == len(module.networks())
    owned = [id(weight) for weights in module.learners.values() for weight in weights]
    assert len(owned) == len(set(owned))
    frozen = {id(weight) for weight in module.reference_backbones.parameters()}
    assert frozen.isdisjoint(owned)
    assert {*owned, *frozen} == set(map(id, module.parameters()))
    assert len(module.reference_backbones) == len(ids)
    before = stored(module)
    batch = played(module)
    module.update_policies(batch, dict.fromkeys(ids, torch.ones(len(batch.trajectories), 1)))
    names = {id(weight): name for name, weight in module.named_parameters()}
    moved = {name for name, weight in stored(module).items() if not weight.equal(before[name])}
    policies = {names[id(w)] for name in ids for w in module.policies[name].parameters()}
    assert moved <= policies
    assert all(any(names[id(w)] in moved for w in module.policies[name].parameters()) for name in ids)


@pytest.mark.parametrize(
    ("agent_ids", "named"),
    [
        (("a", "b", "a"), "agent id 'a' is there twice"),
        ((), "there are no agents"),
        (("a", ""), "agent id '' of the environment is no text"),
        ((0, 1), "agent id 0 of the environment is no text"),
        (("a", "\ud800"), "no valid Unicode text"),
    ],
)
def test_agent_ids_with_equal_module_names(agent_ids: Any, named: str, smallest_folder: str) -> None:
    with pytest.raises(ConfigurationError, match=named):
        build(CoLLMCC, agent_ids, smallest_folder, 0)


def test_names_stay_different_and_alone() -> None:
    modules, folders = list(map(module_name, NAMES)), list(map(folder_name, NAMES))
    assert len(set(modules)) == len(set(folders)) == len(NAMES)
    assert not any(one in other for one in modules for other in modules if one != other)
    assert all(len(name.encode()) <= 200 and "/" not in name and "." not in name for name in folders)
    assert (module_name("a.b"), folder_name("../x y")) == ("<a%2Eb>", "%2E%2E%2Fx%20y")


def test_modules_by_any_name() -> None:
    modules = NamedModules({name: torch.nn.Linear(1, 1) for name in NAMES})
    assert list(modules) == list(modules.keys()) == [name for name, _ in modules.items()] == NAMES
    assert all(name in modules and modules[name] is one for name, one in modules.items())
    assert "nobody" not in modules
    assert len(modules.state_dict()) == 2 * len(NAMES)


@pytest.mark.parametrize("folders", [("step-1", "step.1"), ("a b", "a_b")])
def test_two_folders_are_two_models(folders: tuple[str, str], tmp_path: Path) -> None:
    for seed, name in enumerate(folders):
        build_tiny(tmp_path / name, hidden_size=8, num_layers=1, num_heads=1, context=512, seed=seed)
    specs = [PolicySpec(str(tmp_path / name), lora_rank=1) for name in folders]
    module = MultiAgentModule(
        agent_ids=["one", "two"], policies=dict(zip(["one", "two"], specs, strict=True)), parameters="lora"
    )
    module.configure_model()
    one, two = (module.policies[name].backbone for name in ("one", "two"))
    assert one is not two
    for policy, spec in zip((one, two), specs, strict=True):
        loaded = load_file(Path(spec.path, "model.safetensors"))["model.embed_tokens.weight"]
        assert policy.lm.get_input_embeddings().weight.equal(loaded)
