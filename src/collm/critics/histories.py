"""Histories as text for language-model critics: their contents, their order, and the positions that are scored.

For each turn the text holds facts about the episode (m_t of arXiv 2601.21972: the turn and the progress of the team),
the observation of every agent of the critic, and then the action of every agent. V(h_t) is the output at the last token
before the actions of turn t, so no value depends on an action of its own turn, and a causal language model gives
V(h_0) ... V(h_{T-1}) in ONE pass.

A text that describes the state can follow the observations, right before the value, or replace the history. Values
V(h, s) of history and state bootstrap without bias. Values of the state alone can be biased if agents do not observe
all of it (Lyu, Baisero, Xiao, Amato, arXiv 2201.01221 and 2408.14597).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

from collm.models.loading import encode
from collm.packing import TokenSequence
from collm.trajectory import Message, Trajectory


class HistoryEncoder:
    """Encodes trajectories as token sequences for one critic.

    Args:
        path: Path of the model whose tokenizer is used.
        agent_ids: The agents whose observations and actions the text holds.
        same_tokens: The agents with the same tokenizer as the critic; their sampled tokens are used as they are.
        max_tokens: Largest number of tokens in a sequence.
        progress: Include the turn number and the team's progress, m_t of the paper: `Environment.progress`, or the last
            reward if the environment does not define it.
        reads: Input of the critic: `history`, `state` or `both`. With `state`, a sequence holds one turn.
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
        """K, the number of values per turn; value k of turn t is scored as turn K t + k."""
        return 1

    def encode(self, trajectories: Sequence[Trajectory]) -> list[TokenSequence]:
        """Sequences that score the history before every turn; one per trajectory if `max_tokens` allows it."""
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
        """Text that turn `index` adds before its actions: m_t, the observations and the state.

        The progress comes last, next to the position of the value.
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
        """Tokens of the actions of turn `index`."""
        turn = trajectory.turns[index]
        written = [message for agent_id in self.agent_ids for message in turn.written_by(agent_id)]
        return [*self.messages(written), *self.tokens("\n")]

    def messages(self, messages: Sequence[Message]) -> list[int]:
        """Tokens of messages, each on a line that begins with the name of its author."""
        return [token for message in messages for token in self.message(f"\n[{message.agent_id}] ", message)]

    def message(self, before: str, message: Message) -> list[int]:
        """Tokens of the text `before` and of a message, without its end-of-sequence token."""
        action = message.action
        if message.agent_id in self.same_tokens and action.token_ids:
            return [*self.tokens(before), *(action.token_ids if action.truncated else action.token_ids[:-1])]
        return self.tokens(before + action.text)

    def tokens(self, text: str) -> list[int]:
        """`text` in tokens of the critic's tokenizer."""
        return list(encode(self.path, text))


def rows_of_blocks(row: int, before: list[list[int]], written: list[list[int]], limit: int) -> list[TokenSequence]:
    """Sequences of at most `limit` tokens that score the last token of every block of `before`.

    If the next turn does not fit, a new sequence begins, with the previous turn as context if there is room. A block
    longer than the limit is cut at its beginning.

    Args:
        row: Index of the trajectory in its batch.
        before: Tokens of each turn before its actions.
        written: Tokens of the actions of each turn.
        limit: Largest number of tokens in a sequence.
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
