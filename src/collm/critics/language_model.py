"""A critic that is a language model with a value head, reading histories as text (arXiv 2601.21972, appendix B).

A centralized critic reads the joint history h_t of all agents, an individual one the history h_{i,t} of its agent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from collm.critics.base import Critic, Learner
from collm.critics.histories import HistoryEncoder
from collm.critics.replay_buffer import Record, ReplayBuffer
from collm.critics.value_network import ValueNetwork
from collm.errors import ConfigurationError
from collm.models.backbone import Backbone
from collm.models.loading import same_tokens
from collm.models.specs import ModelSpec
from collm.objectives import clipped_value_loss, value_loss
from collm.packing import TokenSequence
from collm.runtime.checks import COUNT, COUNT_OR_ZERO, POSITIVE, check_numbers
from collm.runtime.collectives import gather_objects, num_ranks, rank, sum_over_ranks
from collm.runtime.naming import module_name
from collm.runtime.profiler import meter
from collm.trajectory import RolloutBatch, Trajectory


class LanguageModelCritic(Critic):
    """V(h) read from the text of histories by a language model with a value head.

    Args:
        model: The language model it starts from.
        progress: Write the turn number and the last reward into the history, as the paper does (m_t).
        epochs: Passes over each rollout.
        replay: Rollouts, the newest one included, that are read again after those passes, with the targets they had; 0
            for none.
        replay_steps: Optimizer steps on them, per rollout.
        replay_batch: Trajectories of one such step, drawn at random, of all processes together; by default as many as a
            rollout has.
        loss_weight: Scale of the value loss; it matters together with gradient clipping.
        value_clip: Largest move of a value that lowers its loss (PPO's value clipping), in the units of the critic; by
            default any.
        normalize: Measure values in units of their targets, by running mean and deviation (PopArt), so that learning
            rates and `loss_weight` mean the same for any size of reward.
    """

    reads_text = True

    def __init__(
        self,
        model: ModelSpec = ModelSpec(),
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
        self.learning_rate = model.learning_rate
        self.progress = progress
        self.epochs = epochs
        self.replay = replay
        self.replay_steps = replay_steps
        self.replay_batch = replay_batch
        self.loss_weight = loss_weight
        self.value_clip = value_clip
        self.normalize = normalize
        self.buffer = ReplayBuffer(replay) if replay else None
        model.check("critic.model")
        check_numbers("critic", self, epochs=COUNT, replay=COUNT_OR_ZERO, replay_steps=COUNT)
        check_numbers("critic", self, replay_batch=COUNT.or_none, loss_weight=POSITIVE, value_clip=POSITIVE.or_none)

    def attach(
        self,
        name: str,
        agent_ids: Sequence[str],
        learner: Learner,
        encoder_class: type[HistoryEncoder] = HistoryEncoder,
    ) -> None:
        super().attach(name, agent_ids, learner, encoder_class)
        if learner.parameters_mode == "lora" and self.model.lora_rank == 0 and not learner.critics_share_weights:
            raise ConfigurationError(
                "model.parameters is 'lora' but critic.model.lora_rank is 0; set it to the adapter's rank."
            )

    # Loading

    def load(self) -> None:
        adapter = module_name(self.name) if self.model.lora_rank else None
        self.read_with(self.learner.backbone(self.name, self.model, adapter), adapter, self.model.path)

    def read_with(self, backbone: Backbone, adapter: str | None, path: str) -> None:
        """Put the value head on `backbone` with `adapter`, which reads the tokens of the model at `path`."""
        same = [agent_id for agent_id in self.agent_ids if same_tokens(self.learner.specs[agent_id].path, path)]
        self.encoder = self.encoder_class(path, self.agent_ids, same, self.model.max_tokens(), self.progress)
        self.network = ValueNetwork(backbone, adapter, self.encoder.num_kinds, path)

    def trainable_parameters(self) -> list[nn.Parameter]:
        return self.network.trainable_parameters()

    def initialize(self, mean_return: Tensor) -> None:
        self.network.initialize(mean_return)

    # Reading

    def encode(self, trajectories: Sequence[Trajectory]) -> list[TokenSequence]:
        """The histories of `trajectories` as rows of tokens."""
        return self.encoder.encode(trajectories)

    @meter.phase("values")
    @torch.no_grad()
    def values(self, batch: RolloutBatch) -> Tensor:
        num_kinds = self.encoder.num_kinds
        values = batch.rewards.new_zeros(len(batch.rewards), batch.rewards.shape[1] * num_kinds)
        everything = set(range(len(batch.trajectories)))
        for chunk in self.learner.micro_batches(self.encode(batch.trajectories), everything, self.network):
            values += chunk.sum_by_turn(self.network(chunk), tuple(values.shape)).to(values.device)
        return values if num_kinds == 1 else values.unflatten(1, (-1, num_kinds))

    # Learning

    def update(self, batch: RolloutBatch, values: Tensor, targets: Tensor) -> None:
        record = self.record(batch, values, targets)
        for rows in self.learner.minibatches(len(record.targets), self.epochs):
            self.learner.optimize(self.name, self.losses(record, rows), f"loss/{self.name}")
        if self.buffer is None:
            return
        self.buffer.add(record)
        for _ in range(self.replay_steps):
            num_rows = -(-self.replay_batch // num_ranks()) if self.replay_batch else len(targets)
            drawn = self.buffer.draw(num_rows)
            rows = set(range(len(drawn.targets)))
            self.learner.optimize(self.name, self.losses(drawn, rows), f"loss/{self.name}/replay")

    def record(self, batch: RolloutBatch, values: Tensor, targets: Tensor) -> Record:
        """What the critic regresses on; with `normalize` its units follow those of the targets first."""
        if self.normalize:
            played = targets[batch.turn_mask]
            sums = torch.stack([torch.ones_like(played).sum(), played.sum(), played.square().sum()])
            count, total, squares = sum_over_ranks(sums, self.learner.device)
            if count:
                self.network.rescale(total / count, squares / count)
        return Record(
            self.encode(batch.trajectories),
            values.flatten(1),
            targets.repeat_interleave(self.encoder.num_kinds, dim=1),
            batch.turn_mask,
        )

    def losses(self, record: Record, rows: set[int]) -> Iterator[Tensor]:
        """Losses on some rows of a record, one per micro-batch; their sum is the mean over the played turns.

        Of a critic of K kinds of values it is K times that: every kind is regressed on the same targets.
        """
        shape, scale = tuple(record.targets.shape), self.network.scale
        device = self.network.backbone.home or self.learner.device
        old_values, targets = record.values.to(device), record.targets.to(device)
        num_turns = sum_over_ranks(record.turn_mask[sorted(rows)].sum().cpu(), device).clamp(min=1)
        for chunk in self.learner.micro_batches(record.histories, rows, self.network):
            is_scored = chunk.sum_by_turn(chunk.action_mask.float(), shape) > 0
            values = chunk.sum_by_turn(self.network(chunk), shape)
            if self.value_clip is None:
                loss = value_loss(values, targets, is_scored)
            else:
                loss = clipped_value_loss(values, old_values, targets, is_scored, self.value_clip * float(scale))
            yield self.loss_weight * loss / scale.square() / num_turns

    # Checkpoints

    def checkpoint(self) -> dict[str, Any]:
        return {} if self.buffer is None else {"replay": gather_objects(self.buffer.state_dict())}

    def restore(self, state: Mapping[str, Any]) -> None:
        if self.buffer is not None and "replay" in state:
            self.buffer.load_state_dicts(state["replay"], rank(), num_ranks())
