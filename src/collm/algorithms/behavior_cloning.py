"""Behaviour cloning: agents imitate demonstrations, token by token; used to warm-start small models.

It needs the sampler `Demonstrations`, whose batches hold joint actions of scripted demonstrators, not of the agents.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain

from torch import Tensor

from collm.algorithms.base import MultiAgentModule
from collm.algorithms.settings import refuse_foreign
from collm.errors import ConfigurationError
from collm.packing import TokenSequence, action_sequences
from collm.runtime.collectives import sum_over_ranks
from collm.trajectory import RolloutBatch


class BehaviorCloning(MultiAgentModule):
    """Agents that imitate scripted demonstrations.

    Args:
        observations: Learn to predict what agents are shown as well, except its first token. A model with random
            weights learns to copy from it, as observations repeat much of what was shown and done before.
        kwargs: Arguments of every algorithm; those of the policy gradient (ratio clip, advantages, entropy, KL) have no
            effect.
    """

    imitates = True

    def __init__(self, observations: bool = False, **kwargs):
        super().__init__(**kwargs)
        refuse_foreign(self.specs, "agents that imitate demonstrations")
        self.observations = observations
        restricted = [agent_id for agent_id, spec in self.specs.items() if spec.allowed_words is not None]
        if observations and restricted:
            raise ConfigurationError(
                f"model.observations is true, but the agent {restricted[0]!r} has allowed_words, and what it is shown "
                "has others; set observations to false, or leave allowed_words out while it imitates."
            )

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> None:
        sequences = {agent_id: action_sequences(batch.trajectories, agent_id) for agent_id in self.agent_ids}
        if self.observations:
            sequences = {agent_id: [with_observations(sequence) for sequence in sequences[agent_id]]
                         for agent_id in self.agent_ids}  # fmt: skip
        for rows in self.minibatches(len(batch.trajectories), self.num_epochs):
            for name, members in self.policy_learners.items():
                losses = (self.cloning_losses(agent_id, sequences[agent_id], rows) for agent_id in members)
                self.optimize(name, chain.from_iterable(losses), f"loss/policy/{name}")

    def cloning_losses(self, agent_id: str, sequences: Sequence[TokenSequence], rows: set[int]) -> Iterator[Tensor]:
        """Losses of one agent, one per micro-batch; their sum is the mean negative log-likelihood of action tokens."""
        policy = self.policies[agent_id]
        action_tokens = sum(turn >= 0 for sequence in sequences if sequence.row in rows for turn in sequence.turns)
        num_tokens = sum_over_ranks(action_tokens, self.device_of(policy)).clamp(min=1)
        for chunk in self.micro_batches(sequences, rows, policy):
            log_probs, _ = policy.log_probs(chunk)
            yield -log_probs.sum() / num_tokens


def with_observations(sequence: TokenSequence) -> TokenSequence:
    """The sequence with all tokens but the first scored."""
    return replace(sequence, turns=[-1, *(max(0, turn) for turn in sequence.turns[1:])])
