"""What actor-critic methods share: critics that read histories in one pass, and their regression."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from collm.algorithms.base import MultiAgentModule
from collm.algorithms.checkpoints import is_count, misshapen
from collm.collectives import gather_objects, gathered, num_ranks, on_all_rows, parts_like, sum_over_ranks
from collm.errors import ConfigurationError
from collm.meter import meter
from collm.models.critic import Critic, CriticSpec
from collm.models.loading import same_tokens
from collm.objectives import clipped_value_loss, value_loss
from collm.replay import Lesson, Replay
from collm.returns import discounted_returns, explained_variance, generalized_advantages
from collm.trajectory import RolloutBatch, SequenceBatch, TokenSequence


class CriticPass(NamedTuple):
    """A pass of a critic over a micro-batch: hidden states [R, L, hidden size], and its language-model loss or None.

    Without states it is still to be made.
    """

    chunk: SequenceBatch
    states: Tensor | None = None
    lm_loss: Tensor | None = None


class ActorCritic(MultiAgentModule):
    """Agents that learn from the temporal-difference errors of one or more critics.

    Args:
        critic: The model every critic starts from and how it reads.
        gae_lambda: Trace decay of advantages and value targets: 0 is the paper's one-step TD error, 1 the
            Monte-Carlo return (less the value, for the advantage).
        critic_lambda: Trace decay of value targets where it is another than that of advantages: 1 for critics that
            regress on Monte-Carlo returns.
        critic_epochs: Passes of each critic over each rollout.
        critic_replay: Rollouts, the newest one included, that critics read again after those passes, with the targets
            they had; 0 for none.
        critic_replay_steps: Steps of each critic on them, per rollout.
        critic_replay_batch: Trajectories of one such step, drawn at random, of all processes together; by default as
            many as a rollout has.
        critic_warmup: Rollouts at the beginning in which only critics learn.
        value_loss_weight: Scale of the value loss; it matters together with gradient clipping.
        lm_loss_weight: Weight of the language-model loss of what critics read, per token: an auxiliary task that
            teaches their backbones what follows from what.
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
        critic_lambda: float | None = None,
        critic_epochs: int = 1,
        critic_replay: int = 0,
        critic_replay_steps: int = 1,
        critic_replay_batch: int | None = None,
        critic_warmup: int = 0,
        value_loss_weight: float = 1.0,
        lm_loss_weight: float = 0.0,
        value_clip: float | None = None,
        normalize_values: bool = False,
        target_critic_rate: float | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.critic_spec = critic
        self.gae_lambda = gae_lambda
        self.critic_lambda = gae_lambda if critic_lambda is None else critic_lambda
        self.critic_epochs = critic_epochs
        self.critic_replay = critic_replay
        self.critic_replay_steps = critic_replay_steps
        self.critic_replay_batch = critic_replay_batch
        self.critic_warmup = critic_warmup
        self.value_loss_weight = value_loss_weight
        self.lm_loss_weight = lm_loss_weight
        self.value_clip = value_clip
        self.normalize_values = normalize_values
        self.target_critic_rate = target_critic_rate
        self.target_critics: dict[str, list[Tensor]] = {}  # the slow copies of what trains, by critic
        self.replays: dict[str, Replay] = {}
        self._first_passes: dict[str, tuple[Sequence[TokenSequence], list[CriticPass]]] = {}  # and over what they are
        self.critics = nn.ModuleDict()
        self.num_rollouts = 0
        critic.check("critic")
        for setting in ("gae_lambda", "critic_lambda"):
            if not 0 <= getattr(self, setting) <= 1:
                raise ConfigurationError(f"model.{setting} is {getattr(self, setting)}; it must be in [0, 1].")
        if (
            critic_replay < 0
            or critic_replay_steps < 1
            or (critic_replay_batch is not None and critic_replay_batch < 1)
        ):
            raise ConfigurationError(
                f"model.critic_replay is {critic_replay}, model.critic_replay_steps {critic_replay_steps} and "
                f"model.critic_replay_batch {critic_replay_batch}; they must be at least 0, 1 and 1."
            )
        if lm_loss_weight < 0:
            raise ConfigurationError(f"model.lm_loss_weight is {lm_loss_weight}; use 0 to turn it off.")
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

    def networks(self) -> list[str]:
        return super().networks() + (list(self.critic_readers()) if self.separate_critics else [])

    def configure_model(self) -> None:
        if self.policies:
            return
        super().configure_model()
        for name, reads in self.critic_readers().items():
            self.critics[name] = self.build_critic(name, reads)

    def build_critic(self, name: str, reads: Sequence[str]) -> Critic:
        """The critic `name`, a learner of its own over a backbone or adapter of its own."""
        adapter = name if self.critic_spec.lora_rank else None
        backbone = self.backbone(name, self.critic_spec, adapter)
        same = [agent_id for agent_id in reads if same_tokens(self.specs[agent_id].path, self.critic_spec.path)]
        critic = self.critic_class(self.critic_spec, backbone, adapter, reads, same)
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
        find = self.first_pass if self.passes_once else self.read
        return find(name, histories, batch)

    @property
    def passes_once(self) -> bool:
        """Whether the pass that gives the values can be that of the critic's first optimizer step too.

        It can if that step is over the same rows, no slow copy takes the place of the weights in between, and every
        rank may make as many passes as it likes.
        """
        whole = self.separate_critics and self.num_minibatches == 1
        return whole and self.target_critic_rate is None and self.gathering is None

    @meter.phase("values")
    @torch.no_grad()
    def first_pass(self, name: str, histories: Sequence[TokenSequence], batch: RolloutBatch) -> Tensor:
        """The values of a critic, in the shape of `values`.

        Of the passes that give them, as many are kept for the critic's first optimizer step as a micro-batch has room.
        """
        critic, room = self.critics[name], self.tokens_per_micro_batch
        shape = (len(batch.rewards), batch.rewards.shape[1] * critic.values_per_turn)
        values, kept = batch.rewards.new_zeros(shape), []
        for chunk in self.chunks(histories, set(range(len(batch.trajectories))), critic):
            room -= chunk.ids.numel()
            with torch.set_grad_enabled(room >= 0):
                made = self.new_pass(critic, chunk)
            values += chunk.sum_by_turn(critic(chunk, made.states), shape).to(values.device)
            kept.append(made if room >= 0 else CriticPass(chunk))
        self._first_passes[name] = histories, kept
        return values

    def passes(self, name: str, histories: Sequence[TokenSequence], rows: set[int]) -> Iterator[CriticPass]:
        """What the critic makes of the histories of `rows`, by micro-batches; once, the passes that gave the values."""
        critic = self.critics[name]
        read, kept = self._first_passes.pop(name, (None, []))
        if read is not histories:
            for chunk in self.chunks(histories, rows, critic):
                yield self.new_pass(critic, chunk)
            return
        while kept:  # nothing holds on to a pass once it is used
            if kept[0].states is None:
                yield self.new_pass(critic, kept.pop(0).chunk)
            else:
                with critic.backbone.using(critic.adapter):  # another may have been in use since
                    yield kept.pop(0)

    def new_pass(self, critic: Critic, chunk: SequenceBatch) -> CriticPass:
        """A pass of the critic as it is now over a micro-batch."""
        if self.lm_loss_weight and torch.is_grad_enabled():
            return CriticPass(chunk, *critic.states_and_lm_loss(chunk))
        return CriticPass(chunk, critic.hidden_states(chunk))

    @meter.phase("values")
    @torch.no_grad()
    def read(self, name: str, histories: Sequence[TokenSequence], batch: RolloutBatch) -> Tensor:
        """The values of a critic as its weights are now, in the shape of `values`."""
        critic = self.critics[name]
        values = batch.rewards.new_zeros(len(batch.rewards), batch.rewards.shape[1] * critic.values_per_turn)
        for chunk in self.chunks(histories, set(range(len(batch.trajectories))), critic):
            values += chunk.sum_by_turn(critic(chunk), tuple(values.shape)).to(values.device)
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
        kept = self.target_critics[name]  # a checkpoint's may be elsewhere, and in one piece
        copies = [parts_like(copy, weight) for copy, weight in zip(kept, weights, strict=True)]
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

    def value_targets(self, values: Tensor, advantages: Tensor, later: Tensor, batch: RolloutBatch) -> Tensor:
        """What `values` are regressed on, [B, T]: the advantages with them added, or those at `critic_lambda`."""
        if self.critic_lambda != self.gae_lambda:
            advantages = generalized_advantages(
                batch.rewards, values, batch.turn_mask, self.discount, self.critic_lambda, later
            )
        return advantages + values

    def update_critic(
        self, name: str, histories: Sequence[TokenSequence], values: Tensor, targets: Tensor, batch: RolloutBatch
    ) -> None:
        """Regress the critic on fixed `targets` [B, T]; the loss is the mean over played turns."""
        self.rescale(name, targets, batch)
        lesson = Lesson(histories, values, targets, batch.turn_mask)
        for rows in self.minibatches(batch, self.critic_epochs):
            self.optimize(name, self.value_losses(name, lesson, rows), f"loss/{name}")
        if self.critic_replay:
            replay = self.replays.setdefault(name, Replay(self.critic_replay))
            replay.add(lesson)
            for _ in range(self.critic_replay_steps):
                share = -(-self.critic_replay_batch // num_ranks()) if self.critic_replay_batch else len(targets)
                drawn = replay.draw(share)
                rows = set(range(len(drawn.targets)))
                self.optimize(name, self.value_losses(name, drawn, rows), f"loss/{name}/replay")
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

    def value_losses(self, name: str, lesson: Lesson, rows: set[int]) -> Iterator[Tensor]:
        """Losses of one critic on some rows of a lesson, one per micro-batch."""
        critic, shape = self.critics[name], tuple(lesson.targets.shape)
        device = self.device_of(critic)
        old_values, targets = lesson.values.to(device), lesson.targets.to(device)
        own_tokens = sum(len(sequence.ids) - 1 for sequence in lesson.histories if sequence.row in rows)
        sizes = torch.stack([lesson.turn_mask[sorted(rows)].sum().cpu(), torch.tensor(own_tokens)])
        num_turns, num_tokens = sum_over_ranks(sizes, device).clamp(min=1)
        for chunk, states, lm_loss in self.passes(name, lesson.histories, rows):
            scored = chunk.sum_by_turn(chunk.action_mask.float(), shape) > 0
            now = chunk.sum_by_turn(critic(chunk, states), shape)
            if self.value_clip is None:
                loss = value_loss(now, targets, scored)
            else:
                bound = self.value_clip * float(critic.scale)
                loss = clipped_value_loss(now, old_values, targets, scored, bound)
            loss = self.value_loss_weight * loss / critic.scale.square() / num_turns
            if lm_loss is not None:
                loss = loss + self.lm_loss_weight * lm_loss / num_tokens
            yield loss

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
            checkpoint["collm"]["target_critics"] = gathered(self.target_critics, True)
        if self.replays:
            own = {name: replay.state_dict() for name, replay in self.replays.items()}
            checkpoint["collm"]["replays"] = gather_objects(own)

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        super().on_load_checkpoint(checkpoint)
        if not is_count(checkpoint["collm"].get("num_rollouts")):
            raise self.misfit(f"its num_rollouts is {checkpoint['collm'].get('num_rollouts')!r}, not a count")
        self.num_rollouts = checkpoint["collm"]["num_rollouts"]
        if self.target_critic_rate is not None:
            self.target_critics = checkpoint["collm"].get("target_critics", {})
            for name, copies in self.target_critics.items():
                weights = self.critics[name].trainable_parameters() if name in self.critics else ()
                if len(copies) != len(weights) or any(map(misshapen, copies, weights)):
                    raise self.misfit(f"its copy of the critic {name!r} has other shapes than the critic")
        kept = checkpoint["collm"].get("replays", [{}])
        for name in kept[0] if self.critic_replay else ():
            self.replays[name] = Replay(self.critic_replay)
            states = [of_rank[name] for of_rank in kept]
            self.replays[name].load_state_dicts(states, self.global_rank, num_ranks())


@contextmanager
def swapped_in(weights: Sequence[nn.Parameter], others: Sequence[Tensor]) -> Iterator[None]:
    """For as long as it lasts, `weights` hold what `others` do."""
    # in place, as that is where sharded weights are gathered from
    own = [weight.detach().clone() for weight in weights]
    try:
        for weight, other in zip(weights, others, strict=True):
            weight.detach().copy_(other)
        yield
    finally:
        for weight, kept in zip(weights, own, strict=True):
            weight.detach().copy_(kept)
