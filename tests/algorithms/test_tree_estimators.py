"""Monte-Carlo estimators on rollout trees against the exact gradient, and their variance against proposition 4.2."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from actors import actors_of
from collm.algorithms.magrpo import MAGRPO
from collm.algorithms.mareinforce import MAREINFORCE
from collm.algorithms.marloo import MARLOO
from collm.algorithms.monte_carlo import MonteCarlo
from collm.objectives import reinforce_loss
from collm.packing import pool_shared_actions
from collm.samplers.tree import Tree
from collm.trajectory import RolloutBatch, collate
from enumerated import SECOND, STOPS, Enumerated
from tabular import AGENTS, HISTORIES, TabularPolicy, TwoTurns, log_probs_of, scored_mask


def tree_gradient(algorithm: MonteCarlo, batch: RolloutBatch, agent_id: str, logits: Tensor) -> Tensor:
    """What `training_step` would ascend on `batch`, [histories, 2]."""
    seen = {}
    algorithm.update_policies = lambda batch, advantages: seen.update(advantages)
    algorithm.training_step(batch, 0)
    pooled = pool_shared_actions(seen[agent_id], batch, agent_id)
    table = logits.clone().requires_grad_()
    log_probs = log_probs_of(batch.trajectories, agent_id, table, batch.rewards.shape[1])
    reinforce_loss(log_probs, pooled, scored_mask(batch, agent_id)).backward()
    return -table.grad / len(batch.trajectories)


# A node has M = K (aligned) or M = K^2 (crossed) joint actions, K = 2 here. A crossed response is part of K of them, so
# that (K - 1) / K of the gradient is left by any baseline over all of them, and leaving one out makes up M / (M - 1).
LENGTHS = {
    (MAREINFORCE, "aligned"): 1.0,
    (MAREINFORCE, "cross"): 1.0,
    (MARLOO, "aligned"): 1.0,
    (MARLOO, "cross"): 4 / 3 / 2,
    (MAGRPO, "aligned"): 1 / 2,
    (MAGRPO, "cross"): 1 / 2,
}


@pytest.mark.parametrize(("cls", "joint"), LENGTHS, ids=lambda value: getattr(value, "__name__", value))
def test_trees_have_the_direction_of_the_gradient(make, cls: type[MonteCarlo], joint: str) -> None:
    """Mean over trees of K = 2, within 4 standard errors of the true gradient times the documented length."""
    world, algorithm = Enumerated(STOPS), make(cls, 2)
    drawn: dict[str, list[Tensor]] = {name: [] for name in AGENTS}
    for seed in range(150):
        batch = collate(Tree(joint).rollout(STOPS, STOPS.tasks("train")[:1], actors_of(world.policies), seed, "cpu", 2))
        for agent_id in AGENTS:
            drawn[agent_id].append(tree_gradient(algorithm, batch, agent_id, world.policies[agent_id].logits))
    for agent_id, each in drawn.items():
        stacked = torch.stack(each)
        errors = stacked.std(0) / len(stacked) ** 0.5
        expected = LENGTHS[cls, joint] * world.true_gradient(agent_id, 1.0)
        assert ((stacked.mean(0) - expected).abs() < 4 * errors + 1e-6).all()


def root_and_leaf_gradients(make, game: TwoTurns, branches: int, num_trees: int) -> tuple[Tensor, Tensor]:
    """Gradient of the first logit at the root, and at one node of the second turn, by tree, [num_trees] each."""
    uniform = {name: TabularPolicy(torch.zeros(len(HISTORIES), 2)) for name in AGENTS}
    algorithm = make(MAREINFORCE, branches)
    captured = {}
    algorithm.update_policies = lambda batch, advantages: captured.update(advantages)
    roots, leaves = [], []
    for seed in range(num_trees):
        batch = collate(Tree().rollout(game, game.tasks("train")[:1], actors_of(uniform), seed, "cpu", branches))
        algorithm.training_step(batch, 0)
        advantages = captured["first"]
        taken = [[float(turn.actions["first"].text) for turn in path.turns] for path in batch.trajectories]
        scores = 0.5 - torch.tensor(taken)  # d log pi / d logit of action 0, for a uniform policy
        estimates = scores * advantages
        roots.append(estimates[::branches, 0].mean())  # every joint action of the root once
        leaves.append(estimates[:branches, 1].mean())  # the children of its first joint action
    return torch.stack(roots), torch.stack(leaves)


def test_variance_falls_with_the_size_of_the_subtree_if_leaves_are_independent(make) -> None:
    """Proposition 4.2, Var = sigma^2 / K^(H - t): rewards are noise, so that leaves have nothing in common.

    sigma^2 = 1/4: the squared score of a uniform choice between two, times the unit variance of the reward.
    """
    game = TwoTurns(torch.zeros(2, 2), SECOND, noise=random.Random(0))
    root, leaf = root_and_leaf_gradients(make, game, branches=3, num_trees=600)
    # the variance of 600 draws has a relative error of about sqrt(2 / 600) = 0.06
    assert root.var() == pytest.approx(0.25 / 3**2, rel=0.25)
    assert leaf.var() == pytest.approx(0.25 / 3, rel=0.25)


def test_variance_falls_with_the_branches_alone_if_leaves_share_their_reward(make) -> None:
    """The proposition's independence matters: a reward of the first turn is the same in all leaves below it."""
    game = TwoTurns(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]), torch.zeros(4, 2, 2))
    root, _ = root_and_leaf_gradients(make, game, branches=3, num_trees=500)
    assert root.var() == pytest.approx(0.25 / 3, rel=0.25)
