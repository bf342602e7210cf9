"""What every algorithm shares: agents, optimizers, the one `optimize`, the policy loss, evaluation and checkpoints.

An algorithm is a subclass with a `training_step` that reads like its equations. Manual optimization runs over one
optimizer per agent (one for all of them where parameters are shared) and whatever the subclass adds.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from collm.algorithms.checkpoints import Checkpointed
from collm.algorithms.settings import check_parameters, specs_of
from collm.critics.value_network import ValueNetwork
from collm.errors import TrainingError
from collm.metrics import BootstrapMean, episode_numbers, group_numbers, groups_of_one, merged, summarized
from collm.models.backbone import Backbone
from collm.models.dialogue import Dialogue
from collm.models.policy import Policy, PolicySpec, make_dialogue
from collm.objectives import kl_penalty, policy_gradient_loss
from collm.optimizers import check_optimizer, drop_gradients, float32_copies, fused, stepping_for
from collm.returns import clip_advantages, normalize_advantages
from collm.runtime.checks import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, check_numbers
from collm.runtime.collectives import evened, gather_objects, on_all_rows, sum_gradients, sum_over_ranks, whole
from collm.runtime.files import write_text
from collm.runtime.naming import NamedModules, module_name
from collm.runtime.profiler import meter
from collm.trajectory import (
    RolloutBatch,
    SequenceBatch,
    TokenSequence,
    Trajectory,
    action_sequences,
    distinct_actions,
    first_non_finite,
    micro_batches,
    pad_sequences,
    signed_shares,
)

MAX_EMPTY_ROLLOUTS = 3
"""Rollouts in a row in which every episode failed, after which a run stops."""


class MultiAgentModule(Checkpointed):
    """Agents that learn from a shared team reward.

    Args:
        agent_ids: Names of the agents; they come from the environment.
        policy: The model every agent starts from and how it writes.
        policies: Agents that differ from `policy`, by name; each entry is a whole policy.
        parameters: `separate`: each agent has its own model. `lora`: agents (and critics) that start from the same
            weights share one frozen model and train an adapter each. `shared`: one set of parameters plays all agents.
        optimizer: Optimizer class; the learning rates are those of the policies and critics.
        lr_schedule: Learning-rate schedule of every optimizer, advanced once per rollout.
        discount: Discount from one turn to the next; 1 counts every turn alike.
        num_epochs: Passes of the agents over each rollout.
        num_minibatches: Optimizer steps of one pass.
        ratio_clip: Clip of the importance ratio (PPO); by default the ratio is not clipped, as in the paper.
        normalize_advantage: Divide advantages by their standard deviation over the rollout, after centering.
        advantage_clip: Largest absolute advantage.
        entropy_weight: Weight of the mean token entropy, added to the objective.
        kl_weight: Weight of the mean token KL divergence from the initial policy, subtracted from the objective.
        gradient_clip_norm: Largest gradient norm of each network; 0 turns clipping off.
        float32_weights: Step float32 copies of weights of lower precision, whose small steps would be lost to rounding;
            a bfloat16 weight that trains takes 16 bytes instead of 8 (AdamW).
        tokens_per_micro_batch: Largest number of tokens in one forward and backward pass; gradients accumulate.
    """

    def __init__(
        self,
        agent_ids: Sequence[str],
        policy: PolicySpec = PolicySpec(),
        policies: dict[str, PolicySpec] | None = None,
        parameters: Literal["separate", "lora", "shared"] = "separate",
        optimizer: OptimizerCallable = torch.optim.AdamW,
        lr_schedule: LRSchedulerCallable | None = None,
        discount: float = 1.0,
        num_epochs: int = 1,
        num_minibatches: int = 1,
        ratio_clip: float | None = None,
        normalize_advantage: bool = False,
        advantage_clip: float | None = None,
        entropy_weight: float = 0.0,
        kl_weight: float = 0.0,
        gradient_clip_norm: float = 1.0,
        float32_weights: bool = True,
        tokens_per_micro_batch: int = 16384,
    ):
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.strict_loading = False  # checkpoints hold what trains; frozen weights come from where they were
        self.agent_ids = tuple(agent_ids)
        self.specs = specs_of(self.agent_ids, policy, policies or {})
        self.parameters_mode = parameters
        self.optimizer = optimizer
        self.lr_schedule = lr_schedule
        self.discount = discount
        self.num_epochs = num_epochs
        self.num_minibatches = num_minibatches
        self.ratio_clip = ratio_clip
        self.normalize_advantage = normalize_advantage
        self.advantage_clip = advantage_clip
        self.entropy_weight = entropy_weight
        self.kl_weight = kl_weight
        self.gradient_clip_norm = gradient_clip_norm
        self.float32_weights = float32_weights
        self.tokens_per_micro_batch = tokens_per_micro_batch
        check_numbers("model", self, num_epochs=COUNT, num_minibatches=COUNT, tokens_per_micro_batch=COUNT)
        check_numbers("model", self, ratio_clip=POSITIVE.or_none, advantage_clip=POSITIVE.or_none, discount=SHARE)
        check_numbers("model", self, entropy_weight=NOT_NEGATIVE, kl_weight=NOT_NEGATIVE)
        check_numbers("model", self, gradient_clip_norm=NOT_NEGATIVE)
        check_optimizer(optimizer, lr_schedule)
        for agent_id, spec in self.specs.items():
            spec.check(f"policy of {agent_id!r}")
        check_parameters(parameters, self.specs)

        self.backbones = NamedModules()
        self.reference_backbones = NamedModules()  # frozen copies, by the name of the learner
        self._shared_backbones: dict[tuple[Any, ...], str] = {}  # their names, by what they start from
        self.policies: dict[str, Policy] = {}
        self.references: dict[str, Policy] = {}
        self.learners: dict[str, list[nn.Parameter]] = {}  # what trains, by the name of its optimizer
        self.team: dict[str, list[str]] = {}  # the agents behind each policy optimizer
        self.places: Mapping[str, torch.device] = {}  # set by a strategy that gives networks devices of their own
        # set by a strategy that shards weights: has policies ready to be sampled from
        self.gathering: Callable[[], AbstractContextManager[None]] | None = None
        self.joint_samples = 0
        self.num_rollouts = 0  # that were learned from, the one under way included
        self._evaluation: dict[str, list[float]] = {}
        self._rollout: Sequence[Trajectory] = ()
        self._empty_rollouts = 0  # in a row, that under way included

    # Building

    def dialogues(self) -> dict[str, Dialogue]:
        """How each agent's history becomes tokens; needs tokenizers only."""
        return {agent_id: make_dialogue(spec) for agent_id, spec in self.specs.items()}

    def networks(self) -> list[str]:
        """Names of all that has weights of its own; the frozen copy of an agent, if it has one, goes with it."""
        return list(dict.fromkeys(map(self.learner_name, self.agent_ids)))

    def critic_names(self) -> list[str]:
        """Names of the critics; none here."""
        return []

    def learner_name(self, agent_id: str) -> str:
        """Name of the optimizer that trains an agent: its id, unless a critic is called so too."""
        if self.parameters_mode == "shared":
            return "team"
        name, critics = agent_id, self.critic_names()
        while name in critics or (name != agent_id and name in self.agent_ids):
            name = f"policy/{name}"
        return name

    def configure_model(self) -> None:
        """Load the weights: the first moment at which anything large is read."""
        if self.policies:
            return
        for agent_id, spec in self.specs.items():
            name = self.learner_name(agent_id)
            adapter = module_name(name) if spec.lora_rank else None
            policy = Policy(agent_id, spec, self.backbone(name, spec, adapter), adapter)
            self.policies[agent_id] = policy
            self.team.setdefault(name, []).append(agent_id)
            self.learners[name] = policy.parameters()
            if self.kl_weight and adapter is None:
                if name not in self.reference_backbones:
                    self.reference_backbones[name] = policy.backbone.frozen_copy()
                self.references[agent_id] = Policy(agent_id, spec, self.reference_backbones[name], None)

    def backbone(self, name: str, spec: Any, adapter: str | None) -> Backbone:
        """The language model for `name`, shared where `parameters` says so, with `adapter` on it."""
        if self.parameters_mode == "lora" and adapter is not None:
            start = (spec.path, spec.dtype, spec.random_weights, spec.dropout)
            name = self._shared_backbones.setdefault(start, f"base {len(self._shared_backbones)}")
        if name not in self.backbones:
            given = (spec.path, spec.dtype, spec.random_weights)
            # shared ones have no place of their own
            self.backbones[name] = Backbone(*given, dropout=spec.dropout, home=self.places.get(name))
        backbone = self.backbones[name]
        if spec.gradient_checkpointing:
            backbone.recompute_activations()
        if adapter is not None and adapter not in backbone.adapters:
            backbone.add_adapter(adapter, spec.lora_rank, spec.lora_alpha, spec.lora_dropout)
        return backbone

    def learning_rates(self) -> dict[str, float]:
        """Step size of each optimizer."""
        return {name: self.specs[members[0]].learning_rate for name, members in self.team.items()}

    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list[Any]]:
        rates = self.learning_rates()
        optimizers = []
        for name, weights in self.learners.items():
            copies = float32_copies(weights) if self.float32_weights else weights
            optimizer = fused(self.optimizer([{"params": copies, "lr": rates[name]}]))
            optimizers.append(stepping_for(optimizer, weights))
        return optimizers, [self.lr_schedule(optimizer) for optimizer in optimizers] if self.lr_schedule else []

    # Acting

    @contextmanager
    def acting(self) -> Iterator[None]:
        """While it lasts, the policies are as they act: without dropout, and gathered where they are sharded."""
        training = self.training
        self.eval()
        for policy in self.policies.values():
            policy.version = self.num_rollouts
        try:
            with self.gathering() if self.gathering else nullcontext():
                yield
        finally:
            self.train(training)

    # Updating

    def minibatches(self, num_rows: int, num_epochs: int) -> Iterator[set[int]]:
        """Rows of a batch for each optimizer step: `num_epochs` passes in `num_minibatches` random parts."""
        for _ in range(num_epochs):
            order = torch.randperm(num_rows).tolist()
            for part in range(self.num_minibatches):
                yield set(order[part :: self.num_minibatches])

    def device_of(self, network: Policy | ValueNetwork) -> torch.device:
        """Where a network reads what it is given."""
        return network.backbone.home or self.device

    def micro_batches(
        self, sequences: Iterable[TokenSequence], rows: set[int], network: Policy | ValueNetwork
    ) -> Iterator[SequenceBatch]:
        """Micro-batches of the sequences that belong to `rows`, for `network` to read."""
        pad_id, device = network.tokenizer.pad_token_id, self.device_of(network)
        chosen = [sequence for sequence in sequences if sequence.row in rows]
        meter.count(sum(len(sequence.ids) for sequence in chosen), 0)
        batches = micro_batches(chosen, self.tokens_per_micro_batch, pad_id, device)
        if self.gathering:  # every pass gathers weights from all ranks, so all have to make as many
            nothing = pad_sequences([TokenSequence(0, [pad_id], [-1])], pad_id, device)
            batches = iter(evened(batches, nothing, device))
        for chunk in meter.each("other", batches):
            meter.count(0, chunk.ids.numel())
            yield chunk

    def shape_advantages(self, advantages: Tensor, turn_mask: Tensor) -> Tensor:
        """Advantages as the policy loss uses them: normalized and clipped where asked for, [B, T]."""
        if self.normalize_advantage:
            advantages = on_all_rows(normalize_advantages, advantages, turn_mask)
        if self.advantage_clip is not None:
            advantages = clip_advantages(advantages, self.advantage_clip)
        return advantages

    def update_policies(self, batch: RolloutBatch, advantages: Mapping[str, Tensor]) -> None:
        """Policy-gradient steps of every agent on `advantages` [B, T], by agent id."""
        advantages = {name: signed_shares(values, batch, name) for name, values in advantages.items()}
        sequences = {agent_id: action_sequences(batch.trajectories, agent_id) for agent_id in self.agent_ids}
        for rows in self.minibatches(len(batch.trajectories), self.num_epochs):
            for name, members in self.team.items():
                losses = (self.policy_losses(agent, sequences[agent], rows, advantages[agent]) for agent in members)
                self.optimize(name, chain.from_iterable(losses), f"loss/policy/{name}")

    def policy_losses(
        self, agent_id: str, sequences: Sequence[TokenSequence], rows: set[int], advantages: Tensor
    ) -> Iterator[Tensor]:
        """Losses of one agent, one per micro-batch; their sum is the mean over the trajectories in `rows`.

        `advantages` are [B, T], or those of `signed_shares`, [2, B, T].
        """
        policy, reference = self.policies[agent_id], self.references.get(agent_id)
        device = self.device_of(policy)
        advantages = advantages.to(device)
        own_tokens = sum(turn >= 0 for s in sequences if s.row in rows for turn in s.turns)
        num_rows, num_tokens = sum_over_ranks(torch.tensor([len(rows), own_tokens]), device).clamp(min=1)
        shape = tuple(advantages.shape[-2:])
        sums = torch.zeros(3, device=device)  # of entropy, KL and drift
        for chunk in self.micro_batches(sequences, rows, policy):
            mask = chunk.action_mask
            if self.kl_weight:
                with torch.no_grad():
                    if reference is not None:
                        reference_log_probs, _ = reference.log_probs(chunk)
                    else:
                        reference_log_probs, _ = policy.log_probs(chunk, adapter=None)
            log_probs, entropies = policy.log_probs(chunk)
            loss = (
                policy_gradient_loss(
                    chunk.sum_by_turn(log_probs, shape),
                    chunk.sum_by_turn(chunk.old_log_probs, shape),
                    advantages,
                    chunk.sum_by_turn(mask.float(), shape) > 0,
                    self.ratio_clip,
                )
                / num_rows
            )
            token_entropy = entropies[mask].sum() / num_tokens
            if self.entropy_weight:  # a product with 0 would be backpropagated too
                loss = loss - self.entropy_weight * token_entropy
            sums[0] += token_entropy.detach()
            if self.kl_weight:
                divergence = kl_penalty(log_probs, reference_log_probs, mask) / num_tokens
                loss = loss + self.kl_weight * divergence
                sums[1] += divergence.detach()
            sums[2] += (log_probs.detach() - chunk.old_log_probs)[mask].abs().sum() / num_tokens
            yield loss
        entropy, kl, drift = sum_over_ranks(sums, device)
        self.log(f"policy/entropy/{agent_id}", entropy)
        self.log(f"policy/log_prob_drift/{agent_id}", drift)
        if self.kl_weight:
            self.log(f"policy/kl/{agent_id}", kl)

    def optimize(self, name: str, losses: Iterable[Tensor], metric: str) -> None:
        """One optimizer step of `name`: the only place that zeroes, backpropagates, clips and steps.

        Losses are parts of a mean over all ranks, so gradients are summed over ranks, here and nowhere else.

        Args:
            name: Which optimizer.
            losses: Losses of the micro-batches; each is backpropagated before the next is computed.
            metric: Name under which their sum is logged.

        Raises:
            TrainingError: The loss or its gradient is not finite; the rollout is saved beside the logs.
        """
        if self._empty_rollouts:  # on all ranks
            return
        optimizers = self.optimizers()
        optimizer = (optimizers if isinstance(optimizers, list) else [optimizers])[list(self.learners).index(name)]
        with meter.phase("update/policy" if name in self.team else "update/critic"):
            drop_gradients(self.learners[name])
            total = torch.zeros((), device=self.device)
            for loss in losses:
                self.manual_backward(loss)
                total += loss.detach().to(self.device)
            total = sum_over_ranks(total, self.device)
            sum_gradients(self.learners[name])
            weights = [weight for weight in self.learners[name] if weight.grad is not None]
            norm = whole(nn.utils.get_total_norm([weight.grad for weight in weights]))
            if not torch.isfinite(total) or not torch.isfinite(norm):
                self.stop(f"{metric} is {total.item()} with gradient norm {norm.item()}", self._rollout)
            if self.gradient_clip_norm and norm > self.gradient_clip_norm:
                nn.utils.clip_grads_with_norm_(weights, self.gradient_clip_norm, norm)
            optimizer.step()
            drop_gradients(self.learners[name])  # their memory is for the next network
        self.log(metric, total)
        self.log(f"optim/grad_norm/{name}", norm)

    def stop(self, reason: str, trajectories: Sequence[Trajectory]) -> None:
        """End the run on all ranks, keeping the episodes that show why."""
        trajectories = list(chain.from_iterable(gather_objects(list(trajectories))))
        path = Path(self.trainer.log_dir or self.trainer.default_root_dir) / "offending_episodes.jsonl"
        if self.trainer.is_global_zero:
            write_text(path, "".join(json.dumps(trajectory.record()) + "\n" for trajectory in trajectories))
        raise TrainingError(f"training stopped: {reason}. The episodes are in {path}.")

    # Lightning hooks

    def on_train_batch_start(self, batch: RolloutBatch, batch_idx: int) -> None:
        wrapped = self.trainer.strategy.model
        if isinstance(wrapped, DistributedDataParallel):
            # gradients are summed in `optimize`, once per step; Lightning switches this on again after every step
            wrapped.require_backward_grad_sync = False
        self._rollout = batch.trajectories
        offending = first_non_finite(batch.trajectories)
        anywhere = [task_id for task_id in gather_objects(offending and offending.task.task_id) if task_id is not None]
        if anywhere:
            self.stop(f"a reward of task {anywhere[0]!r} is not finite", [offending] if offending else [])
        self.check_policy_versions(batch)
        self.num_rollouts += 1
        played = int(sum_over_ranks(batch.joint_samples, self.device))
        self.joint_samples += played
        self.log_rollout(batch)
        self._empty_rollouts = 0 if played else self._empty_rollouts + 1
        if not played:
            self.go_without(batch)

    def check_policy_versions(self, batch: RolloutBatch) -> None:
        """Stop where actions were not written by the policies as they are: every update here is on-policy."""
        own = {action.policy_version for action in distinct_actions(batch.trajectories)} - {None}
        versions = set(chain.from_iterable(gather_objects(own)))
        if versions - {self.num_rollouts}:
            self.stop(
                f"actions were written by the policies after {', '.join(map(str, sorted(versions)))} updates, but "
                f"{self.num_rollouts} were made: the update is not on-policy; sample after each update",
                batch.trajectories,
            )
        if versions:
            self.log("rollout/policy_version", float(self.num_rollouts))

    def go_without(self, batch: RolloutBatch) -> None:
        """Skip the update of a rollout in which no episode was played on any rank; stop after several in a row."""
        episodes = [*batch.trajectories, *batch.left_out]
        causes = Counter(chain.from_iterable(gather_objects([c for one in episodes for c, _ in one.failures])))
        told = f"every episode failed ({', '.join(f'{cause}: {count}' for cause, count in sorted(causes.items()))})"
        if self._empty_rollouts == MAX_EMPTY_ROLLOUTS:
            self.stop(f"{told}, as in the {MAX_EMPTY_ROLLOUTS - 1} rollouts before", episodes)
        rank_zero_warn(f"{told}: nothing is learned from this rollout.")

    def on_train_batch_end(self, outputs: Any, batch: RolloutBatch, batch_idx: int) -> None:
        schedules = self.lr_schedulers() or []
        for schedule in schedules if isinstance(schedules, list) else [schedules]:
            schedule.step()
        self._rollout = ()

    def log_rollout(self, batch: RolloutBatch) -> None:
        """What the agents did, under `rollout/`; the x axis of every curve is the number of joint samples."""
        self.log("step", float(self.joint_samples))
        self.log("rollout/joint_samples", float(self.joint_samples))
        for name, value in summarized(merged(gather_objects(episode_numbers(batch)))).items():
            self.log(f"rollout/{name}", value, prog_bar=name == "return", batch_size=len(batch.trajectories))
        self.log("rollout/groups_of_one", float(sum_over_ranks(groups_of_one(batch), self.device)))
        equal, groups, replaced = sum_over_ranks(group_numbers(batch), self.device)
        if groups:
            self.log("rollout/equal_groups", equal / groups)
            self.log("rollout/replaced_joint_samples", replaced)
        self.log("time/rollout", batch.seconds)

    def validation_step(self, batch: RolloutBatch, batch_idx: int) -> None:
        self._evaluation = merged([self._evaluation, episode_numbers(batch)])

    def on_validation_epoch_end(self) -> None:
        """Means over held-out episodes under `eval/`; the return has a 95% bootstrap interval."""
        self.log("step", float(self.joint_samples))
        numbers, self._evaluation = merged(gather_objects(self._evaluation)), {}
        for name, value in summarized(numbers).items():
            self.log(f"eval/{name}", value, prog_bar=name == "return")
        if numbers.get("return"):
            metric = BootstrapMean(sync_on_compute=False)
            metric.update(torch.tensor(numbers["return"]))
            result = metric.compute()
            self.log("eval/return_low", result["low"])
            self.log("eval/return_high", result["high"])

    test_step = validation_step
    on_test_epoch_end = on_validation_epoch_end

    def predict_step(self, batch: RolloutBatch, batch_idx: int) -> list[dict[str, Any]]:
        return [trajectory.record() for trajectory in (*batch.trajectories, *batch.left_out)]
