"""Critics that read the state, in a game that is solved exactly: expectations over all rollouts of two episodes.

A rollout is a pair of independent episodes; its critic has learned from an earlier rollout and is fitted on the other
episode of the pair too. Whatever its values are, the gradient at lambda 1 has to be the true one.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from collm.algorithms.collm_cc import CoLLMCC
from collm.critics.feature_network import FeatureNetworkCritic
from collm.critics.features import FeaturesCritic, StateCritic, solve_ridge
from collm.critics.language_model import LanguageModelCritic
from collm.critics.sum import SumCritic
from collm.errors import ConfigurationError
from collm.models.policy import PolicySpec
from collm.objectives import generalized_advantages
from collm.returns import leave_one_out_baseline
from collm.samplers.tree import Tree
from collm.trajectory import RolloutBatch, collate
from enumerated import FULL, STOPS, Enumerated
from tabular import AGENTS, TwoTurns, copies


class Described(Enumerated):
    """All episodes, with what was done in the first turn as state features of the second."""

    def __init__(self, game: TwoTurns):
        super().__init__(game)
        for trajectory, plan in zip(self.batch.trajectories, self.played, strict=True):
            for index, turn in enumerate(trajectory.turns):
                own, other = (float(digit) for digit in plan[0]) if index else (0.0, 0.0)
                turn.features = {"own": own, "other": other, "both": own * other}

    def episodes(self, rows: list[int], groups: list[int]) -> RolloutBatch:
        results = []
        for row, group in zip(rows, groups, strict=True):
            original = self.batch.trajectories[row]
            (episode,) = copies(original, 1)
            episode.group = group
            for turn, original_turn in zip(episode.turns, original.turns, strict=True):
                turn.features = original_turn.features
            results.append(episode)
        return collate(results)

    def critic(self, discount: float = 1.0, critic: StateCritic | None = None) -> StateCritic:
        """One that has seen one rollout of a few episodes."""
        critic = critic or FeaturesCritic()
        critic.attach("critic", AGENTS, SimpleNamespace(specs=dict.fromkeys(AGENTS), discount=discount, device="cpu"))
        critic.check(SimpleNamespace(feature_names=("own", "other", "both"), horizon=2, has_state_text=False))
        earlier = self.episodes([0, 3, 3, 5, 6], [0, 1, 2, 3, 4])
        critic.update(earlier, earlier.rewards, earlier.rewards)
        return critic

    def expected(self, critic: Any, discount: float, gae_lambda: float, groups: list[int], centered: bool) -> Tensor:
        """Mean advantages of the first episode of a pair over all second ones, [B, T]."""
        mean = torch.zeros_like(self.batch.rewards)
        for row in range(len(mean)):
            for other, probability in enumerate(self.probabilities.tolist()):
                batch = self.episodes([row, other], groups)
                values = critic.values(batch)
                advantages = generalized_advantages(batch.rewards, values, batch.turn_mask, discount, gae_lambda)
                if centered:
                    advantages = advantages - leave_one_out_baseline(advantages, batch.groups, batch.turn_mask)
                mean[row, : advantages.shape[1]] += probability * advantages[0]
        return mean


SCALE = torch.tensor([1.0, *[2.0] * 4])[:, None]  # 1 / gamma^t by history, for gamma = 0.5


@pytest.mark.parametrize("game", [FULL, STOPS], ids=["full", "stops"])
@pytest.mark.parametrize("centered", [False, True])
def test_at_lambda_one_the_gradient_is_the_true_one(game: TwoTurns, centered: bool) -> None:
    world = Described(game)
    for discount, scale in ((1.0, 1.0), (0.5, SCALE)):
        advantages = world.expected(world.critic(discount), discount, 1.0, [0, 0] if centered else [0, 1], centered)
        for agent_id in AGENTS:
            results, true = world.estimate(agent_id, advantages), world.true_gradient(agent_id, discount) * scale
            assert_close(results, true, rtol=1e-4, atol=1e-5)


def test_the_first_rollout_is_unbiased_too() -> None:
    world = Described(FULL)
    critic = world.critic()
    critic.num_rollouts = 0
    advantages = world.expected(critic, 1.0, 1.0, [0, 1], False)
    for agent_id in AGENTS:
        assert_close(world.estimate(agent_id, advantages), world.true_gradient(agent_id, 1.0), rtol=1e-4, atol=1e-5)


def test_a_fit_that_has_seen_the_own_return_is_biased() -> None:
    """The tests above can fail."""
    world = Described(FULL)
    critic = world.critic()

    class Seen:
        def values(self, batch: RolloutBatch) -> Tensor:
            rows, weights = critic.rows(batch)
            everything = critic.forgetting * critic.moments + critic.products(rows, weights)
            fitted = solve_ridge((critic.turn_weights[:, None, None] * everything).sum(0), critic.penalty)
            return (rows[..., :-1] @ fitted).to(batch.rewards)

    advantages = world.expected(Seen(), 1.0, 1.0, [0, 1], False)
    bias = [(world.estimate(name, advantages) - world.true_gradient(name, 1.0)).abs().max() for name in AGENTS]
    assert max(bias) > 0.01


def test_below_lambda_one_there_is_a_bias_and_it_is_small_where_values_are_good() -> None:
    world = Described(FULL)
    results = {}
    for gae_lambda in (0.95, 0.5, 0.0):
        advantages = world.expected(world.critic(), 1.0, gae_lambda, [0, 1], False)
        true = torch.cat([world.true_gradient(name, 1.0) for name in AGENTS])
        estimate = torch.cat([world.estimate(name, advantages) for name in AGENTS])
        results[gae_lambda] = float((estimate - true).norm() / true.norm())
    assert 0 < results[0.95] < results[0.5] < results[0.0]
    assert results[0.95] < 0.05


# Sums, networks and the algorithm


class Recorded(LanguageModelCritic):
    """Says one number of everything, and keeps what it is asked to learn."""

    def load(self) -> None:
        self.asked: list[tuple[Tensor, Tensor]] = []

    def values(self, batch: RolloutBatch) -> Tensor:
        return torch.where(batch.turn_mask, 0.25, 0.0)

    def update(self, batch: RolloutBatch, values: Tensor, targets: Tensor) -> None:
        self.asked.append((values, targets))


def test_the_language_model_learns_what_the_features_leave_over(tiny_folder: str) -> None:
    world = Described(FULL)
    alone, total = world.critic(), SumCritic(rest=Recorded())
    specs = dict.fromkeys(AGENTS, PolicySpec(tiny_folder))
    original_turn = SimpleNamespace(
        specs=specs, discount=1.0, device="cpu", parameters_mode="separate", critics_share_weights=False
    )
    total.attach("critic", AGENTS, original_turn)
    total.check(SimpleNamespace(feature_names=("own", "other", "both"), horizon=2, has_state_text=False))
    total.load()
    total.parts["features"].restore(alone.checkpoint())

    batch = world.episodes([1, 4, 9], [0, 1, 2])
    known = alone.values(batch)
    values = total.values(batch)
    assert_close(values, known + 0.25)
    targets = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    total.update(batch, values, targets)
    ((old, left),) = total.parts["rest"].asked
    assert_close(old, torch.full((3, 2), 0.25))
    assert_close(left, targets - known)
    alone.update(batch, known, targets)
    assert torch.equal(total.parts["features"].moments, alone.moments)
    assert torch.equal(total.checkpoint()["features"]["moments"], alone.moments)
    assert total.learning_rate == total.parts["rest"].model.learning_rate


def network_critic(critic: FeatureNetworkCritic) -> FeatureNetworkCritic:
    def optimize(name: str, losses: Any, metric: str) -> None:
        optimizer.zero_grad()
        for loss in losses:
            loss.backward()
        optimizer.step()

    critic.attach(
        "critic", AGENTS, SimpleNamespace(specs=dict.fromkeys(AGENTS), discount=1.0, device="cpu", optimize=optimize)
    )
    critic.check(SimpleNamespace(feature_names=("own", "other", "both"), horizon=2, has_state_text=False))
    torch.manual_seed(0)
    critic.load()
    optimizer = torch.optim.Adam(critic.trainable_parameters(), critic.learning_rate)
    return critic


def test_a_small_network_learns_the_values() -> None:
    """V of the second turn given the first joint action: means of four rewards that no line through two bits gives."""
    world = Described(FULL)
    critic = network_critic(FeatureNetworkCritic([16], learning_rate=1e-2, steps=150, memory=2))
    batch = world.episodes(list(range(16)), list(range(16)))  # every course of actions once
    returns = batch.rewards.flip(1).cumsum(1).flip(1)
    before = critic.values(batch)
    assert_close(before[:, 0], (returns[:, 0].sum() - returns[:, 0]) / 15)  # the others' mean
    for _ in range(2):
        critic.update(batch, batch.rewards, batch.rewards)
    expected = torch.tensor([world_mean(returns, world, plan[0]) for plan in world.played])
    assert_close(critic.values(batch)[:, 1], expected, atol=0.1, rtol=0.1)
    assert len(critic.kept) == 2
    batch.rewards += 100.0  # what was not learned from cannot be known
    assert_close(critic.values(batch)[:, 1], expected, atol=0.1, rtol=0.1)


def world_mean(returns: Tensor, world: Described, first: str) -> float:
    rows = [row for row, plan in enumerate(world.played) if plan[0] == first]
    return float(returns[rows, 1].mean())


def test_the_loss_of_a_network_weighs_paths() -> None:
    """A fresh network says 0: of returns 1 and 3 with weights 3 and 1, (3 * 1 + 1 * 9) / 4."""
    critic = network_critic(FeatureNetworkCritic([4]))
    (loss,) = critic.losses(torch.zeros(2, 7), torch.tensor([1.0, 3.0]), torch.tensor([3.0, 1.0]))
    assert loss.item() == pytest.approx(3.0)


def test_a_resumed_network_goes_on_as_it_would_have() -> None:
    world = Described(FULL)
    critic = network_critic(FeatureNetworkCritic([4], steps=3))
    batch = world.episodes([0, 5, 9], [0, 1, 2])
    critic.update(batch, batch.rewards, batch.rewards)
    resumed = network_critic(FeatureNetworkCritic([4], steps=3))
    resumed.load_state_dict(critic.state_dict())
    resumed.restore(critic.checkpoint())
    assert torch.equal(resumed.values(batch), critic.values(batch))
    assert torch.equal(resumed.kept[0][0], critic.kept[0][0])
    with pytest.raises(ConfigurationError, match="has the state features None"):
        resumed.restore({})
    with pytest.raises(ConfigurationError, match=r"inputs .* shape \(6, 3\) .* \(6, 7\) is needed"):
        resumed.restore(critic.checkpoint() | {"kept": [[(torch.zeros(6, 3), torch.zeros(6), torch.ones(6))]]})
    one = critic.checkpoint()
    resumed.restore(one | {"kept": [one["kept"][0], one["kept"][0]]})  # of two processes
    assert torch.equal(resumed.kept[0][1], torch.cat([critic.kept[0][1]] * 2))


def build(folder: str, **settings: Any) -> CoLLMCC:
    return CoLLMCC(agent_ids=AGENTS, policy=PolicySpec(folder, max_new_tokens=4), critic=FeaturesCritic(), **settings)


def test_advantages_are_centred_within_the_group_by_hand(tiny_folder: str) -> None:
    module = build(tiny_folder, center_groups=True, num_generations=2, gae_lambda=1.0)
    used: dict[str, Tensor] = {}
    module.critics["critic"].values = lambda batch: torch.full((4, 1), 0.5)
    module.critics["critic"].update = lambda *args: None
    module.update_policies = lambda batch, advantages: used.update(advantages)
    module.log_critic = lambda *args: None
    module.num_rollouts = 1
    rewards = torch.tensor([[1.0], [3.0], [2.0], [2.0]])
    module.training_step(RolloutBatch([], rewards, rewards > 0, torch.tensor([0, 0, 1, 1]), torch.ones(4)), 0)
    for agent_id in AGENTS:
        assert_close(used[agent_id], torch.tensor([[-2.0], [2.0], [0.0], [0.0]]))


def test_there_must_be_others_to_compare_with(tiny_folder: str) -> None:
    with pytest.raises(ConfigurationError, match="center_groups is true, but data.num_generations is 1"):
        build(tiny_folder, center_groups=True)
    module = build(tiny_folder, center_groups=True, num_generations=2)
    game = SimpleNamespace(feature_names=("x",), horizon=2, has_state_text=False)
    module._trainer = SimpleNamespace(datamodule=SimpleNamespace(environment=game, sampler=Tree()))
    with pytest.raises(ConfigurationError, match="episodes of Tree share actions"):
        module.setup("fit")
