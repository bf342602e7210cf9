from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable

import pytest
import torch
from torch.testing import assert_close

from actors import actors_of
from collm.data import RolloutDataModule
from collm.errors import ConfigurationError
from collm.objectives import policy_gradient_loss
from collm.packing import pool_shared_actions
from collm.returns import discounted_returns, node_returns
from collm.samplers.parallel import Parallel
from collm.samplers.tree import Tree
from collm.trajectory import RolloutBatch, Trajectory, collate
from tabular import AGENTS, HISTORIES, TabularPolicy, TwoTurns, log_probs_of, scored_mask

FIRST = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
SECOND = torch.arange(16.0).view(4, 2, 2)


def make_policies(scale: float = 1.0) -> dict[str, TabularPolicy]:
    generator = torch.Generator().manual_seed(1)
    return {name: TabularPolicy(scale * torch.randn(len(HISTORIES), 2, generator=generator)) for name in AGENTS}


def grow(sampler: Tree, branches: int, num_tasks: int = 1, seed: int = 0, game: TwoTurns | None = None, **kwargs):
    """Rollout and the policies that were asked for it."""
    policies = make_policies(**kwargs)
    game = game or TwoTurns(FIRST, SECOND)
    paths = sampler.rollout(game, game.tasks("train")[:num_tasks], actors_of(policies), seed, "cpu", branches)
    return collate(paths), policies


class Longer(TwoTurns):
    """The second turn again and again."""

    def __init__(self, horizon: int):
        super().__init__(FIRST, SECOND)
        self.horizon = horizon


class Memoryless(TabularPolicy):
    """Plays every history like the first one."""

    def prompt(self, observations, actions):
        return [0]


@pytest.mark.parametrize(("branches", "horizon", "num_tasks"), [(1, 3, 2), (2, 1, 1), (2, 4, 1), (3, 3, 2), (4, 2, 3)])
def test_number_of_model_calls(branches: int, horizon: int, num_tasks: int) -> None:
    """N_call = n K (K^H - 1) / (K - 1) responses per task (proposition 4.3), in one batch per agent and turn."""
    game = Longer(horizon)
    policies = {name: Memoryless(torch.zeros(len(HISTORIES), 2)) for name in AGENTS}
    paths = Tree().rollout(game, game.tasks("train")[:num_tasks], actors_of(policies), 0, "cpu", branches)
    nodes = horizon if branches == 1 else branches * (branches**horizon - 1) // (branches - 1)
    assert sum(policy.num_rows for policy in policies.values()) == num_tasks * len(AGENTS) * nodes
    assert [policy.num_batches for policy in policies.values()] == [horizon, horizon]
    assert len(paths) == num_tasks * branches**horizon
    assert collate(paths).joint_samples == num_tasks * nodes


def test_paths_share_the_turns_of_their_common_beginning() -> None:
    batch, _ = grow(Tree(), 3, num_tasks=2)
    paths = batch.trajectories
    assert [path.group for path in paths] == [0] * 9 + [1] * 9
    assert Counter(id(path.turns[0]) for path in paths).most_common() == [(id(path.turns[0]), 3) for path in paths[::3]]
    assert len({id(path.turns[1]) for path in paths}) == 18
    assert batch.joint_samples == 2 * (3 + 9)
    # the first turns of a task are siblings, and so are the second turns after the same first one
    assert_close(batch.tree.siblings[batch.tree.nodes[:, 0]], torch.tensor([-1] * 9 + [-2] * 9))
    parents = [path.turns[0].branch.node for path in paths]
    assert batch.tree.siblings[batch.tree.nodes[:, 1]].tolist() == parents
    assert_close(batch.weights, torch.ones(18))


def test_crossed_joint_actions_are_all_combinations() -> None:
    batch, policies = grow(Tree("cross"), 2)
    # 2 agents, 2 responses each: 4 joint actions per node, 4 + 16 nodes
    assert len(batch.trajectories) == 16
    assert batch.joint_samples == 20
    # each agent is asked twice at the root and twice after each of the 4 joint actions
    assert [policy.num_rows for policy in policies.values()] == [2 + 4 * 2] * 2
    actions = {agent_id: {id(t.actions[agent_id]) for p in batch.trajectories for t in p.turns} for agent_id in AGENTS}
    assert [len(ids) for ids in actions.values()] == [10, 10]
    roots = {id(path.turns[0]): path.turns[0] for path in batch.trajectories}.values()
    assert len({(id(turn.actions["first"]), id(turn.actions["second"])) for turn in roots}) == 4


def records(paths: Iterable[Trajectory]) -> list[dict]:
    """What was played, without positions in trees, which hold unique ids of actions."""
    plain = [path.record() for path in paths]
    for turn in (turn for record in plain for turn in record["turns"]):
        turn.pop("branch", None)
    return plain


def test_one_turn_is_what_independent_episodes_are() -> None:
    game, tasks = Longer(1), Longer(1).tasks("train")
    tree = Tree().rollout(game, tasks, actors_of(make_policies()), 5, "cpu", 4)
    episodes = Parallel().rollout(game, tasks, actors_of(make_policies()), 5, "cpu", 4)
    assert records(tree) == records(episodes)


def test_the_return_of_a_joint_action_is_its_reward_and_the_mean_of_its_children() -> None:
    batch, _ = grow(Tree(), 3)
    returns = discounted_returns(batch.rewards, batch.turn_mask, 0.5)
    nodes = node_returns(returns, batch.tree.nodes, batch.weights, batch.turn_mask)
    for first in range(3):
        rows = range(3 * first, 3 * first + 3)
        expected = batch.rewards[3 * first, 0] + 0.5 * sum(batch.rewards[row, 1] for row in rows) / 3
        assert_close(nodes[batch.tree.nodes[rows, 0]], expected.expand(3))
        assert_close(nodes[batch.tree.nodes[rows, 1]], batch.rewards[rows, 1])


def test_paths_that_end_early_weigh_as_much_as_those_that_would_have_followed() -> None:
    """Joint action 3 (both 1) ends the episode: such a path stands for the K it did not become."""
    batch, _ = grow(Tree(), 4, seed=3, game=TwoTurns(FIRST, SECOND, stop_at=3))
    ended = ~batch.turn_mask[:, 1]
    assert 0 < ended.sum() < 4
    long, short = int((~ended).sum()), int(ended.sum())
    assert long == 4 * (4 - short)
    # descents: 1/4 for a short path, 1/16 for a long one; mean 1 over the paths
    scale = (long + short) / 1.0
    assert_close(batch.weights, torch.where(ended, scale / 4, scale / 16))
    assert batch.joint_samples == 4 + long


def test_a_branch_that_fails_keeps_the_turns_before_it() -> None:
    batch, _ = grow(Tree(), 4, seed=3, game=TwoTurns(FIRST, SECOND, fail_at=3))
    failed = [path for path in batch.trajectories if path.error]
    assert failed
    assert all(not path.turns and path.weight == 0.25 for path in failed)
    assert batch.joint_samples == (4 - len(failed)) * 5


def test_branches_do_not_see_each_other() -> None:
    """The state of the game is mutable: shared between branches, turns and rewards would be wrong."""
    batch, _ = grow(Tree(), 3, num_tasks=2)
    for path in batch.trajectories:
        own, other = (int(path.turns[0].actions[name].text) for name in AGENTS)
        then = [int(path.turns[1].actions[name].text) for name in AGENTS]
        assert [turn.reward for turn in path.turns] == [FIRST[own, other], SECOND[2 * own + other, then[0], then[1]]]
        assert path.turns[1].observations["first"] == str(int(own == other))


@pytest.mark.parametrize("joint", ["aligned", "cross"])
def test_every_response_is_scored_once(joint: str) -> None:
    batch, policies = grow(Tree(joint), 3, num_tasks=2)
    for agent_id in AGENTS:
        assert int(scored_mask(batch, agent_id).sum()) == policies[agent_id].num_rows


def gradient(batch: RolloutBatch, agent_id: str, advantages: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    logits = make_policies()[agent_id].logits.requires_grad_()
    log_probs = log_probs_of(batch.trajectories, agent_id, logits, batch.rewards.shape[1])
    policy_gradient_loss(log_probs, log_probs.detach(), advantages, mask).backward()
    return logits.grad


@pytest.mark.parametrize("joint", ["aligned", "cross"])
def test_scoring_once_is_scoring_every_path_with_its_weight(joint: str) -> None:
    batch, _ = grow(Tree(joint), 3, num_tasks=2, seed=2, game=TwoTurns(FIRST, SECOND, stop_at=1))
    advantages = torch.randn(batch.rewards.shape, generator=torch.Generator().manual_seed(0)) * batch.turn_mask
    for agent_id in AGENTS:
        once = scored_mask(batch, agent_id)
        pooled = pool_shared_actions(advantages, batch, agent_id)
        assert not pooled[~once].any()
        everywhere = gradient(batch, agent_id, advantages * batch.weights[:, None], batch.turn_mask)
        assert_close(gradient(batch, agent_id, pooled, once), everywhere)


def test_independent_episodes_pool_nothing() -> None:
    game = TwoTurns(FIRST, SECOND)
    batch = collate(Parallel().rollout(game, game.tasks("train"), actors_of(make_policies()), 0, "cpu", 3))
    advantages = torch.randn(batch.rewards.shape)
    assert batch.tree is None
    assert batch.joint_samples == 24
    assert_close(pool_shared_actions(advantages, batch, "first"), advantages)


def test_a_tree_moves_with_its_batch() -> None:
    batch = grow(Tree(), 2)[0].to(torch.device("meta"))
    assert {batch.tree.nodes.device.type, batch.tree.siblings.device.type, batch.weights.device.type} == {"meta"}


@pytest.mark.parametrize(
    ("sampler", "branches", "message"),
    [
        # 4 + 16 joint samples for each of 3 tasks
        (
            Tree(max_joint_samples=59),
            4,
            "4 aligned joint actions per node .* has 20 joint samples, and 60 in",
        ),
        # 16 + 256
        (Tree("cross", max_joint_samples=800), 4, "16 cross joint actions per node .* has 272 .* 816 .* is 800"),
    ],
)
def test_a_tree_beyond_the_budget_is_refused_before_anything_is_loaded(sampler, branches, message) -> None:
    with pytest.raises(ConfigurationError, match=message):
        RolloutDataModule(TwoTurns(FIRST, SECOND), sampler, tasks_per_rollout=3, num_generations=branches)
    sampler.max_joint_samples += 20
    RolloutDataModule(TwoTurns(FIRST, SECOND), sampler, tasks_per_rollout=3, num_generations=branches)


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigurationError, match="joint is 'both'"):
        Tree("both")
    with pytest.raises(ConfigurationError, match="max_joint_samples is 0"):
        Tree(max_joint_samples=0)


def test_the_same_seed_grows_the_same_tree() -> None:
    first, again, other = (records(grow(Tree(), 3, seed=seed)[0].trajectories) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_noise_is_drawn_for_every_leaf() -> None:
    batch, _ = grow(Tree(), 3, game=TwoTurns(FIRST, SECOND, noise=random.Random(0)))
    assert len(set(batch.rewards[:, 1].tolist())) == 9
