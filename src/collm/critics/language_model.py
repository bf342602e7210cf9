"""A critic that is a language model with a value head on histories as text (arXiv 2601.21972, appendix B).

The input of a centralized critic is the joint history h_t of all agents, that of an individual critic the history
h_{i,t} of its agent. A centralized critic can also take a text that describes the state; see `collm.critics.histories`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from collm.critics.base import Critic, StateSource
from collm.critics.histories import HistoryEncoder
from collm.critics.replay_buffer import Record, ReplayBuffer
from collm.critics.value_network import ValueNetwork
from collm.errors import ConfigurationError
from collm.models.backbone import Backbone
from collm.models.loading import same_tokens
from collm.models.specs import ModelSpec
from collm.objectives import value_loss
from collm.packing import TokenSequence
from collm.runtime.checks import COUNT, COUNT_OR_ZERO, POSITIVE, check_choice, check_numbers
from collm.runtime.collectives import gather_objects, num_ranks, rank, sum_over_ranks
from collm.runtime.naming import module_name
from collm.runtime.profiler import meter
from collm.trajectory import RolloutBatch, Trajectory


class LanguageModelCritic(Critic):
    """V(h) by a language model with a value head on the text of histories.

    Args:
        model: Language model of the critic and its learning rate.
        reads: Input of the critic. `history`: observations and actions. `state`: the text of `Environment.state_text`
            only, which is short. `both`: the history with that text in every turn.
        progress: Add the turn number and the team's progress to the input, as the paper does (m_t). The progress is the
            share of the best score, or the last reward if the environment does not define its progress.
        epochs: Number of passes over each rollout.
        replay: Size of the replay buffer, in rollouts including the latest one. After `epochs`, the critic takes
            `replay_steps` more steps on it, with the value targets computed when each rollout was played. 0 turns it
            off.
        replay_steps: Optimizer steps on the replay buffer per rollout.
        replay_batch: Trajectories in each of these steps, sampled at random, summed over all processes; by default the
            size of a rollout.
        loss_weight: Weight of the value loss.
        value_clip: Clip range of PPO's value clipping, in units of returns, or of normalized returns with `normalize`.
            By default values are not clipped.
        normalize: Normalize value targets by their running mean and standard deviation (PopArt), so that learning rates
            do not depend on the scale of rewards.
    """

    reads_text = True

    def __init__(
        self,
        model: ModelSpec = ModelSpec(),
        reads: Literal["history", "state", "both"] = "history",
        progress: bool = True,
        epochs: int = 1,
        replay: int = 0,
        replay_steps: int = 1,
        replay_batch: int | None = None,
        loss_weight: float = 1.0,
        value_clip: float | None = None,
        normalize: bool = False,
    ):
        super().__init__()
        self.model = model
        self.reads = reads
        self.depends_on = {"history": "h", "state": "s", "both": "h, s"}.get(reads, "h")
        self.learning_rate = model.learning_rate
        self.progress = progress
        self.epochs = epochs
        self.replay = replay
        self.replay_steps = replay_steps
        self.replay_batch = replay_batch
        self.loss_weight = loss_weight
        self.value_clip = value_clip
        self.normalize = normalize
        model.check("critic.model")
        check_choice("critic.reads", reads, ("history", "state", "both"))
        check_numbers("critic", self, epochs=COUNT, replay=COUNT_OR_ZERO, replay_steps=COUNT)
        check_numbers("critic", self, replay_batch=COUNT.or_none, loss_weight=POSITIVE, value_clip=POSITIVE.or_none)
        self.buffer = ReplayBuffer(replay) if replay else None

    def attached(self) -> None:
        if self.reads != "history":
            self.refuse_individual()
        if self.reads == "state" and self.encoder_class is not HistoryEncoder:
            raise ConfigurationError(
                f"critic.reads is 'state', but {type(self.learner).__name__} needs values of actions, which a history "
                "holds; set critic.reads to both or to history."
            )
        separate = not self.learner.critics_share_weights
        if self.learner.parameters_mode == "lora" and self.model.lora_rank == 0 and separate:
            raise ConfigurationError(
                "model.parameters is 'lora' but critic.model.lora_rank is 0; set it to the adapter's rank."
            )

    # Loading

    def check(self, environment: StateSource) -> None:
        if self.reads != "history" and not environment.has_state_text:
            raise ConfigurationError(
                f"critic.reads is {self.reads!r}, but {type(environment).__name__} does not describe its states as "
                "text; implement `state_text`, or set critic.reads to history."
            )

    def load(self) -> None:
        adapter = module_name(self.name) if self.model.lora_rank else None
        self.read_with(self.learner.backbone(self.name, self.model, adapter), adapter, self.model.path)

    def read_with(self, backbone: Backbone, adapter: str | None, path: str) -> None:
        """Create the value head on `backbone` with `adapter`; `path` is the model whose tokenizer is used."""
        same = [agent_id for agent_id in self.agent_ids if same_tokens(self.learner.specs[agent_id].path, path)]
        self.encoder = self.encoder_class(
            path, self.agent_ids, same, self.model.max_tokens(), self.progress, self.reads
        )
        self.network = ValueNetwork(backbone, adapter, self.encoder.num_kinds, path)

    def trainable_parameters(self) -> list[nn.Parameter]:
        return self.network.trainable_parameters()

    def initialize(self, mean_return: Tensor) -> None:
        self.network.initialize(mean_return)

    # Values

    def encode(self, trajectories: Sequence[Trajectory]) -> list[TokenSequence]:
        """The histories of `trajectories` as token sequences."""
        return self.encoder.encode(trajectories)

    @meter.phase("values")
    @torch.no_grad()
    def values(self, batch: RolloutBatch) -> Tensor:
        return self._values(batch, self.encode(batch.trajectories))

    @meter.phase("values")
    def differentiable_values(self, batch: RolloutBatch) -> Tensor:
        histories = self.encode(batch.trajectories)
        # with `normalize`, `record` changes the head in place
        with torch.set_grad_enabled(not self.normalize and self.learner.serves_first_step(histories)):
            return self._values(batch, histories)

    def _values(self, batch: RolloutBatch, histories: Sequence[TokenSequence]) -> Tensor:
        """The values of `batch`, whose histories are given as token sequences."""
        num_kinds = self.encoder.num_kinds
        values = batch.rewards.new_zeros(len(batch.rewards), batch.rewards.shape[1] * num_kinds)
        all_rows = set(range(len(batch.trajectories)))
        for chunk in self.learner.micro_batches(histories, all_rows, self.network):
            values += chunk.sum_by_turn(self.network(chunk), (values.shape[0], values.shape[1])).to(values.device)
        return values if num_kinds == 1 else values.unflatten(1, (-1, num_kinds))

    # Learning

    def update(self, batch: RolloutBatch, values: Tensor, targets: Tensor) -> None:
        if not sum_over_ranks(batch.turn_mask.sum(), self.learner.device):  # no turn was played on any rank
            return
        record = self.record(batch, values.detach(), targets)
        kept = values.flatten(1) if values.requires_grad else None
        for rows in self.learner.minibatches(len(record.targets), self.epochs):
            self.learner.optimize(self.name, self.losses(record, rows, kept), f"loss/{self.name}")
            kept = None
        if self.buffer is None:
            return
        self.buffer.add(record)
        for _ in range(self.replay_steps):
            num_rows = -(-self.replay_batch // num_ranks()) if self.replay_batch else len(targets)
            sample = self.buffer.draw(num_rows)
            rows = set(range(len(sample.targets)))
            self.learner.optimize(self.name, self.losses(sample, rows), f"loss/{self.name}/replay")

    def record(self, batch: RolloutBatch, values: Tensor, targets: Tensor) -> Record:
        """Inputs and targets of the regression; with `normalize`, update the normalization of the value head first."""
        weights = batch.turn_mask * batch.weights[:, None]
        if self.normalize:
            played = torch.where(batch.turn_mask, targets, 0.0)
            sums = torch.stack([weights.sum(), (weights * played).sum(), (weights * played.square()).sum()])
            count, total, squares = sum_over_ranks(sums, self.learner.device)
            if count:
                self.network.rescale(total / count, squares / count)
        return Record(
            self.encode(batch.trajectories),
            values.flatten(1),
            targets.repeat_interleave(self.encoder.num_kinds, dim=1),
            weights,
        )

    def losses(self, record: Record, rows: set[int], kept: Tensor | None = None) -> Iterator[Tensor]:
        """Losses on some rows of a record, one per micro-batch; their sum is the weighted mean over the played turns.

        With K values per turn it is the sum of K means, as all values of a turn are regressed on the same target.

        Args:
            record: Inputs and targets.
            rows: Indices of the rows.
            kept: Values of all rows with their graph, [B, T K], if no other forward pass is needed.
        """
        num_rows, num_values = record.targets.shape
        shape, scale = (num_rows, num_values), self.network.scale
        device = self.network.backbone.home or self.learner.device
        old_values, targets = record.values.to(device), record.targets.to(device)
        weights = record.weights.to(device).repeat_interleave(self.encoder.num_kinds, dim=1)
        total = sum_over_ranks(record.weights[sorted(rows)].sum().cpu(), device).clamp(min=1e-9)
        if kept is not None:  # another adapter may have been selected since
            self.network.backbone.activate(self.network.adapter)
        for values, is_scored in self.passes(record, rows, shape) if kept is None else [(kept, scored(record))]:
            values, counted = values.to(device), weights * is_scored.to(device)
            clip = None if self.value_clip is None else self.value_clip * float(scale)
            loss = value_loss(values, targets, counted, old_values, clip)
            yield self.loss_weight * loss / scale.square() / total

    def passes(self, record: Record, rows: set[int], shape: tuple[int, int]) -> Iterator[tuple[Tensor, Tensor]]:
        """Values of each micro-batch, 0 elsewhere, and where they are, [B, T K] each."""
        for chunk in self.learner.micro_batches(record.histories, rows, self.network):
            yield chunk.sum_by_turn(self.network(chunk), shape), chunk.sum_by_turn(chunk.action_mask.float(), shape) > 0

    # Checkpoints

    def checkpoint(self) -> dict[str, Any]:
        return {} if self.buffer is None else {"replay": gather_objects(self.buffer.state_dict())}

    def restore(self, state: Mapping[str, Any]) -> None:
        if self.buffer is not None and "replay" in state:
            self.buffer.load_state_dicts(state["replay"], rank(), num_ranks())


def scored(record: Record) -> Tensor:
    """True where a history of the record has a value, [B, T K]."""
    is_scored = torch.zeros(record.targets.shape, dtype=torch.bool)
    for sequence in record.histories:
        turns = torch.tensor(sequence.turns)
        is_scored[sequence.row, turns[turns >= 0]] = True
    return is_scored
