"""The floor does the same work as an algorithm: on one batch its losses and gradients are those of the algorithm."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from actors import actors_of
from collm.algorithms.collm_cc import CoLLMCC
from collm.algorithms.collm_dc import CoLLMDC
from collm.benchmark.floor import Floor, actions_by_turn, histories_by_turn, policy_loss, value_loss
from collm.critics.feature_network import FeatureNetworkCritic
from collm.critics.features import FeaturesCritic
from collm.critics.language_model import LanguageModelCritic
from collm.critics.sum import SumCritic
from collm.environments.games.relay import Relay
from collm.models.policy_spec import PolicySpec
from collm.models.specs import ModelSpec
from collm.samplers.parallel import Parallel
from collm.samplers.tree import Tree
from collm.trajectory import Action, RolloutBatch, Task, Trajectory, Turn, collate
from toy import Toy
from untrained import without_trainer

ADVANTAGES = torch.tensor([[0.7, -1.3], [2.0, 0.4], [-0.6, 1.1]])
TARGETS = torch.tensor([[1.0, -0.5], [0.25, 2.0], [0.0, 0.75]])


@pytest.fixture
def make(tiny_folder: str):
    """Makes an algorithm without a trainer whose steps subtract the gradient: plain SGD at rate 1, unclipped."""

    def build(cls: type[CoLLMCC] = CoLLMCC) -> CoLLMCC:
        torch.manual_seed(0)
        module = cls(
            agent_ids=("a1", "a2"),
            policy=PolicySpec(tiny_folder, learning_rate=1.0, max_new_tokens=6, temperature=0.7),
            critic=LanguageModelCritic(ModelSpec(tiny_folder, learning_rate=1.0)),
            optimizer=torch.optim.SGD,
            gradient_clip_norm=0.0,
        )
        return without_trainer(module)

    return build


def play(module: CoLLMCC) -> RolloutBatch:
    """Three episodes of two turns, with responses of different lengths."""
    for policy in module.policies.values():
        policy.eos_ids |= set(range(40, 400, 8))
    env = Toy(2, horizon=2, num_tasks=3)
    batch = collate(Parallel().rollout(env, env.tasks("train"), actors_of(module.policies), 0, "cpu"))
    lengths = {len(turn.actions["a1"].token_ids) for trajectory in batch.trajectories for turn in trajectory.turns}
    assert len(lengths) > 1
    return batch


def test_gradients_of_the_policies(make) -> None:
    module = make()
    batch = play(module)
    floor = Floor(module)
    before = {
        agent_id: [weight.detach().clone() for weight in p.parameters()] for agent_id, p in module.policies.items()
    }
    module.update_policies(batch, dict.fromkeys(module.agent_ids, ADVANTAGES))
    for agent_id, policy in module.policies.items():
        actor = floor.actors[agent_id]
        for turn, actions in enumerate(actions_by_turn(batch.trajectories, agent_id)):
            (policy_loss(actor, actions, ADVANTAGES[:, turn], temperature=0.7) / 3).backward()
        moves = [old - new.detach() for old, new in zip(before[agent_id], policy.parameters(), strict=True)]
        assert max(move.abs().max() for move in moves) > 0.01
        assert_close(moves, [weight.grad for weight in actor.parameters()], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cls", [CoLLMCC, CoLLMDC])
def test_loss_and_gradients_of_the_critics(make, cls) -> None:
    module = make(cls)
    batch = play(module)
    floor = Floor(module)
    assert floor.critics.keys() == module.critics.keys()
    for name, critic in module.critics.items():
        backbone, head = floor.critics[name]
        critic.network.head.load_state_dict(head.state_dict())
        histories = critic.encode(batch.trajectories)
        before = [weight.detach().clone() for weight in critic.network.backbone.lm.base_model.parameters()]
        critic.update(batch, torch.zeros(3, 2), TARGETS)
        loss = 0.0
        for turn, rows in histories_by_turn(histories).items():
            part = value_loss(backbone, head, rows, TARGETS[:, turn]) / 6
            part.backward()
            loss += part.item()
        assert dict(module.logged)[f"loss/{name}"] == pytest.approx(loss, rel=1e-5)
        after = critic.network.backbone.lm.base_model.parameters()
        moves = [old - new.detach() for old, new in zip(before, after, strict=True)]
        assert max(move.abs().max() for move in moves) > 0.01
        assert_close(moves, [weight.grad for weight in backbone.parameters()], rtol=1e-4, atol=1e-5)


def test_a_floor_round_trains_only_its_own_networks(make) -> None:
    module = make()
    batch = play(module)
    floor = Floor(module)
    ours = [weight.detach().clone() for weight in module.parameters()]
    networks = {**floor.actors, **floor.critics}
    before = {name: [weight.detach().clone() for weight in network.parameters()] for name, network in networks.items()}
    seconds = floor.round(batch)
    assert seconds.keys() == {"generate", "update/policy", "update/critic"}
    assert all(spent > 0 for spent in seconds.values())
    assert_close(list(module.parameters()), ours, rtol=0, atol=0)
    for name, network in networks.items():
        assert any((old != new).any() for old, new in zip(before[name], network.parameters(), strict=True)), name


def test_the_floor_generates_as_many_tokens_as_the_longest_response(make, monkeypatch: pytest.MonkeyPatch) -> None:
    module = make()
    floor = Floor(module)
    actor, calls = floor.actors["a1"], []
    generate = actor.generate
    monkeypatch.setattr(actor, "generate", lambda **kwargs: calls.append(generate(**kwargs)) or calls[-1])
    floor.generate("a1", [Action("", [5, 6, 7], [8, 9]), Action("", [5], [8, 9, 10, 11])])
    assert [tuple(call.shape) for call in calls] == [(2, 3 + 4)]
    assert calls[0][:, :3].tolist() == [[5, 6, 7], [0, 0, 5]]


def test_actions_that_trajectories_share_are_written_once(make) -> None:
    module = make()
    env = Toy(2, horizon=2, num_tasks=1)
    batch = collate(Tree().rollout(env, env.tasks("train"), actors_of(module.policies), 0, "cpu", num_generations=3))
    assert len(batch.trajectories) == 9
    assert [len(actions) for actions in actions_by_turn(batch.trajectories, "a1")] == [3, 9]
    assert batch.joint_samples == 12


def test_episodes_may_end_early() -> None:
    def turn(text: str) -> Turn:
        return Turn({"a1": "?"}, {"a1": Action(text)}, 0.0)

    trajectories = [Trajectory(Task("t", {}), 0, 2, 1.0, [turn(text) for text in texts]) for texts in ("ab", "c")]
    assert [[action.text for action in actions] for actions in actions_by_turn(trajectories, "a1")] == [
        ["a", "c"],
        ["b"],
    ]


def test_critics_on_features_cost_the_floor_nothing_and_a_sum_costs_it_its_language_model(tiny_folder: str) -> None:
    env = Relay(horizon=2, num_tasks=2)
    for critic, repeated in (
        (FeaturesCritic(), []),
        (FeatureNetworkCritic(), []),
        (SumCritic(rest=LanguageModelCritic(ModelSpec(tiny_folder))), ["critic"]),
    ):
        policy = PolicySpec(tiny_folder, max_new_tokens=4)
        critic.check(env)
        module = without_trainer(CoLLMCC(agent_ids=env.agent_ids, policy=policy, critic=critic))
        played = Parallel().rollout(env, env.tasks("train"), actors_of(module.policies), 0, "cpu")
        floor = Floor(module)
        assert list(floor.critics) == repeated
        seconds = floor.round(collate(played))
        assert (seconds["update/critic"] > 0) == bool(repeated)
