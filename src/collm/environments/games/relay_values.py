"""What histories of the relay are worth under the current policies: the values an oracle critic has.

With c_{i,t} = 1 where agent i is right, the value of a history is a sum over turns of what is known of their success:

    turns before t, if they are still to be paid    prod_i c_{i,tau}, an agent whose outcome the reader does not know
                                                    counting with its mean chance at that turn
    turn t                                          prod_i pi_i(right answer | h_{i,t}), other agents than the reader
                                                    counting with their mean chance at that turn
    turns after t                                   prod_i of mean chances at that turn

The joint history tells every outcome and every pi_i(. | h_{i,t}). A local history h_{i,t} tells, to who knows the right
answers as an oracle does, the agent's own outcomes, and with `cross` feedback those of the agent before it. Means are
over the given episodes. All of this is exact up to the error of these means where the chances of the other agents, and
those of later turns, do not depend on the history, as with policies without memory, the optimal one among them; where
policies use their memory it leaves that dependence out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def history_values(
    correct: Sequence[Sequence[Sequence[bool]]],
    chances: Sequence[Sequence[Sequence[float]]],
    feedback: str,
    sparse: bool,
) -> np.ndarray:
    """Expected reward to go before each turn, in turns that succeed.

    Args:
        correct: Who was right, [B, T, N].
        chances: Probability of the right answer given each agent's own history, [B, T, N].
        feedback: `own`, `cross` or `none`.
        sparse: Whether successes of earlier turns are still to be paid.

    Returns:
        Values of the joint history, then of each agent's local one, [B, T, 1 + N].
    """
    outcome, chance = np.asarray(correct, dtype=float), np.asarray(chances, dtype=float)
    num_agents = outcome.shape[2]
    mean = np.broadcast_to(chance.mean(0), chance.shape)
    ahead = mean.prod(2)
    future = ahead[:, ::-1].cumsum(1)[:, ::-1] - ahead  # of the turns after each
    values = []
    for reader in (None, *range(num_agents)):
        told = outcome_known(reader, num_agents, feedback)
        past = np.where(told, outcome, mean).prod(2)
        earlier = past.cumsum(1) - past if sparse else 0.0
        own = [reader is None or agent == reader for agent in range(num_agents)]
        now = np.where(own, chance, mean).prod(2)
        values.append(earlier + now + future)
    return np.stack(values, axis=2)


def outcome_known(reader: int | None, num_agents: int, feedback: str) -> list[bool]:
    """Whose outcomes of earlier turns the reader knows; None reads the joint history."""
    if reader is None:
        return [True] * num_agents
    known = {reader, (reader - 1) % num_agents} if feedback == "cross" else {reader}
    return [agent in known for agent in range(num_agents)]
