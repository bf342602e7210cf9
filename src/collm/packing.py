"""Trajectories as token sequences: the inputs of policies and critics in updates, padded, in micro-batches.

An action that several trajectories share (paths of a rollout tree, crossed joint actions) is scored once, with the
advantages of all of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from collm.sampling_mask import SamplingMask
from collm.trajectory import Action, RolloutBatch, Trajectory

_FREE_PADDING = 64  # tokens


@dataclass(frozen=True)
class TokenSequence:
    """Tokens of one trajectory, as input of a policy or a critic.

    Args:
        row: Index of the trajectory in the batch.
        ids: Token ids, length L.
        turns: Turn for which each position is scored, -1 at positions that are context only, length L. For a policy the
            scored positions are the tokens of its actions; for a critic, the last token of each history.
        old_log_probs: Behaviour log-probability at the scored positions of a policy, 0 elsewhere, length L; empty for
            critics.
        sampling_masks: The sets that the tokens at all positions were drawn from, one piece after the other, together
            of at most length L; where they end, nothing more was cut.
        trainer_log_probs: Log-probabilities under the trained policy before the first step, like `old_log_probs`; empty
            unless they are needed.
    """

    row: int
    ids: list[int]
    turns: list[int]
    old_log_probs: list[float] = field(default_factory=list)
    sampling_masks: list[SamplingMask] = field(default_factory=list, compare=False)
    trainer_log_probs: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class SequenceBatch:
    """Right-padded token sequences of R rows.

    Args:
        rows: Trajectory of each row, [R].
        ids: Token ids, [R, L].
        attention_mask: True at tokens, False at padding, [R, L].
        turns: Turn for which each position is scored, -1 at positions that are not scored, [R, L].
        old_log_probs: Behaviour log-probabilities of scored tokens, 0 elsewhere, [R, L].
        sampling_mask: The sets that the scored tokens were drawn from, in the order of `action_mask`; None where
            nothing was cut.
        trainer_log_probs: Log-probabilities of scored tokens under what trains before the first step, [R, L]; None
            where they were not kept.
    """

    rows: Tensor
    ids: Tensor
    attention_mask: Tensor
    turns: Tensor
    old_log_probs: Tensor
    sampling_mask: SamplingMask | None = None
    trainer_log_probs: Tensor | None = None

    @property
    def action_mask(self) -> Tensor:
        """True at scored positions, [R, L]."""
        return self.turns >= 0

    def per_turn(self, values: Tensor) -> Tensor:
        """Copy `values` [B, T] to the token positions scored for each turn; 0 elsewhere, [R, L]."""
        return torch.where(self.action_mask, values[self.rows[:, None], self.turns.clamp(min=0)], 0.0)

    def sum_by_turn(self, token_values: Tensor, shape: tuple[int, int]) -> Tensor:
        """Sum token values [R, L] over the tokens of each trajectory and turn, `shape` = (B, T)."""
        index = (self.rows[:, None] * shape[1] + self.turns.clamp(min=0))[self.action_mask]
        flat = token_values.new_zeros(shape[0] * shape[1])
        return flat.index_add(0, index, token_values[self.action_mask]).view(shape)


def pool_shared_actions(advantages: Tensor, batch: RolloutBatch, agent_id: str) -> Tensor:
    """Advantages at the turns in which `action_sequences` scores an action, [B, T] -> [B, T].

    An action that several trajectories share (paths of a rollout tree, crossed joint actions) is scored once, in the
    first of them. There it gets the weighted sum of their advantages, and the other trajectories get 0, which leaves a
    loss that is linear in the advantages unchanged. Without shared actions, advantages are returned unchanged. A loss
    with a ratio clip is linear in positive and in negative advantages separately; see `signed_shares`.
    """
    first: dict[str, int] = {}
    targets = list(range(advantages.numel()))  # flat index to which each advantage is added
    for row, trajectory in enumerate(batch.trajectories):
        for source, turn in enumerate(trajectory.turns, start=row * advantages.shape[1]):
            targets[source] = first.setdefault(turn.actions[agent_id].uid, source)
    weighted = advantages * batch.weights[:, None]
    pooled = torch.zeros_like(advantages).flatten()
    index = torch.tensor(targets, dtype=torch.long, device=pooled.device)  # may be empty on a rank
    return pooled.index_add(0, index, weighted.flatten()).view(advantages.shape)


def signed_shares(advantages: Tensor, batch: RolloutBatch, agent_id: str) -> Tensor:
    """`pool_shared_actions` of positive and of negative advantages separately, [B, T] -> [2, B, T].

    PPO's surrogate, min(rho A, clip(rho) A), is min(rho, clip(rho)) A for A >= 0 and max(rho, clip(rho)) A for A <= 0.
    So its sum over the trajectories that share an action equals the sum of the surrogates of the two pooled advantages.
    """
    signs = (advantages.clamp(min=0), advantages.clamp(max=0))
    return torch.stack([pool_shared_actions(part, batch, agent_id) for part in signs])


def action_sequences(trajectories: Iterable[Trajectory], agent_id: str) -> list[TokenSequence]:
    """Prompts and actions of one agent, in as few token sequences as possible.

    In a dialogue with a complete history, every prompt begins with the previous prompt and the action that followed
    it. Such a dialogue becomes ONE sequence that scores all its turns in one forward pass. A new sequence begins at a
    prompt whose history was cut to fit the context. Messages that an agent sent before it acted count as part of its
    action, as the actions of others depend on them. An action that several trajectories share is scored in the first
    of them only; see `pool_shared_actions`.
    """
    sequences: list[TokenSequence] = []
    scored: set[str] = set()
    for row, trajectory in enumerate(trajectories):
        current: TokenSequence | None = None
        written: list[tuple[int, Action]] = []
        for turn, played in enumerate(trajectory.turns):
            scored_turn = -1 if played.actions[agent_id].uid in scored else turn
            scored.add(played.actions[agent_id].uid)
            written += [(scored_turn, message.action) for message in played.written_by(agent_id)]
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
            if action.sampling_mask is not None:  # what came before without one was drawn from the whole vocabulary
                missing = len(current.ids) - sum(map(len, [*current.sampling_masks, action.sampling_mask]))
                current.sampling_masks.extend([SamplingMask.uncut(missing), action.sampling_mask])
    return [sequence for sequence in sequences if any(turn >= 0 for turn in sequence.turns)]


def micro_batches(
    sequences: Sequence[TokenSequence], max_tokens: int, pad_id: int, device: torch.device | str
) -> Iterator[SequenceBatch]:
    """Pad `sequences` into batches of at most `max_tokens` tokens, padding included.

    Sequences of similar length share a batch. A sequence longer than `max_tokens` becomes a batch of one.
    """
    for group in similar_lengths([len(sequence.ids) for sequence in sequences], max_tokens):
        yield pad_sequences([sequences[index] for index in group], pad_id, device)


def pad_sequences(sequences: Sequence[TokenSequence], pad_id: int, device: torch.device | str) -> SequenceBatch:
    """Right-pad `sequences` into one `SequenceBatch` on `device`."""
    length = max(len(sequence.ids) for sequence in sequences)
    ids = torch.full((len(sequences), length), pad_id)
    turns = torch.full((len(sequences), length), -1)
    mask = torch.zeros(len(sequences), length, dtype=torch.bool)
    old_log_probs, trainer_log_probs = torch.zeros(len(sequences), length), torch.zeros(len(sequences), length)
    for index, sequence in enumerate(sequences):
        size = len(sequence.ids)
        ids[index, :size] = torch.tensor(sequence.ids)
        turns[index, :size] = torch.tensor(sequence.turns)
        mask[index, :size] = True
        if sequence.old_log_probs:
            old_log_probs[index, :size] = torch.tensor(sequence.old_log_probs)
        if sequence.trainer_log_probs:
            trainer_log_probs[index, :size] = torch.tensor(sequence.trainer_log_probs)
    rows = torch.tensor([sequence.row for sequence in sequences])
    sampling_mask = _joined_masks(sequences, length, turns >= 0)
    return SequenceBatch(
        rows.to(device),
        ids.to(device),
        mask.to(device),
        turns.to(device),
        old_log_probs.to(device),
        None if sampling_mask is None else sampling_mask.to(device),
        trainer_log_probs.to(device) if all(sequence.trainer_log_probs for sequence in sequences) else None,
    )


def _joined_masks(sequences: Sequence[TokenSequence], length: int, scored: Tensor) -> SamplingMask | None:
    """The sets of the scored tokens, whose mask is [R, L]; None where nothing was cut."""
    if not any(sequence.sampling_masks for sequence in sequences):
        return None
    pieces = []
    for sequence in sequences:
        missing = length - sum(map(len, sequence.sampling_masks))
        pieces += [*sequence.sampling_masks, SamplingMask.uncut(missing)]
    return SamplingMask.join(pieces).take(scored.flatten())


def similar_lengths(lengths: Sequence[int], max_tokens: float = math.inf) -> list[list[int]]:
    """Group rows by length, from the shortest to the longest; each group will be padded to its longest row.

    Padding is at most a tenth of the tokens of a group, or at most `_FREE_PADDING` tokens, which cost less than another
    forward pass. A group has at most `max_tokens` tokens, padding included, or one row.

    Args:
        lengths: Number of tokens of each row.
        max_tokens: Largest number of tokens in a group.

    Returns:
        Indices of the rows of each group.
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
