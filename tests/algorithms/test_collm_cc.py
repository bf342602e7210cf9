"""CoLLM-CC against the equations of the paper, written out by hand, and what each update may touch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from actors import actors_of
from collm.algorithms.collm_cc import CoLLMCC
from collm.critics.language_model import LanguageModelCritic
from collm.models.policy import Policy
from collm.models.policy_spec import PolicySpec
from collm.models.specs import ModelSpec
from collm.packing import action_sequences
from collm.samplers.parallel import Parallel
from collm.trajectory import RolloutBatch, collate
from toy import Toy
from untrained import without_trainer

Make = Callable[..., CoLLMCC]
REWARDS = [[1.0, 2.0], [-0.5, 0.25]]
ADVANTAGES = torch.tensor([[0.7, -1.3], [2.0, 0.4]])


@pytest.fixture
def make(tiny_folder: str) -> Make:
    """Makes an algorithm without a trainer whose steps subtract the gradient times `rate`: plain SGD, unclipped."""

    def build(
        num_agents: int = 2, lora_rank: int = 0, rate: float = 1.0, critic_epochs: int = 1, **kwargs: Any
    ) -> CoLLMCC:
        torch.manual_seed(0)
        module = CoLLMCC(
            agent_ids=Toy(num_agents).agent_ids,
            policy=PolicySpec(tiny_folder, learning_rate=rate, max_new_tokens=5, temperature=0.7, lora_rank=lora_rank),
            critic=LanguageModelCritic(
                ModelSpec(tiny_folder, learning_rate=rate, lora_rank=lora_rank), epochs=critic_epochs
            ),
            optimizer=torch.optim.SGD,
            **{"gradient_clip_norm": 0.0, **kwargs},
        )
        return without_trainer(module)

    return build


def play(module: CoLLMCC, num_tasks: int = 2, horizon: int = 2) -> RolloutBatch:
    """Episodes of the module's own policies with rewards that are not all alike."""
    env = Toy(len(module.agent_ids), horizon=horizon, num_tasks=num_tasks)
    trajectories = Parallel().rollout(env, env.tasks("train"), actors_of(module.policies), 0, "cpu")
    for row, trajectory in enumerate(trajectories):
        for turn, rewards in zip(trajectory.turns, REWARDS[row % 2], strict=False):
            turn.reward = rewards
    return collate(trajectories)


def snapshot(weights: list[torch.nn.Parameter]) -> list[Tensor]:
    return [weight.detach().clone() for weight in weights]


def moves(before: list[Tensor], weights: list[torch.nn.Parameter]) -> list[Tensor]:
    """What a step at rate 1 subtracted: the gradient."""
    return [old - new.detach() for old, new in zip(before, weights, strict=True)]


def moved(before: list[Tensor], weights: list[torch.nn.Parameter]) -> bool:
    return any(bool((move != 0).any()) for move in moves(before, weights))


def log_softmax_of(policy: Policy, prompt: list[int], tokens: list[int]) -> Tensor:
    """Log-distributions that the tokens were drawn from, read off the whole matrix of logits, [L, V]."""
    logits = policy.backbone.lm(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1]
    return (logits / policy.spec.temperature).log_softmax(-1)


def log_prob_of(policy: Policy, prompt: list[int], tokens: list[int]) -> Tensor:
    return log_softmax_of(policy, prompt, tokens).gather(-1, torch.tensor(tokens)[:, None]).sum()


# Equation (4)


@pytest.mark.parametrize("num_agents", [1, 2, 3])
def test_policy_gradient_is_that_of_the_formula(make: Make, num_agents: int) -> None:
    module = make(num_agents)
    batch = play(module)
    expected, before = {}, {}
    for agent_id, policy in module.policies.items():
        loss = torch.zeros(())
        for row, trajectory in enumerate(batch.trajectories):
            for turn, action in enumerate(turn.actions[agent_id] for turn in trajectory.turns):
                loss -= ADVANTAGES[row, turn] * log_prob_of(policy, action.prompt_ids, action.token_ids) / 2
        expected[agent_id] = list(torch.autograd.grad(loss, policy.parameters()))
        before[agent_id] = snapshot(policy.parameters())
    module.update_policies(batch, dict.fromkeys(module.agent_ids, ADVANTAGES))
    for agent_id, policy in module.policies.items():
        assert_close(moves(before[agent_id], policy.parameters()), expected[agent_id], rtol=1e-3, atol=1e-5)


def test_importance_ratio_weighs_the_gradient(make: Make) -> None:
    module = make(1)
    batch = play(module)
    # as if the actions of the first episode were e^0.5 times as likely under the behaviour policy
    for turn in batch.trajectories[0].turns:
        action = turn.actions["a1"]
        turn.actions["a1"] = replace(action, log_probs=[action.log_probs[0] + 0.5, *action.log_probs[1:]])
    ratio = torch.tensor([[0.6065307], [1.0]])
    policy, loss = module.policies["a1"], torch.zeros(())
    for row, trajectory in enumerate(batch.trajectories):
        for turn, action in enumerate(turn.actions["a1"] for turn in trajectory.turns):
            weight = ratio[row, 0] * ADVANTAGES[row, turn]
            loss -= weight * log_prob_of(policy, action.prompt_ids, action.token_ids) / 2
    expected = torch.autograd.grad(loss, policy.parameters())
    before = snapshot(policy.parameters())
    module.update_policies(batch, {"a1": ADVANTAGES})
    assert_close(moves(before, policy.parameters()), list(expected), rtol=1e-3, atol=1e-5)


def test_a_clipped_ratio_stops_learning(make: Make) -> None:
    module = make(1, ratio_clip=0.2, rate=1e-3)
    batch = play(module)
    for trajectory in batch.trajectories:
        for turn in trajectory.turns:
            action = turn.actions["a1"]
            turn.actions["a1"] = replace(action, log_probs=[action.log_probs[0] - 0.5, *action.log_probs[1:]])
    before = snapshot(module.learners["a1"])
    module.update_policies(batch, {"a1": torch.ones(2, 2)})  # ratio 1.65 > 1.2, and more is asked for
    assert not moved(before, module.learners["a1"])
    module.update_policies(batch, {"a1": -torch.ones(2, 2)})
    assert moved(before, module.learners["a1"])


def test_shared_parameters_follow_the_sum_over_agents(make: Make) -> None:
    module = make(2, parameters="shared")
    batch = play(module)
    policy, loss = module.policies["a1"], torch.zeros(())
    for row, trajectory in enumerate(batch.trajectories):
        for index, turn in enumerate(trajectory.turns):
            for action in turn.actions.values():
                loss -= ADVANTAGES[row, index] * log_prob_of(policy, action.prompt_ids, action.token_ids) / 2
    expected = torch.autograd.grad(loss, policy.parameters())
    before = snapshot(policy.parameters())
    module.update_policies(batch, dict.fromkeys(module.agent_ids, ADVANTAGES))
    assert_close(moves(before, policy.parameters()), list(expected), rtol=1e-3, atol=1e-5)


# Equation (5)


def test_critic_gradient_is_that_of_finite_differences(make: Make) -> None:
    module = make(2)
    batch = play(module)
    targets = torch.tensor([[1.3, -0.4], [0.2, 0.9]])
    critic = module.critics["critic"]
    torch.nn.init.normal_(critic.network.head.weight, std=0.2)  # at 0 nothing would reach the language model

    def loss() -> float:
        """Mean squared error over turns, every history read on its own."""
        total = 0.0
        with torch.no_grad():
            for row, trajectory in enumerate(batch.trajectories):
                for turn in range(2):
                    start = replace(trajectory, turns=trajectory.turns[: turn + 1])
                    (history,) = critic.encode([start])
                    hidden = critic.network.backbone.lm.base_model(torch.tensor([history.ids])).last_hidden_state[0, -1]
                    total += (critic.network.head(hidden).item() - targets[row, turn].item()) ** 2 / 4
        return total

    weights = module.learners["critic"]
    before = snapshot(weights)
    critic.update(batch, torch.zeros(2, 2), targets)
    gradient = moves(before, weights)
    for weight, old in zip(weights, before, strict=True):
        weight.data.copy_(old)

    computed, expected = {}, {}
    for index in range(0, len(weights), 4):  # of every fourth matrix the entry that matters most
        position = gradient[index].abs().argmax().item()
        entry = weights[index].data.view(-1)
        value = entry[position].item()
        losses = []
        for shift in (2e-3, -2e-3):
            entry[position] = value + shift
            losses.append(loss())
        entry[position] = value
        expected[index] = (losses[0] - losses[1]) / 4e-3
        computed[index] = gradient[index].flatten()[position].item()
    assert computed == pytest.approx(expected, rel=0.02)
    assert len(expected) >= 5
    assert min(map(abs, expected.values())) > 0.01  # far above the rounding of the differences


def test_advantages_and_targets_by_hand(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    module = make(2, discount=0.9)
    batch = play(module)
    batch.turn_mask[1, 1] = False  # as if the second episode had ended after a turn
    given: dict[str, Any] = {}
    critic = module.critic
    values = torch.tensor([[0.5, 0.25], [1.0, 0.0]])
    monkeypatch.setattr(critic, "differentiable_values", lambda batch: values)
    monkeypatch.setattr(critic, "update", lambda batch, values, targets: given.update({"critic": targets}))
    monkeypatch.setattr(module, "update_policies", lambda b, advantages: given.update(advantages))
    module.num_rollouts = 1
    module.training_step(batch, 0)
    # rewards 1, 2 and -0.5: 1 + 0.9 * 0.25 - 0.5, 2 - 0.25, -0.5 - 1
    expected = torch.tensor([[0.725, 1.75], [-1.5, 0.0]])
    assert_close(given["a1"], expected)
    assert_close(given["a2"], expected)
    assert_close(given["critic"][batch.turn_mask], torch.tensor([1.225, 2.0, -0.5]))


def test_advantages_are_normalized_then_clipped(make: Make) -> None:
    module = make(1, normalize_advantage=True, advantage_clip=1.2)
    mask = torch.tensor([[True, True], [True, False]])
    # mean 2, deviation sqrt(2 / 3)
    normalized = module.shape_advantages(torch.tensor([[1.0, 2.0], [3.0, 99.0]]), mask)
    assert_close(normalized, torch.tensor([[-1.2, 0.0], [1.2, 0.0]]))


# What an update touches


@pytest.mark.parametrize("num_agents", [1, 2, 3])
@pytest.mark.parametrize("mode", ["separate", "lora", "shared"])
def test_exactly_what_is_meant_to_learn_moves(make: Make, mode: str, num_agents: int) -> None:
    module = make(num_agents, lora_rank=2 if mode == "lora" else 0, parameters=mode, rate=1e-3)
    agents = ["team"] if mode == "shared" else list(module.agent_ids)
    assert list(module.learners) == [*agents, "critic"]
    trained = {id(weight) for weights in module.learners.values() for weight in weights}
    assert len(trained) == sum(len(weights) for weights in module.learners.values())  # nothing belongs to two
    frozen = [weight for weight in module.parameters() if id(weight) not in trained]
    assert bool(frozen) == (mode == "lora")
    assert len(module.backbones) == {"separate": num_agents + 1, "lora": 1, "shared": 2}[mode]

    batch = play(module)
    for name in agents:
        before = {other: snapshot(weights) for other, weights in module.learners.items()}
        members = module.policy_learners[name]
        losses = (
            loss
            for agent_id in members
            for loss in module.policy_losses(
                agent_id, action_sequences(batch.trajectories, agent_id), {0, 1}, ADVANTAGES
            )
        )
        module.optimize(name, losses, "loss")
        assert [other for other, w in module.learners.items() if moved(before[other], w)] == [name]

    before = {other: snapshot(weights) for other, weights in module.learners.items()}
    untouched = snapshot(frozen)
    module.num_rollouts = 1
    module.training_step(batch, 0)
    assert [name for name, weights in module.learners.items() if moved(before[name], weights)] == [*agents, "critic"]
    assert not moved(untouched, frozen)


def test_only_the_critic_learns_during_warm_up(make: Make) -> None:
    module = make(2, critic_warmup=2, rate=1e-3)
    batch = play(module)
    learned = []
    for rollout in (1, 2, 3):
        before = {name: snapshot(weights) for name, weights in module.learners.items()}
        module.num_rollouts = rollout
        module.training_step(batch, 0)
        learned.append([name for name, weights in module.learners.items() if moved(before[name], weights)])
    assert learned == [["critic"], ["critic"], ["a1", "a2", "critic"]]


def test_gradients_are_clipped_per_network(make: Make) -> None:
    free, clipped = make(2), make(2, gradient_clip_norm=0.01)
    batch = play(free)
    for module in (free, clipped):
        module.before = {name: snapshot(weights) for name, weights in module.learners.items()}
        module.update_policies(batch, dict.fromkeys(module.agent_ids, ADVANTAGES))
    for name in ("a1", "a2"):
        whole, part = (
            torch.cat([move.flatten() for move in moves(module.before[name], module.learners[name])])
            for module in (free, clipped)
        )
        assert part.norm().item() == pytest.approx(0.01, rel=1e-3)
        assert_close(part / part.norm(), whole / whole.norm(), rtol=1e-2, atol=1e-3)
        assert dict(clipped.logged)[f"optim/grad_norm/{name}"] == pytest.approx(whole.norm().item(), rel=1e-3)


# How it is computed changes nothing


@pytest.mark.parametrize("mode", ["separate", "lora"])
def test_micro_batches_do_not_change_the_step(make: Make, mode: str) -> None:
    results = []
    for tokens in (1, 100_000):
        options = {"kl_weight": 0.1, "entropy_weight": 0.1, "tokens_per_micro_batch": tokens}
        module = make(2, lora_rank=2 if mode == "lora" else 0, parameters=mode, **options)
        batch = play(module, num_tasks=5)
        before = {name: snapshot(weights) for name, weights in module.learners.items()}
        module.num_rollouts = 1
        module.training_step(batch, 0)
        results.append({name: moves(before[name], weights) for name, weights in module.learners.items()})
    for name in results[0]:
        assert_close(results[0][name], results[1][name], rtol=1e-3, atol=1e-5)


def test_epochs_and_minibatches_cover_every_trajectory(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    module = make(2, num_epochs=3, num_minibatches=2, critic_epochs=2)
    batch = play(module, num_tasks=5)
    parts = list(module.minibatches(5, 3))
    assert [len(part) for part in parts] == [3, 2] * 3
    for first, second in zip(parts[::2], parts[1::2], strict=True):
        assert first | second == {0, 1, 2, 3, 4}
    steps: list[str] = []
    monkeypatch.setattr(module, "optimize", lambda name, losses, metric: steps.append(name))
    module.num_rollouts = 1
    module.training_step(batch, 0)
    assert steps == ["critic"] * 4 + ["a1", "a2"] * 6


def test_more_minibatches_than_trajectories(make: Make) -> None:
    module = make(1, num_minibatches=5, rate=1e-3)
    batch = play(module)
    assert sorted(map(sorted, filter(None, module.minibatches(2, 1)))) == [[0], [1]]
    before = snapshot(module.learners["a1"])
    module.update_policies(batch, {"a1": ADVANTAGES})
    assert moved(before, module.learners["a1"])
    assert all(weight.isfinite().all() for weight in module.learners["a1"])


# Entropy and the reference policy


@pytest.mark.parametrize(("mode", "rate"), [("separate", 1e-4), ("lora", 1e-2), ("shared", 1e-4)])
def test_divergence_from_the_reference_starts_at_zero_and_then_pulls_back(make: Make, mode: str, rate: float) -> None:
    module = make(2, lora_rank=2 if mode == "lora" else 0, parameters=mode, kl_weight=0.5, rate=rate)
    batch = play(module)
    name = "team" if mode == "shared" else "a1"
    before = snapshot(module.learners[name])
    module.update_policies(batch, dict.fromkeys(module.agent_ids, torch.zeros(2, 2)))
    assert dict(module.logged)["policy/kl/a1"] == pytest.approx(0.0, abs=1e-6)
    assert max(move.abs().max().item() for move in moves(before, module.learners[name])) < 1e-6

    for _ in range(2):  # two steps, as a fresh adapter moves with one of its matrices first
        module.update_policies(batch, dict.fromkeys(module.agent_ids, ADVANTAGES))
    module.logged.clear()
    module.update_policies(batch, dict.fromkeys(module.agent_ids, torch.zeros(2, 2)))
    away = dict(module.logged)["policy/kl/a1"]
    module.logged.clear()
    module.update_policies(batch, dict.fromkeys(module.agent_ids, torch.zeros(2, 2)))
    assert 1e-6 < dict(module.logged)["policy/kl/a1"] < away


def test_entropy_bonus_follows_the_mean_token_entropy(make: Make) -> None:
    module = make(1, entropy_weight=0.3)
    batch = play(module)
    policy = module.policies["a1"]
    actions = [turn.actions["a1"] for trajectory in batch.trajectories for turn in trajectory.turns]
    log_probs = torch.cat([log_softmax_of(policy, action.prompt_ids, action.token_ids) for action in actions])
    entropy = -(log_probs.exp() * log_probs).sum(-1).mean()
    expected = torch.autograd.grad(-0.3 * entropy, policy.parameters())
    before = snapshot(policy.parameters())
    module.update_policies(batch, {"a1": torch.zeros(2, 2)})
    assert_close(moves(before, policy.parameters()), list(expected), rtol=1e-3, atol=1e-5)
    assert dict(module.logged)["policy/entropy/a1"] == pytest.approx(entropy.item(), rel=1e-4)


# Through the command line


@pytest.mark.parametrize(
    "args",
    [
        ["--data.environment.num_agents=1"],
        ["--data.environment.num_agents=3", "--model.num_epochs=2", "--model.num_minibatches=2"],
        ["--model.parameters=lora", "--model.policy.lora_rank=2", "--model.critic.model.lora_rank=2"],
        ["--model.parameters=shared", "--model.gae_lambda=0.9", "--model.normalize_advantage=true"],
        ["--model.policies={a2: {path: tiny, lora_rank: 2, max_new_tokens: 3, learning_rate: 1.0e-3}}"],
        ["--trainer.precision=bf16-mixed", "--model.critic.model.gradient_checkpointing=true"],
    ],
    ids=["one", "three", "lora", "shared", "heterogeneous", "bfloat16"],
)
def test_teams_of_all_kinds_train(fit: Callable[..., int], args: list[str]) -> None:
    assert fit(*args, "--model.kl_weight=0.1", "--model.entropy_weight=0.01", "--data.num_generations=2") == 0
