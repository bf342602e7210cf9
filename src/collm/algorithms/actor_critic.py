"""What actor-critic methods share: critics that read histories in one pass, and their regression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from collm.algorithms.base import MultiAgentModule
from collm.errors import ConfigurationError
from collm.models.critic import Critic, CriticSpec
from collm.objectives import value_loss
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
        kwargs: Everything that algorithms share.
    """

    def __init__(
        self,
        critic: CriticSpec = CriticSpec(),
        gae_lambda: float = 0.0,
        critic_epochs: int = 1,
        critic_warmup: int = 0,
        value_loss_weight: float = 1.0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.critic_spec = critic
        self.gae_lambda = gae_lambda
        self.critic_epochs = critic_epochs
        self.critic_warmup = critic_warmup
        self.value_loss_weight = value_loss_weight
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
        if self.parameters_mode == "lora" and critic.lora_rank == 0:
            raise ConfigurationError("parameters is 'lora' but critic.lora_rank is 0; set it to the adapter's rank.")

    def critic_readers(self) -> Mapping[str, Sequence[str]]:
        """The critics by name, and the agents whose histories each of them reads."""
        raise TypeError(f"{type(self).__name__} must say which critics it has")

    def configure_model(self) -> None:
        if self.policies:
            return
        super().configure_model()
        for name, reads in self.critic_readers().items():
            adapter = name if self.critic_spec.lora_rank else None
            backbone = self.backbone(name, self.critic_spec, adapter)
            self.critics[name] = Critic(self.critic_spec, backbone, adapter, reads)
            self.learners[name] = self.critics[name].trainable_parameters()

    def learning_rates(self) -> dict[str, float]:
        rates = dict.fromkeys(self.critics, self.critic_spec.learning_rate)
        return super().learning_rates() | rates

    @torch.no_grad()
    def values(self, name: str, histories: Sequence[TokenSequence], batch: RolloutBatch) -> Tensor:
        """V(h_t) at every played turn, before the update, [B, T]."""
        critic = self.critics[name]
        critic.center(discounted_returns(batch.rewards, batch.turn_mask, self.discount)[batch.turn_mask])
        values = torch.zeros_like(batch.rewards)
        for chunk in self.chunks(histories, set(range(len(batch.trajectories))), critic.tokenizer.pad_token_id):
            values += chunk.sum_by_turn(critic(chunk), tuple(values.shape))
        return values

    def update_critic(
        self, name: str, histories: Sequence[TokenSequence], targets: Tensor, batch: RolloutBatch
    ) -> None:
        """Regress the critic on fixed `targets` [B, T]; the loss is the mean over played turns."""
        for rows in self.minibatches(batch, self.critic_epochs):
            num_turns = int(batch.turn_mask[sorted(rows)].sum())
            self.optimize(name, self._value_losses(name, histories, rows, targets, num_turns), f"loss/{name}")

    def _value_losses(self, name, histories, rows, targets, num_turns):
        critic, shape = self.critics[name], tuple(targets.shape)
        for chunk in self.chunks(histories, rows, critic.tokenizer.pad_token_id):
            scored = chunk.sum_by_turn(chunk.action_mask.float(), shape) > 0
            values = chunk.sum_by_turn(critic(chunk), shape)
            yield self.value_loss_weight * value_loss(values, targets, scored) / num_turns

    def log_critic(self, name: str, values: Tensor, targets: Tensor, batch: RolloutBatch) -> None:
        """How good the values were that this update's advantages come from."""
        returns = discounted_returns(batch.rewards, batch.turn_mask, self.discount)
        self.log(f"{name}/explained_variance", explained_variance(values, returns, batch.turn_mask))
        self.log(f"{name}/value", values[batch.turn_mask].mean())
        self.log(f"{name}/target", targets[batch.turn_mask].mean())

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

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        super().on_load_checkpoint(checkpoint)
        self.num_rollouts = checkpoint["collm"]["num_rollouts"]
