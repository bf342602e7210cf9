"""Ridge regression on state features: against plain NumPy, and that no value has seen its own return."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from collm.critics import feature_network
from collm.critics.feature_network import FeatureNetworkCritic
from collm.critics.features import FeaturesCritic, StateCritic, precision_of_turns, solve_ridge
from collm.errors import ConfigurationError
from collm.rollout_tree import Branch
from collm.trajectory import Action, RolloutBatch, Task, Trajectory, Turn, collate

NAMES, HORIZON = ("x", "y"), 3
GAME = SimpleNamespace(feature_names=NAMES, horizon=HORIZON, has_state_text=False)


def learner(agent_ids: Sequence[str] = ("a1", "a2"), **settings: Any) -> SimpleNamespace:
    return SimpleNamespace(specs=dict.fromkeys(agent_ids), discount=1.0, device="cpu", **settings)


def make(critic: StateCritic | None = None, game: SimpleNamespace = GAME, **options: Any) -> Any:
    critic = critic or FeaturesCritic(**options)
    critic.attach("critic", ["a1", "a2"], learner())
    critic.check(game)
    return critic


def episode(group: int, rewards: Sequence[float], features: Sequence[dict[str, float]]) -> Trajectory:
    actions = {name: Action("") for name in ("a1", "a2")}
    turns = [
        Turn(dict.fromkeys(actions, ""), dict(actions), float(reward), features=dict(numbers))
        for reward, numbers in zip(rewards, features, strict=True)
    ]
    return Trajectory(Task(f"task {group}", {}), group, HORIZON, 1.0, turns)


def rollout(
    seed: int, lengths: Sequence[int] = (3, 2, 3, 1, 3, 3), groups: Sequence[int] | None = None
) -> RolloutBatch:
    """Episodes whose return depends on their features and noise."""
    generator = np.random.default_rng(seed)
    episodes = []
    for number, length in enumerate(lengths):
        numbers = [{"x": generator.normal(), "y": 5 + 2 * generator.normal()} for _ in range(length)]
        rewards = [0.3 * told["x"] - told["y"] + 0.2 * generator.normal() for told in numbers]
        episodes.append(episode(number if groups is None else groups[number], rewards, numbers))
    return collate(episodes)


def plain_rows(batch: RolloutBatch) -> list[tuple[int, int, int, np.ndarray, float]]:
    """Row, group, turn, inputs and return of every turn, written down one by one."""
    rows = []
    for row, trajectory in enumerate(batch.trajectories):
        for index, turn in enumerate(trajectory.turns):
            left = HORIZON - index
            told = np.array([turn.features["x"], turn.features["y"]])
            togo = sum(following.reward for following in trajectory.turns[index:])
            rows.append((row, trajectory.group, index, np.array([left, *told, *(told * left)]), togo))
    return rows


def plain_ridge(inputs: np.ndarray, targets: np.ndarray, weights: np.ndarray, penalty: float) -> np.ndarray:
    """Intercept and slopes, by least squares with rows of penalties below."""
    mean, target_mean = weights @ inputs / weights.sum(), weights @ targets / weights.sum()
    scale = np.sqrt(weights @ (inputs - mean) ** 2 / weights.sum())
    standard = (inputs - mean) / scale
    root = np.sqrt(weights)
    left = np.vstack([root[:, None] * standard, np.sqrt(penalty) * np.eye(len(mean))])
    right = np.concatenate([root * (targets - target_mean), np.zeros(len(mean))])
    slopes = np.linalg.lstsq(left, right, rcond=None)[0] / scale
    return np.concatenate([[target_mean - slopes @ mean], slopes])


# The regression


def test_ridge_by_hand() -> None:
    """x 0 and 2, y 1 and 3: standardized x is -1 and 1, the sum of products 2, the slope 2 / (2 + 2)."""
    rows = torch.tensor([[1.0, 0.0, 1.0], [1.0, 2.0, 3.0]], dtype=torch.float64)
    assert_close(solve_ridge(rows.T @ rows, 2.0), torch.tensor([1.5, 0.5], dtype=torch.float64))


def test_ridge_is_that_of_numpy() -> None:
    generator = np.random.default_rng(0)
    inputs, weights = generator.normal(3, 2, (20, 4)) * [1, 10, 0.1, 1], generator.uniform(0.1, 2, 20)
    targets = inputs @ [1, -0.1, 5, 0] + generator.normal(size=20)
    rows = torch.tensor(np.column_stack([np.ones(20), inputs, targets]))
    products = (rows * torch.tensor(weights)[:, None]).T @ rows
    assert_close(
        solve_ridge(products, 3.0), torch.tensor(plain_ridge(inputs, targets, weights, 3.0)), rtol=1e-9, atol=0
    )


def test_constant_inputs_have_no_slope() -> None:
    rows = torch.tensor([[1.0, 7.1, 0.0, 1.0], [1.0, 7.1, 2.0, 3.0]], dtype=torch.float64)
    assert_close(solve_ridge(rows.T @ rows, 2.0), torch.tensor([1.5, 0.0, 0.5], dtype=torch.float64))


def test_without_observations_values_are_zero() -> None:
    assert not solve_ridge(torch.zeros(5, 5, dtype=torch.float64), 3.0).any()


def test_precision_of_turns_by_hand() -> None:
    """Residuals 1 and -1 at the first turn, 2 and -2 at the second, none at the third: weights 1 : 1/4, mean 1."""
    first, second = (torch.diag(torch.tensor([2.0, 0.0, squares])) for squares in (2.0, 8.0))
    moments = torch.stack([first, second, torch.zeros(3, 3)]).double()
    weights = precision_of_turns(moments, torch.zeros(2, dtype=torch.float64))
    assert_close(weights, torch.tensor([1.6, 0.4, 1.0], dtype=torch.float64))


def test_a_turn_that_is_predicted_exactly_has_a_bounded_weight() -> None:
    """Residuals 0 and 0, then 2 and -2: the pooled variance is 2, so the first counts as 0.02, beside 4."""
    moments = torch.stack([torch.diag(torch.tensor([2.0, 0.0, squares])) for squares in (0.0, 8.0)]).double()
    weights = precision_of_turns(moments, torch.zeros(2, dtype=torch.float64))
    assert_close(weights, torch.tensor([50.0, 0.25], dtype=torch.float64) / ((50 + 0.25) / 2))


def test_inputs_by_hand() -> None:
    batch = collate([episode(0, [0, 0], [{"x": 2, "y": -1}, {"x": 4, "y": 0.5}]), episode(1, [0], [{"x": 1, "y": 1}])])
    expected = torch.tensor([[[3, 2, -1, 6, -3], [2, 4, 0.5, 8, 1]], [[3, 1, 1, 3, 3], [0] * 5]], dtype=torch.float64)
    assert_close(make().inputs(batch), expected)


# Values


@pytest.mark.parametrize("kind", [FeaturesCritic, FeatureNetworkCritic])
def test_features_that_are_not_chosen_do_not_count(kind: type[StateCritic]) -> None:
    """The critic on x alone has the values of a critic in a game without y."""
    batch, without = rollout(0), rollout(0)
    for trajectory in without.trajectories:
        for turn in trajectory.turns:
            turn.features = {"x": turn.features["x"]}
    chosen = make(kind(features=["x"]))
    alone = make(kind(), game=SimpleNamespace(feature_names=("x",), horizon=HORIZON, has_state_text=False))
    assert chosen.num_inputs == 3
    assert_close(chosen.inputs(batch), alone.inputs(without), rtol=0, atol=0)


@pytest.mark.parametrize("features", [["x", "z"], [], ["x", "x"]])
def test_unknown_features_are_refused_before_weights_load(features: list[str]) -> None:
    with pytest.raises(ConfigurationError, match=r"critic.features is \[.*each once: x, y"):
        make(features=features)


def test_the_first_rollout_has_the_mean_of_the_others() -> None:
    """Returns to go 6, 5, 3 and 4, 1 and 2; the second turn of the second has one other, the third turn none."""
    told = {"x": 0.0, "y": 0.0}
    lengths = {0: [1, 2, 3], 1: [3, 1], 2: [2]}
    batch = collate([episode(group, rewards, [told] * len(rewards)) for group, rewards in lengths.items()])
    assert_close(make().values(batch), torch.tensor([[3.0, 1.0, 0.0], [4.0, 5.0, 0.0], [5.0, 0.0, 0.0]]))
    alone = collate(batch.trajectories[:1])
    assert_close(make().values(alone), torch.zeros(1, 3))
    batch.groups[:2] = 0  # left out together
    assert_close(make().values(batch), torch.tensor([[2.0, 0, 0], [2, 0, 0], [5, 0, 0]]))


@pytest.mark.parametrize("kind", [FeaturesCritic, FeatureNetworkCritic])
def test_a_rollout_in_which_nobody_played_is_not_the_first(kind: type[StateCritic]) -> None:
    critic, batch = make(kind()), rollout(0)
    critic.load()
    expected = make(kind()).values(batch)
    critic.update(collate([]), torch.zeros(0, 1), torch.zeros(0, 1))
    assert_close(critic.values(batch), expected)


@pytest.mark.parametrize("weigh_turns", [False, True])
@pytest.mark.parametrize("groups", [None, [0, 0, 1, 1, 2, 2]])
def test_values_are_those_of_refits_without_the_own_group(groups: list[int] | None, weigh_turns: bool) -> None:
    critic = make(penalty=2.0, forgetting=0.5, weigh_turns=weigh_turns)
    earlier = [rollout(1), rollout(2, (2, 3, 3))]
    for batch in earlier:
        critic.update(batch, batch.rewards, batch.rewards)
    newest = rollout(3, groups=groups)
    assert weigh_turns == bool((critic.turn_weights != 1).any())
    by_turn = critic.turn_weights.numpy()
    expected = torch.zeros(newest.rewards.shape)
    for row, group, turn, inputs, _ in plain_rows(newest):
        fitted = [(0.25, one) for one in plain_rows(earlier[0])] + [(0.5, one) for one in plain_rows(earlier[1])]
        fitted += [(1.0, one) for one in plain_rows(newest) if one[1] != group]
        weights = np.array([weight * by_turn[one[2]] for weight, one in fitted])
        result = plain_ridge(
            np.array([one[3] for _, one in fitted]), np.array([one[4] for _, one in fitted]), weights, 2.0
        )
        expected[row, turn] = float(result[0] + result[1:] @ inputs)
    assert_close(critic.values(newest), expected, rtol=1e-6, atol=1e-6)
    assert (critic.values(newest)[~newest.turn_mask] == 0).all()


def test_forgetting_weighs_rollouts() -> None:
    critic = make(forgetting=0.5)
    for lengths in ((3, 3, 3), (3, 1), (2, 2)):
        batch = rollout(0, lengths)
        critic.update(batch, batch.rewards, batch.rewards)
    # 3, 2, 2 episodes at the first turn, 3, 1, 2 at the second, 3, 1, 0 at the third
    assert_close(critic.moments[:, 0, 0], torch.tensor([3.75, 3.25, 1.25], dtype=torch.float64))


@pytest.mark.parametrize("num_updates", [0, 1])
def test_no_value_sees_its_own_return(num_updates: int) -> None:
    critic, batch = make(), rollout(4)
    for _ in range(num_updates):
        earlier = rollout(5)
        critic.update(earlier, earlier.rewards, earlier.rewards)
    before = critic.values(batch)
    batch.rewards[0] += torch.tensor([5.0, -3.0, 9.0])
    after = critic.values(batch)
    assert_close(after[0], before[0])
    assert ((after[1:, 0] - before[1:, 0]).abs() > 1e-3).all()  # the others do


def test_paths_of_a_tree_are_left_out_together_and_count_by_their_weights() -> None:
    told = [{"x": 1.0, "y": 2.0}] * 2
    paths = [episode(0, [1, 2], told), episode(0, [1, 4], told), episode(1, [5, 0], told), episode(1, [5, 3], told)]
    for number, path in enumerate(paths):
        path.turns[0].branch, path.turns[1].branch = Branch(number // 2, -1), Branch(2 + number, number // 2)
    paths[2].weight, paths[3].weight = 0.5, 1.5
    batch = collate(paths)
    # returns 3, 5 with mean 4; 5, 8 of weights 1 and 3 with mean 7.25; then 2, 4 and 0, 3
    expected = torch.tensor([[7.25, 2.25], [7.25, 2.25], [4.0, 3.0], [4.0, 3.0]])
    critic = make()
    assert_close(critic.values(batch), expected)
    critic.update(batch, batch.rewards, batch.rewards)
    # sums of 1 and of returns at the first turn: 3 + 5 + 0.5 * 5 + 1.5 * 8, and 2 + 4 + 0 + 1.5 * 3 at the second
    assert_close(critic.moments[:2, 0, 0], torch.tensor([4.0, 4.0], dtype=torch.float64))
    assert_close(critic.moments[:2, 0, -1], torch.tensor([22.5, 10.5], dtype=torch.float64))


def test_values_change_nothing_and_the_discount_counts() -> None:
    critic, batch = make(), rollout(6)
    critic.learner.discount = 0.5
    critic.update(batch, batch.rewards, batch.rewards)
    moments = critic.moments.clone()
    critic.values(rollout(7))
    assert torch.equal(critic.moments, moments)
    first = batch.rewards[0]
    assert_close(critic.returns(batch)[0, 0], (first[0] + first[1] / 2 + first[2] / 4).double())


def test_predictable_returns_are_predicted() -> None:
    """Returns linear in features x turns left: nearly all of the variance, from the second rollout on."""
    critic, generator = make(penalty=0.1), np.random.default_rng(0)

    def exact(seed: int) -> RolloutBatch:
        episodes = []
        for group in range(16):
            slope = generator.normal()
            told = [{"x": slope, "y": generator.normal()} for _ in range(HORIZON)]
            episodes.append(episode(group, [slope] * HORIZON, told))  # the return to go is x times the turns left
        return collate(episodes)

    first = exact(0)
    critic.update(first, first.rewards, first.rewards)
    second = exact(1)
    returns = second.rewards.flip(1).cumsum(1).flip(1)
    assert (critic.values(second) - returns).square().mean() < 0.01 * returns.square().mean()


# Ranks and checkpoints


def on_two_ranks(critics: Sequence[StateCritic], work: Callable[[StateCritic, int], Any]) -> list[Any]:
    """Two threads act as two processes, which sum their tensors."""
    slots: list[Tensor] = [torch.zeros(0)] * 2
    barrier, results = threading.Barrier(2, timeout=20), [None, None]

    def exchange(number: int) -> Callable[[Tensor], Tensor]:
        def summed(tensor: Tensor) -> Tensor:
            slots[number] = tensor.clone()
            barrier.wait()
            total = slots[0] + slots[1]
            barrier.wait()
            return total

        return summed

    def run(number: int) -> None:
        critics[number].summed = exchange(number)
        results[number] = work(critics[number], number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_two_ranks_have_the_values_of_one() -> None:
    """Ranks differ in episodes and in their longest one."""
    batches = [rollout(8), rollout(9), rollout(10)]
    parts = [[collate([b.trajectories[i] for i in rows]) for rows in ((0, 2, 4, 5), (1, 3))] for b in batches]
    assert parts[0][1].rewards.shape == (2, 2)
    one = make()
    expected = []
    for batch in batches:
        expected.append(one.values(batch))
        one.update(batch, batch.rewards, batch.rewards)

    def work(critic: StateCritic, number: int) -> list[Tensor]:
        result = []
        for part in parts:
            result.append(critic.values(part[number]))
            critic.update(part[number], part[number].rewards, part[number].rewards)
        return result

    first, second = on_two_ranks([make(), make()], work)
    for whole, upper, lower in zip(expected, first, second, strict=True):
        assert_close(upper, whole[[0, 2, 4, 5]])
        assert_close(lower, whole[[1, 3]][:, :2])


def test_a_resumed_critic_goes_on_as_it_would_have() -> None:
    critic = make()
    for seed in (11, 12):
        batch = rollout(seed)
        critic.update(batch, batch.rewards, batch.rewards)
    file = io.BytesIO()
    torch.save(critic.checkpoint(), file)
    file.seek(0)
    resumed = make()
    resumed.restore(torch.load(file, weights_only=True))
    for seed in (13, 14):
        batch = rollout(seed)
        assert torch.equal(resumed.values(batch), critic.values(batch))
        for one in (critic, resumed):
            one.update(batch, batch.rewards, batch.rewards)
    assert torch.equal(resumed.moments, critic.moments)
    assert torch.equal(resumed.turn_weights, critic.turn_weights)
    resumed.check(GAME)  # another stage of the same run takes nothing away
    assert torch.equal(resumed.moments, critic.moments)


def test_a_network_divides_its_rollouts_among_another_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes kept 2 and 3 turns of a rollout; one process gets all five, and of three the last one two."""
    critic = make(FeatureNetworkCritic())
    turns = torch.arange(5.0, dtype=torch.float64)
    parts = [[(rows[:, None].repeat(1, critic.num_inputs), rows, rows + 10)] for rows in (turns[:2], turns[2:])]
    state = critic.checkpoint() | {"kept": parts}
    for ranks, rank, expected in ((1, 0, [0, 1, 2, 3, 4]), (3, 1, [1, 4]), (2, 1, [2, 3, 4])):
        monkeypatch.setattr(feature_network, "num_ranks", lambda ranks=ranks: ranks)
        monkeypatch.setattr(feature_network, "rank", lambda rank=rank: rank)
        critic.restore(state)
        ((inputs, returns, weights),) = critic.kept
        assert returns.tolist() == expected
        assert inputs[:, -1].tolist() == expected
        assert weights.tolist() == [number + 10 for number in expected]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ["x", "z"]}, r"\['x', 'z'\], this run has \['x', 'y'\]"),
        ({"moments": torch.zeros(2, 7, 7)}, r"moments .* shape \(2, 7, 7\)"),
        ({"turn_weights": torch.tensor([1.0, float("nan"), 1.0])}, "turn_weights .* not finite"),
    ],
)
def test_foreign_checkpoints_are_refused(change: dict[str, Any], message: str) -> None:
    critic = make()
    with pytest.raises(ConfigurationError, match=message):
        critic.restore(critic.checkpoint() | change)
    with pytest.raises(ConfigurationError, match="has the state features None"):
        critic.restore({})


# Bad input


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"x": 1.0, "y": float("nan")}, "state feature 'y' is nan in task 'task 1' before turn 2"),
        ({"x": float("inf"), "y": 1.0}, "state feature 'x' is inf"),
        ({"x": 1.0}, "other names .*: y"),
        ({"x": 1.0, "y": 1.0, "z": 1.0}, "other names .*: z"),
        ({"y": 1.0, "x": 1.0}, "another order .*: y, x"),
    ],
)
def test_bad_features_are_named(features: dict[str, float], message: str) -> None:
    good = {"x": 1.0, "y": 1.0}
    with pytest.raises(ConfigurationError, match=message):
        make().inputs(collate([episode(0, [0], [good]), episode(1, [0, 0], [good, features])]))


def test_missing_features_are_refused_before_weights_load() -> None:
    with pytest.raises(ConfigurationError, match="SimpleNamespace has no state features"):
        make(game=SimpleNamespace(feature_names=(), horizon=3))
    with pytest.raises(ConfigurationError, match="has one critic per agent; use CoLLMCC"):
        FeaturesCritic().attach("critic/a1", ["a1"], learner())
    FeaturesCritic().attach("critic/a1", ["a1"], learner(["a1"]))  # a team of one is centralized


@pytest.mark.parametrize("options", [{"penalty": 0.0}, {"forgetting": 0.0}, {"forgetting": 1.1}])
def test_bad_settings(options: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=f"critic.{next(iter(options))} is"):
        FeaturesCritic(**options)
