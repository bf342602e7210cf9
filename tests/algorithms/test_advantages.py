"""The advantages of every algorithm on fixed batches; comments show the arithmetic."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from actors import actors_of
from collm.algorithms.actor_critic import ActorCritic
from collm.algorithms.collm_cc import CoLLMCC
from collm.algorithms.collm_cc_q import CoLLMCCQ
from collm.algorithms.collm_dc import CoLLMDC
from collm.algorithms.magrpo import MAGRPO
from collm.algorithms.mareinforce import MAREINFORCE
from collm.algorithms.maremax import MAReMax
from collm.algorithms.marloo import MARLOO
from collm.algorithms.monte_carlo import MonteCarlo
from collm.critics.language_model import LanguageModelCritic
from collm.errors import ConfigurationError
from collm.models.policy_spec import PolicySpec
from collm.models.specs import ModelSpec
from collm.rollout_tree import Branch
from collm.samplers.parallel import Parallel
from collm.samplers.tree import Tree
from collm.trajectory import Action, RolloutBatch, Task, Trajectory, Turn, collate
from enumerated import FULL, make_policies
from tabular import AGENTS

MONTE_CARLO = [MAREINFORCE, MARLOO, MAGRPO, MAReMax]
RETURNS = torch.tensor([[4.0, 1.0], [0.0, 3.0], [2.0, 0.0], [7.0, 7.0], [1.0, 5.0]])
GROUPS = torch.tensor([0, 0, 0, 1, 1])
PLAYED = torch.tensor([[True, True], [True, True], [True, False], [True, True], [True, True]])
BY_HAND = {
    MAREINFORCE: [[4.0, 1.0], [0.0, 3.0], [2.0, 0.0], [7.0, 7.0], [1.0, 5.0]],
    # means of group 0: (4 + 0 + 2) / 3 = 2, (1 + 3 + 0) / 3 = 4/3; of group 1: 4 and 6
    MAGRPO: [[2.0, -1 / 3], [-2.0, 5 / 3], [0.0, 0.0], [3.0, 1.0], [-3.0, -1.0]],
    # others: (0 + 2) / 2, (4 + 2) / 2, (4 + 0) / 2; then (3 + 0) / 2, (1 + 0) / 2; the other one of two
    MARLOO: [[3.0, -0.5], [-3.0, 2.5], [0.0, 0.0], [6.0, 2.0], [-6.0, -2.0]],
    # maxima 4, 3; 7, 7
    MAReMax: [[0.0, -2.0], [-4.0, 0.0], [-2.0, 0.0], [0.0, 0.0], [-6.0, -2.0]],
}


def step(algorithm: Any, batch: RolloutBatch) -> dict[str, Tensor]:
    """The advantages that `training_step` hands to the policy updates."""
    seen: dict[str, Tensor] = {}
    algorithm.update_policies = lambda batch, advantages: seen.update(advantages)
    algorithm.training_step(batch, 0)
    return seen


@pytest.mark.parametrize("cls", MONTE_CARLO)
def test_monte_carlo_by_hand(make, cls: type[MonteCarlo]) -> None:
    assert_close(make(cls).advantages(RETURNS, GROUPS, PLAYED), torch.tensor(BY_HAND[cls]))


def test_the_relatives_stay_distinct(make) -> None:
    result = [make(cls).advantages(RETURNS, GROUPS, PLAYED) for cls in MONTE_CARLO]
    for index, one in enumerate(result):
        for other in result[:index]:
            assert (one - other).abs().max() > 0.1


@pytest.mark.parametrize("cls", [MAREINFORCE, MAGRPO, MAReMax])
def test_group_standardize_divides_by_the_deviation_of_the_group(make, cls: type[MonteCarlo]) -> None:
    plain = make(cls).advantages(RETURNS, GROUPS, PLAYED)
    scaled = make(cls, group_standardize=True).advantages(RETURNS, GROUPS, PLAYED)
    # first turn: returns 4, 0, 2 deviate by sqrt((4 + 4 + 0) / 3), and 7, 1 by 3
    assert_close(scaled[:3, 0], plain[:3, 0] / (8 / 3) ** 0.5)
    assert_close(scaled[3:, 0], plain[3:, 0] / 3)


def test_the_discount_is_respected(make) -> None:
    batch = collate(Parallel().rollout(FULL, FULL.tasks("train")[:1], actors_of(make_policies()), 0, "cpu", 1))
    batch.rewards = torch.tensor([[1.0, 8.0]])
    seen = step(make(MAREINFORCE, 1, discount=0.25), batch)
    assert_close(seen["second"], torch.tensor([[3.0, 8.0]]))  # 1 + 0.25 * 8


def test_siblings_are_the_group_in_a_tree(make) -> None:
    """K = 2: two first turns, each with two children."""
    batch = collate(Tree().rollout(FULL, FULL.tasks("train")[:1], actors_of(make_policies()), 0, "cpu", 2))
    batch.rewards = torch.tensor([[1.0, 4.0], [1.0, 0.0], [2.0, 6.0], [2.0, 8.0]])
    seen = step(make(MAGRPO, discount=0.5), batch)
    # returns of the first turns: 1 + 0.5 * (4 + 0) / 2 = 2 and 2 + 0.5 * (6 + 8) / 2 = 5.5, mean 3.75
    expected = torch.tensor([[-1.75, 2.0], [-1.75, -2.0], [1.75, -1.0], [1.75, 1.0]])
    assert_close(seen["first"], expected)


def test_independent_episodes_are_compared_turn_by_turn(make) -> None:
    batch = collate(Parallel().rollout(FULL, FULL.tasks("train")[:1], actors_of(make_policies()), 0, "cpu", 2))
    batch.rewards = torch.tensor([[1.0, 4.0], [2.0, 6.0]])
    # returns 5, 4 and 8, 6
    assert_close(step(make(MAGRPO), batch)["first"], torch.tensor([[-1.5, -1.0], [1.5, 1.0]]))


@pytest.mark.parametrize("cls", [MARLOO, MAGRPO, MAReMax])
def test_a_group_of_one_is_refused(make, cls: type[MonteCarlo]) -> None:
    with pytest.raises(ConfigurationError, match="data.num_generations is 1, but .* compares"):
        make(cls, 1)
    assert make(MAREINFORCE, 1)


# Critics that know by heart


REWARDS = torch.tensor([[1.0, 8.0], [2.0, 0.0]])
MASK = torch.tensor([[True, True], [True, False]])
JOINT_VALUES = torch.tensor([[3.0, 4.0], [1.5, 0.0]])
OWN_VALUES = {"first": torch.tensor([[0.0, 2.0], [1.0, 0.0]]), "second": torch.tensor([[4.0, 10.0], [2.0, 0.0]])}


def with_values(algorithm: ActorCritic, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """Let the critics be `values`, by name; returns the dict that will hold their targets."""
    targets: dict[str, Tensor] = {}
    assert algorithm.critics.keys() == values.keys()
    for name, critic in algorithm.critics.items():
        critic.differentiable_values = lambda batch, name=name: values[name]
        critic.update = lambda batch, old_values, result, name=name: targets.update({name: result})
    algorithm.log_critic = lambda *args: None
    algorithm.num_rollouts = 1
    return targets


def actor_critic(cls: type[ActorCritic], folder: str, **kwargs: Any) -> ActorCritic:
    spec, critic = PolicySpec(path=folder, max_new_tokens=4), LanguageModelCritic(ModelSpec(path=folder))
    return cls(agent_ids=AGENTS, policy=spec, critic=critic, discount=0.5, **kwargs)


BATCH = RolloutBatch([], REWARDS, MASK, torch.tensor([0, 0]), torch.ones(2))


def test_cc_by_hand(tiny_folder: str) -> None:
    algorithm = actor_critic(CoLLMCC, tiny_folder)
    targets = with_values(algorithm, {"critic": JOINT_VALUES})
    seen = step(algorithm, BATCH)
    # targets 1 + 0.5 * 4, 8; 2 (the episode is over, no bootstrap)
    assert_close(targets["critic"], torch.tensor([[3.0, 8.0], [2.0, 0.0]]))
    assert_close(seen["first"], torch.tensor([[0.0, 4.0], [0.5, 0.0]]))
    assert_close(seen["second"], seen["first"])


def test_dc_by_hand(tiny_folder: str) -> None:
    algorithm = actor_critic(CoLLMDC, tiny_folder)
    targets = with_values(algorithm, {f"critic/{name}": values for name, values in OWN_VALUES.items()})
    seen = step(algorithm, BATCH)
    # 1 + 0.5 * 2, 8; 2 and 1 + 0.5 * 10, 8; 2
    assert_close(targets["critic/first"], torch.tensor([[2.0, 8.0], [2.0, 0.0]]))
    assert_close(targets["critic/second"], torch.tensor([[6.0, 8.0], [2.0, 0.0]]))
    assert_close(seen["first"], torch.tensor([[2.0, 6.0], [1.0, 0.0]]))
    assert_close(seen["second"], torch.tensor([[2.0, -2.0], [0.0, 0.0]]))


def test_advantages_are_clipped_to_both_sides(tiny_folder: str) -> None:
    algorithm = actor_critic(CoLLMDC, tiny_folder, advantage_clip=1.5)
    with_values(algorithm, {f"critic/{name}": values for name, values in OWN_VALUES.items()})
    seen = step(algorithm, BATCH)
    assert_close(seen["first"], torch.tensor([[1.5, 1.5], [1.0, 0.0]]))
    assert_close(seen["second"], torch.tensor([[1.5, -1.5], [0.0, 0.0]]))


def test_cc_q_by_hand(tiny_folder: str) -> None:
    algorithm = actor_critic(CoLLMCCQ, tiny_folder)
    # V(h_0), Q(h_0, a_0), V(h_1), Q(h_1, a_1)
    targets = with_values(
        algorithm, {"critic": torch.tensor([[3.0, 5.0, 4.0, 2.0], [1.5, 1.0, 0.0, 0.0]]).view(2, 2, 2)}
    )
    seen = step(algorithm, BATCH)
    # 1 + 0.5 * 2, 8; 2
    assert_close(targets["critic"], torch.tensor([[2.0, 8.0], [2.0, 0.0]]))
    assert_close(seen["first"], torch.tensor([[2.0, -2.0], [-0.5, 0.0]]))  # Q - V
    assert_close(seen["second"], seen["first"])


def test_lambda_1_is_monte_carlo(tiny_folder: str) -> None:
    algorithm = actor_critic(CoLLMDC, tiny_folder, gae_lambda=1.0)
    targets = with_values(algorithm, {f"critic/{name}": values for name, values in OWN_VALUES.items()})
    step(algorithm, BATCH)
    for target in targets.values():
        assert_close(target, torch.tensor([[5.0, 8.0], [2.0, 0.0]]))  # 1 + 0.5 * 8


def test_critics_warm_up_alone(tiny_folder: str) -> None:
    algorithm = actor_critic(CoLLMDC, tiny_folder, critic_warmup=1)
    targets = with_values(algorithm, {f"critic/{name}": values for name, values in OWN_VALUES.items()})
    assert step(algorithm, BATCH) == {}
    assert set(targets) == {"critic/first", "critic/second"}


@pytest.mark.parametrize("algorithm", [MAGRPO, MARLOO])
def test_paths_of_uneven_trees_are_normalized_with_their_weights(
    algorithm: type[MonteCarlo], make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One joint action ends with 2, its sibling is continued twice, with 0: paths of weight 3 / 2, 3 / 4 and 3 / 4.

    Advantages are c, -c and -c in the first turn and 0 in the second one, so their weighted mean is 0 and their
    variance (3 / 2 + 3 / 4 + 3 / 4) c^2 over 3 / 2 + 2 (3 / 4 + 3 / 4): 2 / 3 c^2.
    """
    paths = []
    for path, (weight, nodes) in enumerate([(0.5, [0]), (0.25, [1, 2]), (0.25, [1, 3])]):
        trajectory = Trajectory(Task("task", {}), 0, 2, 2.0, weight=weight)
        for turn, node in enumerate(nodes):
            actions = {name: Action("", uid=f"{name} {node}") for name in AGENTS}
            reward = 2.0 if path == 0 else 0.0
            trajectory.turns.append(Turn(dict.fromkeys(AGENTS, ""), actions, reward, branch=Branch(node, turn * 2 - 1)))
        paths.append(trajectory)
    module = make(algorithm, normalize_advantage=True)
    given: dict[str, Tensor] = {}
    monkeypatch.setattr(module, "update_policies", lambda batch, advantages: given.update(advantages))
    module.training_step(collate(paths), 0)
    root = 1.5**0.5
    assert_close(given[AGENTS[0]], torch.tensor([[root, 0.0], [-root, 0.0], [-root, 0.0]]))
