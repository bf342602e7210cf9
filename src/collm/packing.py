"""Trajectories as rows of tokens: what policies and critics read in updates, padded, in micro-batches.

An action that several trajectories share (paths of a rollout tree, crossed joint actions) is one scored stretch of
tokens with the advantages of all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from collm.trajectory import Action, RolloutBatch, Trajectory

_FREE_PADDING = 64  # tokens


@dataclass(frozen=True)
class TokenSequence:
    """One row of tokens of one trajectory, as a policy or a critic reads it.

    Args:
        row: Index of the trajectory in the batch.
        ids: Token ids, length L.
        turns: Turn that each position is scored for, -1 where it is context only, length L. For a policy the
            scored positions are the tokens of its actions; for a critic the last token of each history.
        old_log_probs: Behaviour log-probability at the scored positions of a policy, 0 elsewhere, length L;
            empty for critics.
    """

    row: int
    ids: list[int]
    turns: list[int]
    old_log_probs: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class SequenceBatch:
    """Right-padded rows of tokens.

    Args:
        rows: Trajectory of each row, [R].
        ids: Token ids, [R, L].
        attention_mask: True at tokens, False at padding, [R, L].
        turns: Turn each position is scored for, -1 where it is not scored, [R, L].
        old_log_probs: Behaviour log-probabilities of scored tokens, 0 elsewhere, [R, L].
    """

    rows: Tensor
    ids: Tensor
    attention_mask: Tensor
    turns: Tensor
    old_log_probs: Tensor

    @property
    def action_mask(self) -> Tensor:
        """True at scored positions, [R, L]."""
        return self.turns >= 0

    def per_turn(self, values: Tensor) -> Tensor:
        """Take `values` [B, T] to the token positions scored for each turn; 0 elsewhere, [R, L]."""
        return torch.where(self.action_mask, values[self.rows[:, None], self.turns.clamp(min=0)], 0.0)

    def sum_by_turn(self, token_values: Tensor, shape: tuple[int, int]) -> Tensor:
        """Sum token values [R, L] over the tokens of each trajectory and turn, `shape` = (B, T)."""
        index = (self.rows[:, None] * shape[1] + self.turns.clamp(min=0))[self.action_mask]
        flat = token_values.new_zeros(shape[0] * shape[1])
        return flat.index_add(0, index, token_values[self.action_mask]).view(shape)


def pool_shared_actions(advantages: Tensor, batch: RolloutBatch, agent_id: str) -> Tensor:
    """Advantages where `action_sequences` scores an action, [B, T] -> [B, T].

    An action that several trajectories share (paths of a rollout tree, crossed joint actions) is scored once, in the
    first of them. A loss that is linear in the advantages is the same if that place gets their weighted sum, and the
    others 0. Where nothing is shared, nothing changes. A loss with a ratio clip is linear in positive and in negative
    advantages only, see `signed_shares`.
    """
    first: dict[str, int] = {}
    places = list(range(advantages.numel()))
    for row, trajectory in enumerate(batch.trajectories):
        for place, turn in enumerate(trajectory.turns, start=row * advantages.shape[1]):
            places[place] = first.setdefault(turn.actions[agent_id].uid, place)
    weighted = advantages if batch.tree is None else advantages * batch.tree.weights[:, None]
    pooled = torch.zeros_like(advantages).flatten()
    index = torch.tensor(places, dtype=torch.long, device=pooled.device)  # a rank may have none
    return pooled.index_add(0, index, weighted.flatten()).view(advantages.shape)


def signed_shares(advantages: Tensor, batch: RolloutBatch, agent_id: str) -> Tensor:
    """`pool_shared_actions` of the positive and of the negative advantages on their own, [B, T] -> [2, B, T].

    PPO's surrogate, min(rho A, clip(rho) A), is min(rho, clip(rho)) A for A >= 0 and max(rho, clip(rho)) A for A <= 0.
    So its sum over the trajectories that share an action is that of the two pooled advantages, and without a clip it is
    that of their sum.
    """
    signs = (advantages.clamp(min=0), advantages.clamp(max=0))
    return torch.stack([pool_shared_actions(part, batch, agent_id) for part in signs])


def action_sequences(trajectories: Iterable[Trajectory], agent_id: str) -> list[TokenSequence]:
    """What one agent read and wrote, as few rows as possible.

    A dialogue whose history is kept whole is a prefix chain: every prompt begins with the previous prompt and the
    action that followed it. Such a chain becomes ONE row that scores all its turns in one forward pass. Where a
    history was cut to fit the context, a new row begins. What an agent wrote to others before it acted is part of its
    action, as the others' actions depend on it. An action that several trajectories share is scored in the first of
    them alone; see `pool_shared_actions`.
    """
    sequences: list[TokenSequence] = []
    scored: set[str] = set()
    for row, trajectory in enumerate(trajectories):
        current: TokenSequence | None = None
        written: list[tuple[int, Action]] = []
        for turn, played in enumerate(trajectory.turns):
            place = -1 if played.actions[agent_id].uid in scored else turn
            scored.add(played.actions[agent_id].uid)
            written += [(place, message.action) for message in played.written_by(agent_id)]
        for turn, action in written:
            prompt = list(action.prompt_ids)
            if current is None or prompt[: len(current.ids)] != current.ids:
                current = TokenSequence(row, [], [], [])
                sequences.append(current)
            context = prompt[len(current.ids) :]
            current.ids.extend(context)
            current.turns.extend([-1] * len(context))
            current.old_log_probs.extend([0.0] * len(context))
            current.ids.extend(action.token_ids)
            current.turns.extend([turn] * len(action.token_ids))
            current.old_log_probs.extend(action.log_probs if turn >= 0 else [0.0] * len(action.token_ids))
    return [sequence for sequence in sequences if any(turn >= 0 for turn in sequence.turns)]


def micro_batches(
    sequences: Sequence[TokenSequence], max_tokens: int, pad_id: int, device: torch.device | str
) -> Iterator[SequenceBatch]:
    """Pad `sequences` into batches of at most `max_tokens` tokens, padding included.

    Rows of similar length travel together. A single row longer than `max_tokens` makes a batch of its own.
    """
    for group in similar_lengths([len(sequence.ids) for sequence in sequences], max_tokens):
        yield pad_sequences([sequences[index] for index in group], pad_id, device)


def pad_sequences(sequences: Sequence[TokenSequence], pad_id: int, device: torch.device | str) -> SequenceBatch:
    """Right-pad `sequences` into one `SequenceBatch` on `device`."""
    length = max(len(sequence.ids) for sequence in sequences)
    ids = torch.full((len(sequences), length), pad_id)
    turns = torch.full((len(sequences), length), -1)
    mask = torch.zeros(len(sequences), length, dtype=torch.bool)
    old_log_probs = torch.zeros(len(sequences), length)
    for index, sequence in enumerate(sequences):
        size = len(sequence.ids)
        ids[index, :size] = torch.tensor(sequence.ids)
        turns[index, :size] = torch.tensor(sequence.turns)
        mask[index, :size] = True
        if sequence.old_log_probs:
            old_log_probs[index, :size] = torch.tensor(sequence.old_log_probs)
    rows = torch.tensor([sequence.row for sequence in sequences])
    return SequenceBatch(rows.to(device), ids.to(device), mask.to(device), turns.to(device), old_log_probs.to(device))


def similar_lengths(lengths: Sequence[int], max_tokens: float = math.inf) -> list[list[int]]:
    """Indices of rows in groups to be padded to one length each, from the shortest rows to the longest.

    Padding is at most a tenth of the tokens of a group, or so little that another pass would take longer. A group has
    at most `max_tokens` tokens, padding included, or one row.
    """
    groups: list[list[int]] = []
    useful = 0  # tokens of the last group, without padding
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        useful += lengths[index]
        computed = (len(groups[-1]) + 1) * lengths[index] if groups else 0
        if groups and computed <= max_tokens and computed - useful <= max(computed / 10, _FREE_PADDING):
            groups[-1].append(index)
        else:
            groups.append([index])
            useful = lengths[index]
    return groups
