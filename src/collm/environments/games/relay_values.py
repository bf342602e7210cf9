"""Values of histories of the relay under the current policies, for the oracle critic.

Let c_{i,t} = 1 if agent i is correct at turn t, and p_{i,t} = pi_i(correct answer | h_{i,t}). The value of a history is
the sum over turns of the probability of success given that history:

    turns before t, if their reward is not yet given    prod_i c_{i,tau}; the mean of p_{i,tau} for an agent whose
                                                        outcome is not in the history
    turn t                                              prod_i p_{i,t}; in a local history, the mean of p_{j,t} for the
                                                        other agents
    turns after t                                       prod_i of the mean of p_{i,tau}

The joint history holds all outcomes and determines all p_{i,t}. A local history h_{i,t}, together with the table of
correct actions, determines the outcomes of its agent, and with `cross` feedback those of the agent before it. Means are
over the given episodes. The values are exact up to the sampling error of these means if the policies have no memory,
like the optimal one. For policies with memory, they ignore how the success of other agents and of the next turns
depends on the history.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def history_values(
    correct: Sequence[Sequence[Sequence[bool]]],
    probabilities: Sequence[Sequence[Sequence[float]]],
    feedback: str,
    sparse: bool,
) -> np.ndarray:
    """Expected number of successful turns whose reward follows, before each turn.

    Args:
        correct: Whether each agent was correct, [B, T, N].
        probabilities: Probability of the correct answer of each agent given its local history, [B, T, N].
        feedback: `own`, `cross` or `none`.
        sparse: Whether the reward of all turns comes at the last turn.

    Returns:
        Values of the joint history, then of each local one, [B, T, 1 + N].
    """
    outcome, probability = np.asarray(correct, dtype=float), np.asarray(probabilities, dtype=float)
    num_agents = outcome.shape[2]
    mean = np.broadcast_to(probability.mean(0), probability.shape)
    success = mean.prod(2)
    future = success[:, ::-1].cumsum(1)[:, ::-1] - success  # sum over the turns after each turn
    values = []
    for owner in (None, *range(num_agents)):
        is_known = outcome_known(owner, num_agents, feedback)
        past = np.where(is_known, outcome, mean).prod(2)
        earlier = past.cumsum(1) - past if sparse else 0.0
        is_owner = [owner is None or agent == owner for agent in range(num_agents)]
        current = np.where(is_owner, probability, mean).prod(2)
        values.append(earlier + current + future)
    return np.stack(values, axis=2)


def outcome_known(owner: int | None, num_agents: int, feedback: str) -> list[bool]:
    """For each agent, whether the history of agent `owner` (None: the joint one) holds its earlier outcomes."""
    if owner is None:
        return [True] * num_agents
    known = {owner, (owner - 1) % num_agents} if feedback == "cross" else {owner}
    return [agent in known for agent in range(num_agents)]
