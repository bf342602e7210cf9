"""A critic that reads V(h_t), and for every agent the value once all but that agent's action of turn t is known.

Each agent has a row of its own: the whole history in time order, but with the agent's words LAST in every turn and its
value read right before them. So N rows score all turns, earlier turns are whole, and a causal critic cannot see what
is left out, nor (where agents read each other within a turn) what others wrote after the agent had begun.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from collm.critics.language_model import Critic, chain
from collm.trajectory import TokenSequence, Trajectory


class CounterfactualCritic(Critic):
    """V(h) and V(h, a without agent i) over the histories of the N agents it reads.

    A turn has N + 1 values, each with a head of its own: V(h_t) stands where other critics would have turn
    (N + 1) t, the value without the i-th agent (from 0) at (N + 1) t + 1 + i; a batch of T turns has [B, (N + 1) T].
    """

    @property
    def values_per_turn(self) -> int:
        return len(self.reads) + 1

    def choose(self, outputs: Tensor, turns: Tensor) -> Tensor:
        """The head of its kind at each scored position, [M, N + 1] and [M] -> [M]."""
        return outputs.gather(-1, turns[:, None] % self.values_per_turn).squeeze(-1)

    def encode(self, trajectories: Sequence[Trajectory]) -> list[TokenSequence]:
        """Histories as rows of tokens, one per trajectory and agent where the critic's context allows it."""
        sequences = []
        for row, trajectory in enumerate(trajectories):
            for place, agent_id in enumerate(self.reads):
                blocks, written = [], []
                for index in range(len(trajectory.turns)):
                    others, rest = self.apart(trajectory, index, agent_id)
                    blocks += [self.tokens(self.observed(trajectory, index)), others]
                    written += [[], rest]
                for sequence in chain(row, blocks, written, self.limit):
                    turns = [self.column(block, place) for block in sequence.turns]
                    if max(turns) >= 0:
                        sequences.append(replace(sequence, turns=turns))
        return sequences

    def column(self, block: int, place: int) -> int:
        """Where the value read after `block` stands, in the row of the agent at `place`; -1 if nothing is read.

        Blocks of a turn come in pairs, the history and then what the others wrote; V(h_t) is the same text in all
        rows up to the order of earlier turns, and read in the first.
        """
        turn, known = divmod(block, 2)
        if block < 0 or (not known and place):
            return -1
        return turn * self.values_per_turn + (1 + place if known else 0)

    def apart(self, trajectory: Trajectory, index: int, agent_id: str) -> tuple[list[int], list[int]]:
        """Tokens written in turn `index`, in two parts: what the agent cannot have changed, and the rest."""
        turn = trajectory.turns[index]
        own = turn.written_by(agent_id)
        others = [message for name in self.reads if name != agent_id for message in turn.written_by(name)]
        # of one round are those written at the same time; later ones may answer the agent
        known = [message for message in others if message.round <= own[0].round]
        later = [message for message in others if message.round > own[0].round]
        before = [*self.said(known), *self.tokens(f"\n[{agent_id}]")]
        return before, [*self.words(" ", own[0]), *self.said([*own[1:], *later]), *self.tokens("\n")]
