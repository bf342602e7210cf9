"""C3 against the exact gradient of a game that is solved exactly, and by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from actors import actors_of
from collm.algorithms.c3 import C3
from collm.errors import ConfigurationError
from collm.objectives import policy_gradient_loss
from collm.packing import pool_shared_actions
from collm.rollout_tree import Branch
from collm.samplers.counterfactual import Counterfactual
from collm.trajectory import Action, RolloutBatch, Task, Trajectory, Turn, collate
from enumerated import FULL, STOPS, Enumerated
from tabular import AGENTS, TwoTurns, log_probs_of, scored_mask


def advantages_of(algorithm: C3, batch: RolloutBatch) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    algorithm.update_policies = lambda batch, advantages: seen.update(advantages)
    algorithm.training_step(batch, 0)
    return seen


def test_advantages_by_hand(make: Callable[..., C3]) -> None:
    """One turn, K = 3. First agent: rewards 1, 4 and 7 beside b0; second agent: 1, 2 and 0 beside a0."""
    a0, a1, a2, b0, b1, b2 = (Action(name) for name in ("a0", "a1", "a2", "b0", "b1", "b2"))
    played = [((a0, b0), 1.0), ((a1, b0), 4.0), ((a2, b0), 7.0), ((a0, b1), 2.0), ((a0, b2), 0.0)]
    batch = collate(
        [
            Trajectory(
                Task("t", {}),
                0,
                1,
                1.0,
                [Turn({}, dict(zip(AGENTS, actions, strict=True)), reward, branch=Branch(node, -1))],
            )
            for node, (actions, reward) in enumerate(played)
        ]
    )
    advantages = advantages_of(make(C3, 3), batch)
    # minus the mean of the other two; five trajectories of one episode, means over three: times 5 / 3
    first, second = (torch.tensor(own)[:, None] * 5 / 3 for own in ([-4.5, 0, 4.5, 0, 0], [0, 0, 0, 1.5, -1.5]))
    assert_close(advantages["first"], first)
    assert_close(advantages["second"], second)


@pytest.mark.parametrize(("game", "num_generations"), [(FULL, 2), (STOPS, 3)], ids=["two turns", "may end early"])
def test_the_gradient_is_unbiased(make: Callable[..., C3], game: TwoTurns, num_generations: int) -> None:
    """Mean over 60 rollouts of 16 episodes within 4 standard errors of the true gradient, whatever K is."""
    world, algorithm = Enumerated(game), make(C3, num_generations)
    drawn: dict[str, list[Tensor]] = {name: [] for name in AGENTS}
    for seed in range(60):
        paths = Counterfactual().rollout(
            game, game.tasks("train")[:1] * 16, actors_of(world.policies), seed, "cpu", num_generations
        )
        batch = collate(paths)
        advantages = advantages_of(algorithm, batch)
        for agent_id in AGENTS:
            pooled = pool_shared_actions(advantages[agent_id], batch, agent_id)
            table = world.policies[agent_id].logits.clone().requires_grad_()
            log_probs = log_probs_of(batch.trajectories, agent_id, table, batch.rewards.shape[1])
            policy_gradient_loss(log_probs, log_probs, pooled, scored_mask(batch, agent_id)).backward()
            drawn[agent_id].append(-table.grad / len(batch.trajectories))
    for agent_id, each in drawn.items():
        stacked = torch.stack(each)
        errors = stacked.std(0) / len(stacked) ** 0.5
        expected = world.true_gradient(agent_id, 1.0)
        assert ((stacked.mean(0) - expected).abs() < 4 * errors + 1e-6).all()
        assert expected.abs().max() > 8 * errors.max()  # a gradient of zero or of half the length would be seen


def test_one_response_is_refused(make: Callable[..., C3]) -> None:
    with pytest.raises(ConfigurationError, match="data.num_generations is 1"):
        make(C3, 1)
