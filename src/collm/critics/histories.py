"""Histories as text for critics: what is written, in which order, and where a value is read.

Turn by turn the text holds what is known about the episode (m_t of arXiv 2601.21972: the turn and the progress of the
team), the observation of every agent the critic reads, and then every agent's action. V(h_t) is read at the last token
before the actions of turn t, so no value can see an action of its own turn, and a causal critic gives
V(h_0) ... V(h_{T-1}) in ONE pass.

What the environment says about its true state may stand after the observations, right before the value, or in place of
the history. Values V(h, s) of both bootstrap without bias; those of a state alone need not, where agents do not see all
of it (Lyu, Baisero, Xiao, Amato, arXiv 2201.01221 and 2408.14597).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

from collm.models.loading import encode
from collm.packing import TokenSequence
from collm.trajectory import Message, Trajectory


class HistoryEncoder:
    """Turns trajectories into rows of tokens of one critic.

    Args:
        path: Model whose tokenizer is used.
        agent_ids: The agents whose observations and actions are written.
        same_tokens: Those of them that write in the same tokens, so that the critic reads exactly what they wrote.
        max_tokens: Longest row.
        progress: Write the turn number and the team's progress, m_t of the paper: what the environment says of it, or
            else the last reward.
        reads: `history`, `state` or `both`; a row of states alone holds one turn.
    """

    def __init__(
        self,
        path: str,
        agent_ids: Sequence[str],
        same_tokens: Collection[str],
        max_tokens: int,
        progress: bool,
        reads: Literal["history", "state", "both"] = "history",
    ):
        self.path = path
        self.agent_ids = tuple(agent_ids)
        self.same_tokens = frozenset(same_tokens)
        self.max_tokens = max_tokens
        self.progress = progress
        self.reads = reads

    @property
    def num_kinds(self) -> int:
        """K, the number of values of each turn; turn t of kind k is scored as turn K t + k."""
        return 1

    def encode(self, trajectories: Sequence[Trajectory]) -> list[TokenSequence]:
        """Rows that score the history before every turn; one row per trajectory where `max_tokens` allows it."""
        sequences: list[TokenSequence] = []
        for row, trajectory in enumerate(trajectories):
            turns = range(len(trajectory.turns))
            before = [self.tokens(self.before_actions(trajectory, turn)) for turn in turns]
            if self.reads == "state":
                blocks = [block[-self.max_tokens :] for block in before]
                sequences.extend(
                    TokenSequence(row, block, [-1] * (len(block) - 1) + [turn]) for turn, block in enumerate(blocks)
                )
                continue
            written = [self.actions(trajectory, turn) for turn in turns]
            sequences.extend(rows_of_blocks(row, before, written, self.max_tokens))
        return sequences

    def before_actions(self, trajectory: Trajectory, index: int) -> str:
        """What turn `index` adds to the history before anybody acts: m_t, the observations and the state.

        The environment's progress comes last, where it is read best.
        """
        turn = trajectory.turns[index]
        lines = []
        if self.progress:
            lines.append(f"[turn {index + 1} of {trajectory.horizon}]")
            if index and turn.progress is None:
                last = trajectory.turns[index - 1].reward
                lines.append(f"[last reward {last:.2f} of {trajectory.max_reward:.2f}]")
        if self.reads != "state":
            lines += [f"[{agent_id}] {turn.observations[agent_id]}" for agent_id in self.agent_ids]
        if self.reads != "history":
            lines.append(turn.state_text)
        if self.progress and turn.progress is not None:
            lines.append(f"[progress {turn.progress:.2f} of 1.00]")
        return "\n".join(lines) + "\n[value]"

    def actions(self, trajectory: Trajectory, index: int) -> list[int]:
        """Tokens that turn `index` adds to the history once everybody has acted."""
        turn = trajectory.turns[index]
        written = [message for agent_id in self.agent_ids for message in turn.written_by(agent_id)]
        return [*self.messages(written), *self.tokens("\n")]

    def messages(self, messages: Sequence[Message]) -> list[int]:
        """Messages in tokens, each on a line that begins with its author."""
        return [token for message in messages for token in self.message(f"\n[{message.agent_id}] ", message)]

    def message(self, before: str, message: Message) -> list[int]:
        """The text `before` and then a message in tokens, without the token that ended the response."""
        action = message.action
        if message.agent_id in self.same_tokens and action.token_ids:
            return [*self.tokens(before), *(action.token_ids if action.truncated else action.token_ids[:-1])]
        return self.tokens(before + action.text)

    def tokens(self, text: str) -> list[int]:
        """`text` in the critic's own tokens."""
        return list(encode(self.path, text))


def rows_of_blocks(row: int, before: list[list[int]], written: list[list[int]], limit: int) -> list[TokenSequence]:
    """Rows of at most `limit` tokens that score the last token of every block of `before`.

    Where the next turn does not fit, a new row begins with the previous turn if there is room, so that the newest
    turns are kept; a block longer than the limit keeps its end.

    Args:
        row: Index of the trajectory in its batch.
        before: Tokens in front of the actions of each turn.
        written: Tokens of the actions of each turn, which follow its block.
        limit: Longest row, in tokens.
    """
    sequences: list[TokenSequence] = []
    for turn, block in enumerate(before):
        block = block[-limit:]
        current = sequences[-1] if sequences else None
        context = written[turn - 1] if turn else []
        if current is None or len(current.ids) + len(context) + len(block) > limit:
            previous = [*before[turn - 1], *context] if turn else []
            context = previous if len(previous) + len(block) <= limit else []
            current = TokenSequence(row, [], [])
            sequences.append(current)
        current.ids.extend([*context, *block])
        current.turns.extend([-1] * (len(context) + len(block) - 1) + [turn])
    return sequences
