"""Histories read for V(h_t), and for every agent once all but that agent's action of turn t is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from collm.critics.histories import HistoryEncoder, rows_of_blocks
from collm.packing import TokenSequence
from collm.trajectory import Trajectory


class CounterfactualEncoder(HistoryEncoder):
    """Writes every trajectory once for each agent: in every turn that agent's words come LAST, its value before them.

    So N rows score all turns, earlier turns are complete, and a causal critic cannot see what is left out, nor (where
    agents read each other within a turn) what others wrote after the agent had begun.
    """

    def encode(self, trajectories: Sequence[Trajectory]) -> list[TokenSequence]:
        sequences = []
        for row, trajectory in enumerate(trajectories):
            for number, agent_id in enumerate(self.agent_ids):
                blocks, written = [], []
                for index in range(len(trajectory.turns)):
                    others, rest = self.split_actions(trajectory, index, agent_id)
                    blocks += [self.tokens(self.before_actions(trajectory, index)), others]
                    written += [[], rest]
                for sequence in rows_of_blocks(row, blocks, written, self.max_tokens):
                    turns = [self.column(block, number) for block in sequence.turns]
                    if max(turns) >= 0:
                        sequences.append(replace(sequence, turns=turns))
        return sequences

    def column(self, block: int, number: int) -> int:
        """Where the value after `block` stands, in the row of the agent with this number; -1 where none is read.

        Blocks of a turn come in pairs, the history and then what the others wrote. V(h_t) is the same text in all
        rows up to the order of earlier turns, and is read in the first row alone.
        """
        turn, others_known = divmod(block, 2)
        if block < 0 or (not others_known and number):
            return -1
        return turn * self.num_kinds + (1 + number if others_known else 0)

    def split_actions(self, trajectory: Trajectory, index: int, agent_id: str) -> tuple[list[int], list[int]]:
        """Tokens written in turn `index`, in two parts: what the agent cannot have changed, and the rest."""
        turn = trajectory.turns[index]
        own = turn.written_by(agent_id)
        others = [message for name in self.agent_ids if name != agent_id for message in turn.written_by(name)]
        # messages of one round are written at the same time; those of a later round may answer the agent
        known = [message for message in others if message.round <= own[0].round]
        answers = [message for message in others if message.round > own[0].round]
        before = [*self.messages(known), *self.tokens(f"\n[{agent_id}]")]
        return before, [*self.message(" ", own[0]), *self.messages([*own[1:], *answers]), *self.tokens("\n")]
