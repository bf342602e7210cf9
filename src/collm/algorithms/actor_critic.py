"""What actor-critic methods share: critics that read histories in one pass, and their regression."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from collm.algorithms.base import MultiAgentModule
from collm.collectives import on_all_rows, sum_over_ranks
from collm.errors import ConfigurationError
from collm.meter import meter
from collm.models.critic import Critic, CriticSpec
from collm.objectives import clipped_value_loss, value_loss
from collm.returns import discounted_returns, explained_variance
from collm.trajectory import RolloutBatch, TokenSequence


class ActorCritic(MultiAgentModule):
    """Agents that learn from the temporal-difference errors of one or more critics.

    Args:
        critic: The model every critic starts from and how it reads.
        gae_lambda: Trace decay of advantages and value targets: 0 is the paper's one-step TD error, 1 the
            Monte-Carlo return (less the value, for the advantage).
        critic_epochs: Passes of each critic over each rollout.
        critic_warmup: Rollouts at the beginning in which only critics learn.
        value_loss_weight: Scale of the value loss; it matters together with gradient clipping.
        value_clip: Largest move of a value that lowers its loss (PPO's value clipping), in the critic's units; by
            default any.
        normalize_values: Measure values in units of their targets, by running mean and deviation (PopArt), so that
            learning rates and `value_loss_weight` mean the same for any size of reward.
        target_critic_rate: How far, in (0, 1], a slow copy of each critic moves towards it after each of its updates
            (Polyak averaging). The values of next turns, V(h_{t+1}), are then those of the copy; by default the
            critic's own, as in the paper.
        kwargs: Everything that algorithms share.
    """

    separate_critics = True  # False where critics stand on the policies' own weights
    critic_class = Critic

    def __init__(
        self,
        critic: CriticSpec = CriticSpec(),
        gae_lambda: float = 0.0,
        critic_epochs: int = 1,
        critic_warmup: int = 0,
        value_loss_weight: float = 1.0,
        value_clip: float | None = None,
        normalize_values: bool = False,
        target_critic_rate: float | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.critic_spec = critic
        self.gae_lambda = gae_lambda
        self.critic_epochs = critic_epochs
        self.critic_warmup = critic_warmup
        self.value_loss_weight = value_loss_weight
        self.value_clip = value_clip
        self.normalize_values = normalize_values
        self.target_critic_rate = target_critic_rate
        self.target_critics: dict[str, list[Tensor]] = {}  # the slow copies of what trains, by critic
        self.critics = nn.ModuleDict()
        self.num_rollouts = 0
        critic.check("critic")
        if not 0 <= gae_lambda <= 1:
            raise ConfigurationError(f"model.gae_lambda is {gae_lambda}; it must be in [0, 1].")
        if critic_epochs < 1 or critic_warmup < 0:
            raise ConfigurationError(
                f"model.critic_epochs is {critic_epochs} and model.critic_warmup is {critic_warmup}; they must be at "
                "least 1 and 0."
            )
        if value_loss_weight <= 0:
            raise ConfigurationError(f"model.value_loss_weight is {value_loss_weight}; it must be above 0.")
        if value_clip is not None and value_clip <= 0:
            raise ConfigurationError(f"model.value_clip is {value_clip}; use null to turn it off.")
        if target_critic_rate is not None and not 0 < target_critic_rate <= 1:
            raise ConfigurationError(
                f"model.target_critic_rate is {target_critic_rate}; it must be in (0, 1], or null to turn it off."
            )
        if target_critic_rate is not None and normalize_values:
            raise ConfigurationError(
                "model.target_critic_rate does not work with model.normalize_values, which changes the units of the "
                "critic but not of its copy; turn one of them off."
            )
        if self.separate_critics and self.parameters_mode == "lora" and critic.lora_rank == 0:
            raise ConfigurationError("parameters is 'lora' but critic.lora_rank is 0; set it to the adapter's rank.")
        taken = sorted(set(self.critic_readers()) & {*self.agent_ids, "team"})
        if taken:
            raise ConfigurationError(f"an agent is called {taken[0]!r}, which is the critic's name; rename the agent.")

    def critic_readers(self) -> Mapping[str, Sequence[str]]:
        """The critics by name, and the agents whose histories each of them reads."""
        raise TypeError(f"{type(self).__name__} must say which critics it has")

    def configure_model(self) -> None:
        if self.policies:
            return
        super().configure_model()
        for name, reads in self.critic_readers().items():
            self.critics[name] = self.build_critic(name, reads)

    def build_critic(self, name: str, reads: Sequence[str]) -> Critic:
        """The critic `name`, a learner of its own over a backbone or adapter of its own."""
        adapter = name if self.critic_spec.lora_rank else None
        critic = self.critic_class(self.critic_spec, self.backbone(name, self.critic_spec, adapter), adapter, reads)
        self.learners[name] = critic.trainable_parameters()
        return critic

    def learning_rates(self) -> dict[str, float]:
        rates = {name: self.critic_spec.learning_rate for name in self.critics if name in self.learners}
        return super().learning_rates() | rates

    @torch.no_grad()
    def values(self, name: str, histories: Sequence[TokenSequence], batch: RolloutBatch) -> Tensor:
        """V(h_t) at every played turn, before the update, [B, T] (times the values per turn of the critic)."""
        returns = discounted_returns(batch.rewards, batch.turn_mask, self.discount)
        total, count = sum_over_ranks(torch.stack([returns.sum(), batch.turn_mask.float().sum()]), self.device)
        if count:
            self.critics[name].center(total / count)
        return self.read(name, histories, batch)

    @meter.phase("values")
    @torch.no_grad()
    def read(self, name: str, histories: Sequence[TokenSequence], batch: RolloutBatch) -> Tensor:
        """The values of a critic as its weights are now, in the shape of `values`."""
        critic = self.critics[name]
        values = batch.rewards.new_zeros(len(batch.rewards), batch.rewards.shape[1] * critic.values_per_turn)
        for chunk in self.chunks(histories, set(range(len(batch.trajectories))), critic.tokenizer.pad_token_id):
            values += chunk.sum_by_turn(critic(chunk), tuple(values.shape))
        return values

    @torch.no_grad()
    def bootstrap_values(
        self, name: str, values: Tensor, histories: Sequence[TokenSequence], batch: RolloutBatch
    ) -> Tensor:
        """What values of next turns are taken from: `values`, or V'(h_t) of the critic's slow copy, [B, T]."""
        if self.target_critic_rate is None or not self.critics[name].centered:
            return values
        weights = self.critics[name].trainable_parameters()
        if name not in self.target_critics:  # in float32, where small moves are not rounded away
            self.target_critics[name] = [weight.detach().to(torch.float32, copy=True) for weight in weights]
        copies = [copy.to(self.device) for copy in self.target_critics[name]]  # a checkpoint's may be elsewhere
        self.target_critics[name] = copies
        with swapped_in(weights, copies):
            return self.read(name, histories, batch)

    @torch.no_grad()
    def move_target_critic(self, name: str) -> None:
        """Let the slow copy of a critic, if it has one, follow it."""
        if name in self.target_critics:
            weights = self.critics[name].trainable_parameters()
            for copy, weight in zip(self.target_critics[name], weights, strict=True):
                copy.lerp_(weight.float(), self.target_critic_rate)

    def update_critic(
        self, name: str, histories: Sequence[TokenSequence], values: Tensor, targets: Tensor, batch: RolloutBatch
    ) -> None:
        """Regress the critic on fixed `targets` [B, T]; the loss is the mean over played turns."""
        self.rescale(name, targets, batch)
        for rows in self.minibatches(batch, self.critic_epochs):
            self.optimize(name, self.value_losses(name, histories, rows, values, targets, batch), f"loss/{name}")
        self.move_target_critic(name)

    def rescale(self, name: str, targets: Tensor, batch: RolloutBatch) -> None:
        """Where values are normalized, let their units follow those of `targets`, over all processes."""
        if not self.normalize_values:
            return
        played = targets[batch.turn_mask.repeat_interleave(self.critics[name].values_per_turn, dim=1)]
        sums = torch.stack([torch.ones_like(played).sum(), played.sum(), played.square().sum()])
        count, total, squares = sum_over_ranks(sums, self.device)
        if count:
            self.critics[name].rescale(total / count, squares / count)

    def value_losses(
        self,
        name: str,
        histories: Sequence[TokenSequence],
        rows: set[int],
        values: Tensor,
        targets: Tensor,
        batch: RolloutBatch,
    ) -> Iterator[Tensor]:
        """Losses of one critic, one per micro-batch; `values` [B, T] are those from before the update."""
        critic, shape = self.critics[name], tuple(targets.shape)
        num_turns = sum_over_ranks(batch.turn_mask[sorted(rows)].sum(), self.device).clamp(min=1)
        for chunk in self.chunks(histories, rows, critic.tokenizer.pad_token_id):
            scored = chunk.sum_by_turn(chunk.action_mask.float(), shape) > 0
            now = chunk.sum_by_turn(critic(chunk), shape)
            if self.value_clip is None:
                loss = value_loss(now, targets, scored)
            else:
                loss = clipped_value_loss(now, values, targets, scored, self.value_clip * float(critic.scale))
            yield self.value_loss_weight * loss / critic.scale.square() / num_turns

    def log_critic(self, name: str, values: Tensor, targets: Tensor, batch: RolloutBatch) -> None:
        """How good the values were that this update's advantages come from."""
        returns = discounted_returns(batch.rewards, batch.turn_mask, self.discount)
        self.log(f"{name}/explained_variance", on_all_rows(explained_variance, values, returns, batch.turn_mask))
        played = [values[batch.turn_mask].sum(), targets[batch.turn_mask].sum(), batch.turn_mask.float().sum()]
        value, target, count = sum_over_ranks(torch.stack(played), self.device)
        self.log(f"{name}/value", value / count)
        self.log(f"{name}/target", target / count)

    @property
    def actors_learn(self) -> bool:
        """False while only critics warm up."""
        return self.num_rollouts > self.critic_warmup

    def on_train_batch_start(self, batch: RolloutBatch, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        self.num_rollouts += 1

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["collm"]["num_rollouts"] = self.num_rollouts
        if self.target_critics:
            checkpoint["collm"]["target_critics"] = self.target_critics

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        super().on_load_checkpoint(checkpoint)
        self.num_rollouts = checkpoint["collm"]["num_rollouts"]
        if self.target_critic_rate is not None:
            self.target_critics = checkpoint["collm"].get("target_critics", {})


@contextmanager
def swapped_in(weights: Sequence[nn.Parameter], others: Sequence[Tensor]) -> Iterator[None]:
    """For as long as it lasts, `weights` hold what `others` do."""
    own = [weight.data for weight in weights]
    try:
        for weight, other in zip(weights, others, strict=True):
            weight.data = other.to(weight.dtype)
        yield
    finally:
        for weight, kept in zip(weights, own, strict=True):
            weight.data = kept
