"""A critic: a language model with a value head that reads a history written in time order.

Turn by turn the text holds what is known about the episode (m_t of the paper: the turn and the progress of the team),
every reader's observation, and then every reader's action. V(h_t) is read at the last token before the actions of
turn t, so no value can see an action of its own turn, and a causal critic gives V(h_0) ... V(h_{T-1}) in ONE pass.

A centralized critic reads all agents (the joint history h_t); an individual one reads its own agent (h_{i,t}).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from collm.errors import ConfigurationError
from collm.models.backbone import Backbone
from collm.models.loading import check_source, encode, load_tokenizer
from collm.models.policy import LOGITS_PER_CHUNK, Policy, check_model_numbers, context_length
from collm.models.resident import Resident
from collm.trajectory import Message, SequenceBatch, TokenSequence, Trajectory

_FORGETTING = 0.05  # how fast the scale of values follows that of the targets, per rollout
_SMALLEST_SCALE = 1e-3


@dataclass
class CriticSpec:
    """The model a critic starts from.

    Args:
        path: Weights to start from: `tiny`, `tiny_house`, `smollm2`, a local folder or a hub name; `relay` begins at
            random.
        random_weights: Start from random weights of the same shape instead.
        dtype: Number format of the weights: float32, bfloat16 or float16.
        learning_rate: Step size of the critic's optimizer.
        lora_rank: Rank of the LoRA adapter; 0 trains all weights.
        lora_alpha: Scale of the LoRA adapter.
        lora_dropout: Dropout in front of the LoRA adapter.
        gradient_checkpointing: Recompute activations in the backward pass: less memory, a third more time.
        context_length: Longest history it reads, in tokens; by default what the model allows.
        progress: Write the turn number and the last reward into the history, as the paper does.
    """

    path: str = "tiny"
    random_weights: bool = False
    dtype: str = "float32"
    learning_rate: float = 5e-6
    lora_rank: int = 0
    lora_alpha: float = 32.0
    lora_dropout: float = 0.0
    gradient_checkpointing: bool = False
    context_length: int | None = None
    progress: bool = True

    def check(self, name: str) -> None:
        """Refuse what cannot work, reading configuration files only."""
        check_model_numbers(name, self.dtype, self.learning_rate, self.lora_rank)
        if self.context_length is not None and self.context_length < 1:
            raise ConfigurationError(f"{name}.context_length is {self.context_length}; it must be above 0.")
        check_source(self.path, self.random_weights)


class Critic(Resident):
    """V(h) over the histories of the agents it reads.

    Args:
        spec: How it reads.
        backbone: The language model under it; its parameters belong to the algorithm, not to this module.
        adapter: LoRA adapter that belongs to this critic; None where all weights do.
        reads: Agents whose observations and actions it sees: all of them, or one.
        same_tokens: Those of them that write in its own tokens, so that it reads exactly what they wrote.
    """

    values_per_turn = 1

    def __init__(
        self,
        spec: CriticSpec,
        backbone: Backbone,
        adapter: str | None,
        reads: Sequence[str],
        same_tokens: Collection[str] = (),
    ):
        super().__init__()
        self.spec = spec
        self.reads = tuple(reads)
        self.same_tokens = frozenset(same_tokens)
        self.adapter = adapter
        self.tokenizer = load_tokenizer(spec.path)
        self._backbone = [backbone]  # in a list, so that its weights are not registered a second time here
        self.head = nn.Linear(backbone.hidden_size, self.values_per_turn)
        # Starting at a constant, with the bias at the mean return, keeps the first advantages those of a plain
        # baseline.
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("centered", torch.tensor(False))
        # What the head's output is measured in: values are `scale` times the output plus `shift`.
        self.register_buffer("shift", torch.tensor(0.0))
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("moments", torch.zeros(3))  # running mean, mean square, and how often they moved
        self.settle(backbone.home)

    @property
    def backbone(self) -> Backbone:
        return self._backbone[0]

    @property
    def limit(self) -> int:
        """Longest row it reads, in tokens."""
        longest = context_length(self.spec.path)
        return min(self.spec.context_length or longest, longest)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """What trains when this critic learns: its head and its part of the backbone."""
        return [*self.head.parameters(), *self.backbone.adapter_parameters(self.adapter)]

    def center(self, targets: Tensor) -> None:
        """Move the bias to the mean of `targets`, once in the life of the critic; every episode may have failed."""
        if not self.centered and targets.numel():
            self.head.bias.data.fill_(targets.mean().item())
            self.centered.fill_(True)

    def rescale(self, mean: Tensor, mean_square: Tensor) -> None:
        """Measure values in units of their targets without changing any value (PopArt, arXiv 1602.07714).

        The statistics are plain averages over the first rollouts and then forget older ones.

        Args:
            mean: Mean of the targets of a rollout, [].
            mean_square: Mean of their squares, [].
        """
        self.moments[2] += 1
        rate = max(1.0 / float(self.moments[2]), _FORGETTING)
        self.moments[:2].lerp_(torch.stack([mean, mean_square]).to(self.moments), rate)
        shift = self.moments[0].clone()
        scale = (self.moments[1] - shift.square()).clamp(min=0).sqrt().clamp(min=_SMALLEST_SCALE)
        weight, bias = self.head.weight.data, self.head.bias.data
        weight.mul_(self.scale / scale)
        bias.copy_((self.scale * bias + self.shift - shift) / scale)
        self.shift.copy_(shift)
        self.scale.copy_(scale)

    def forward(self, batch: SequenceBatch, states: Tensor | None = None) -> Tensor:
        """Values at the scored positions, 0 elsewhere, [R, L]; from hidden states of the batch where they are known."""
        return self.values(self.hidden_states(batch) if states is None else states, batch)

    def states_and_lm_loss(self, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        """What `hidden_states` and `lm_loss` give, in one pass."""
        with self.backbone.using(self.adapter):
            return self.backbone.within(lambda: self._states_and_lm_loss(batch))

    def _states_and_lm_loss(self, batch: SequenceBatch) -> tuple[Tensor, Tensor]:
        states = self.backbone.hidden_states(batch.ids, batch.attention_mask, batch.attention_mask)
        return states, self.lm_loss(states, batch)

    def hidden_states(self, batch: SequenceBatch) -> Tensor:
        """What the backbone makes of the scored positions, [R, L, hidden size]; elsewhere it may be anything."""
        read = (batch.ids, batch.attention_mask, batch.action_mask)
        with self.backbone.using(self.adapter):
            return self.backbone.within(lambda: self.backbone.hidden_states(*read))

    def values(self, states: Tensor, batch: SequenceBatch) -> Tensor:
        """Values at the scored positions, 0 elsewhere, from hidden states [R, L, hidden size]; [R, L]."""
        mask = batch.action_mask
        outputs = self.head(states[mask].to(self.head.weight.dtype))
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        values = outputs.new_zeros(batch.ids.shape)
        values[mask] = self.scale * self.choose(outputs, batch.turns[mask]) + self.shift
        return values

    def lm_loss(self, states: Tensor, batch: SequenceBatch) -> Tensor:
        """Negative log-probability of every token but the first, summed, from hidden states [R, L, hidden size]; []."""
        mask = batch.attention_mask[:, 1:]
        states, tokens = states[:, :-1][mask], batch.ids[:, 1:][mask]
        head = self.backbone.lm.get_output_embeddings()
        size = max(1, LOGITS_PER_CHUNK // head.weight.shape[0])  # recomputed in the backward pass, chunk by chunk
        pieces = [
            checkpoint(_cross_entropy, head, chunk, target, use_reentrant=False)
            for chunk, target in zip(states.split(size), tokens.split(size), strict=True)
        ]
        return torch.stack(pieces).sum()

    def choose(self, outputs: Tensor, turns: Tensor) -> Tensor:
        """The output that counts at each scored position: [M, values per turn] and its place [M] -> [M]."""
        return outputs.squeeze(-1)

    def encode(self, trajectories: Sequence[Trajectory]) -> list[TokenSequence]:
        """Histories as rows of tokens, one row per trajectory where the critic's context allows it."""
        sequences = []
        for row, trajectory in enumerate(trajectories):
            before, written = [], []  # blocks of tokens: what turn t is judged on, and what was written in it
            for index in range(len(trajectory.turns)):
                before.append(self.tokens(self.observed(trajectory, index)))
                written.append(self.acted(trajectory, index))
            sequences.extend(chain(row, before, written, self.limit))
        return sequences

    def observed(self, trajectory: Trajectory, index: int) -> str:
        """What turn `index` adds to the history before anybody acts: m_t and the observations."""
        turn = trajectory.turns[index]
        lines = []
        if self.spec.progress:
            lines.append(f"[turn {index + 1} of {trajectory.horizon}]")
            if index:
                last = trajectory.turns[index - 1].reward
                lines.append(f"[last reward {last:.2f} of {trajectory.max_reward:.2f}]")
        lines += [f"[{agent_id}] {turn.observations[agent_id]}" for agent_id in self.reads]
        return "\n".join(lines) + "\n[value]"

    def acted(self, trajectory: Trajectory, index: int) -> list[int]:
        """What turn `index` adds to the history once everybody has acted, in tokens."""
        turn = trajectory.turns[index]
        written = [message for agent_id in self.reads for message in turn.written_by(agent_id)]
        return [*self.said(written), *self.tokens("\n")]

    def said(self, messages: Sequence[Message]) -> list[int]:
        """Messages in tokens, each on a line that begins with who wrote it."""
        return [token for message in messages for token in self.words(f"\n[{message.agent_id}] ", message)]

    def words(self, before: str, message: Message) -> list[int]:
        """A text and after it what a message says, in tokens; the token that ended the response is not part of it."""
        action = message.action
        if message.agent_id in self.same_tokens and action.token_ids:
            return [*self.tokens(before), *(action.token_ids if action.truncated else action.token_ids[:-1])]
        return self.tokens(before + action.text)

    def tokens(self, text: str) -> list[int]:
        """`text` in the critic's own tokens."""
        return list(encode(self.spec.path, text))


Network = Policy | Critic
"""What reads sequences of tokens over a backbone."""


def _cross_entropy(head: nn.Module, states: Tensor, tokens: Tensor) -> Tensor:
    return nn.functional.cross_entropy(head(states).float(), tokens, reduction="sum")


def chain(row: int, before: list[list[int]], written: list[list[int]], limit: int) -> list[TokenSequence]:
    """Rows of at most `limit` tokens that score the last token of every block of `before`.

    Where the next turn does not fit, a new row begins with the previous turn if there is room, so that the newest
    turns are kept; a block longer than the context keeps its end.
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
