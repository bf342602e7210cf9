"""Actor-critic estimators against the policy gradient of a two-turn game that is solved exactly.

Expectations are sums over every episode there is, so that they hold to rounding.
"""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from collm.objectives import generalized_advantages
from collm.returns import discounted_returns
from enumerated import FULL, STOPS, Enumerated
from tabular import AGENTS, TwoTurns

SCALE = torch.tensor([1.0, *[2.0] * 4])[:, None]  # 1 / gamma^t by history, for gamma = 0.5


@pytest.mark.parametrize("game", [FULL, STOPS], ids=["full", "stops"])
@pytest.mark.parametrize("gae_lambda", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("critic", ["centralized", "own"])
def test_actor_critics_with_exact_values_are_unbiased(game: TwoTurns, gae_lambda: float, critic: str) -> None:
    """Equations 2 and 4. As is common in practice, the weight gamma^t of turn t is left out."""
    world = Enumerated(game)
    for agent_id in AGENTS:
        for discount, scale in ((1.0, 1.0), (0.5, SCALE)):
            values = world.values(discount, list(AGENTS) if critic == "centralized" else [agent_id])
            advantages = generalized_advantages(
                world.batch.rewards, values, world.batch.turn_mask, discount, gae_lambda
            )
            assert_close(world.estimate(agent_id, advantages), world.true_gradient(agent_id, discount) * scale)


@pytest.mark.parametrize("game", [FULL, STOPS], ids=["full", "stops"])
def test_action_values_against_values_are_unbiased(game: TwoTurns) -> None:
    """Q(h, a) - V(h), the advantage of `CoLLMCCQ`."""
    world = Enumerated(game)
    for discount, scale in ((1.0, 1.0), (0.5, SCALE)):
        advantages = world.action_values(discount) - world.values(discount, list(AGENTS))
        for agent_id in AGENTS:
            assert_close(world.estimate(agent_id, advantages), world.true_gradient(agent_id, discount) * scale)


def test_the_two_critics_know_different_things() -> None:
    world = Enumerated(FULL)
    joint, own = world.values(1.0, list(AGENTS)), world.values(1.0, ["second"])
    assert_close(joint[:, 0], own[:, 0])
    assert (joint[:, 1] - own[:, 1]).abs().max() > 0.1


def test_a_critic_that_sees_the_own_action_is_biased() -> None:
    """The tests above can fail: a baseline that knows what the agent does at the turn is no baseline."""
    world = Enumerated(FULL)
    returns = discounted_returns(world.batch.rewards, world.batch.turn_mask, 1.0)
    cheating = torch.tensor([[float(plan[0][1]), float(plan[1][1])] for plan in world.played])
    estimate = world.estimate("second", returns - cheating)
    assert (estimate - world.true_gradient("second", 1.0)).abs().max() > 0.05
