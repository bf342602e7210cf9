"""Joint histories for a critic that gives V(h_t) and, for each agent, a value given the actions of the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from collm.critics.histories import HistoryEncoder, rows_of_blocks
from collm.packing import TokenSequence
from collm.trajectory import Trajectory


class CounterfactualEncoder(HistoryEncoder):
    """Encodes every trajectory once per agent, with that agent's action LAST in every turn and its value before it.

    N rows score all turns, with complete earlier turns. A causal model cannot see the action that is left out, nor (if
    agents send messages during a turn) what others wrote in reply to it. Of the values of a turn, index 0 is V(h_t)
    and index 1 + i the value without the action of agent i; see `HistoryEncoder`.
    """

    @property
    def num_kinds(self) -> int:
        return len(self.agent_ids) + 1

    def encode(self, trajectories: Sequence[Trajectory]) -> list[TokenSequence]:
        sequences = []
        for row, trajectory in enumerate(trajectories):
            for number, agent_id in enumerate(self.agent_ids):
                blocks, written = [], []
                for index in range(len(trajectory.turns)):
                    others, left_out = self.split_actions(trajectory, index, agent_id)
                    blocks += [self.tokens(self.before_actions(trajectory, index)), others]
                    written += [[], left_out]
                for sequence in rows_of_blocks(row, blocks, written, self.max_tokens):
                    turns = [self.column(block, number) for block in sequence.turns]
                    if max(turns) >= 0:
                        sequences.append(replace(sequence, turns=turns))
        return sequences

    def column(self, block: int, number: int) -> int:
        """Index of the value at the end of `block` in the row of agent `number`; -1 if that position is not scored.

        Each turn has two blocks: the history, then the actions of the others. The history before V(h_t) differs between
        the rows of a trajectory only in the order of earlier actions, so V is scored in the first row only.
        """
        turn, others_known = divmod(block, 2)
        if block < 0 or (not others_known and number):
            return -1
        return turn * self.num_kinds + (1 + number if others_known else 0)

    def split_actions(self, trajectory: Trajectory, index: int, agent_id: str) -> tuple[list[int], list[int]]:
        """Tokens written in turn `index`: those that do not depend on the action of `agent_id`, and the others."""
        turn = trajectory.turns[index]
        messages = turn.written_by(agent_id)
        others = [message for name in self.agent_ids if name != agent_id for message in turn.written_by(name)]
        # agents write the messages of one round at the same time; those of the next rounds may answer the agent
        independent = [message for message in others if message.round <= messages[0].round]
        answers = [message for message in others if message.round > messages[0].round]
        before = [*self.messages(independent), *self.tokens(f"\n[{agent_id}]")]
        return before, [*self.message(" ", messages[0]), *self.messages([*messages[1:], *answers]), *self.tokens("\n")]
