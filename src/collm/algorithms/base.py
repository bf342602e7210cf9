"""The base class of all algorithms: micro-batches, advantages, the policy loss and the optimizer step.

An algorithm is a subclass whose `training_step` follows its equations line by line. Optimization is manual, with one
optimizer per agent (one for all agents if they share parameters) and those of the critics that a subclass adds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain

import torch
from torch import Tensor, nn

from collm.algorithms.optimizers import drop_gradients
from collm.algorithms.rollout_hooks import RolloutHooks
from collm.critics.value_network import ValueNetwork
from collm.models.policy import Policy
from collm.objectives import kl_penalty, policy_gradient_loss, sampler_weights
from collm.packing import (
    SequenceBatch,
    TokenSequence,
    action_sequences,
    micro_batches,
    pad_sequences,
    signed_shares,
    similar_lengths,
)
from collm.returns import normalize_advantages
from collm.runtime.checks import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, check_numbers
from collm.runtime.collectives import full_tensor, on_all_rows, padded_to_longest, sum_gradients, sum_over_ranks
from collm.runtime.profiler import meter
from collm.trajectory import RolloutBatch, Trajectory

PolicyUpdateHook = Callable[[Mapping[str, Sequence[TokenSequence]], Mapping[str, Tensor]], None]


class MultiAgentModule(RolloutHooks):
    """Agents that learn from a shared team reward.

    Args:
        discount: Discount factor per turn (gamma), from 0 to 1; 1 does not discount.
        num_epochs: Number of passes of the policy updates over each rollout.
        num_minibatches: Number of optimizer steps in each pass; each step uses a random part of the episodes.
        ratio_clip: Clip the importance ratio to 1 - ratio_clip ... 1 + ratio_clip, as PPO does. By default the ratio is
            not clipped, as in the paper.
        normalize_advantage: Standardize advantages over the rollout to mean 0 and standard deviation 1.
        advantage_clip: Clip advantages to -advantage_clip ... advantage_clip, after `normalize_advantage`; the paper
            (appendix C.3) gives a size and no definition. By default they are not clipped.
        entropy_weight: Weight of the entropy bonus, averaged over tokens and added to the objective; 0 turns it off.
        gradient_clip_norm: Largest gradient norm of each network, as in torch's `clip_grad_norm_`; 0 turns clipping
            off.
        tokens_per_micro_batch: Largest number of tokens, padding included, in one forward and backward pass. Gradients
            accumulate over micro-batches, so this changes memory and speed, not the update.
        kwargs: Arguments of `Agents`: the policies and their optimizers.

    Attributes:
        on_micro_batch: If set, called before every micro-batch, for callbacks that show progress.
        frozen: Names of the learners whose weights are not updated.
        policy_update_hook: If set, `update_policies` calls it with the sequences of every agent that learns and the
            advantages of all [2, B, T], and takes no optimizer step; for measurements at a fixed policy.
    """

    def __init__(
        self,
        discount: float = 1.0,
        num_epochs: int = 1,
        num_minibatches: int = 1,
        ratio_clip: float | None = None,
        normalize_advantage: bool = False,
        advantage_clip: float | None = None,
        entropy_weight: float = 0.0,
        gradient_clip_norm: float = 1.0,
        tokens_per_micro_batch: int = 16384,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.discount = discount
        self.num_epochs = num_epochs
        self.num_minibatches = num_minibatches
        self.ratio_clip = ratio_clip
        self.normalize_advantage = normalize_advantage
        self.advantage_clip = advantage_clip
        self.entropy_weight = entropy_weight
        self.gradient_clip_norm = gradient_clip_norm
        self.tokens_per_micro_batch = tokens_per_micro_batch
        self.on_micro_batch: Callable[[], None] | None = None
        self.frozen: set[str] = set()
        self.policy_update_hook: PolicyUpdateHook | None = None
        check_numbers("model", self, num_epochs=COUNT, num_minibatches=COUNT, tokens_per_micro_batch=COUNT)
        check_numbers("model", self, ratio_clip=POSITIVE.or_none, advantage_clip=POSITIVE.or_none, discount=SHARE)
        check_numbers("model", self, entropy_weight=NOT_NEGATIVE, gradient_clip_norm=NOT_NEGATIVE)

    def minibatches(self, num_rows: int, num_epochs: int) -> Iterator[set[int]]:
        """The rows (trajectories) of each optimizer step: `num_epochs` passes over `num_minibatches` random parts."""
        for _ in range(num_epochs):
            order = torch.randperm(num_rows).tolist()
            for part in range(self.num_minibatches):
                yield set(order[part :: self.num_minibatches])

    def device_of(self, network: Policy | ValueNetwork) -> torch.device:
        """The device on which a network takes its inputs."""
        return network.backbone.home or self.device

    def serves_first_step(self, sequences: Sequence[TokenSequence]) -> bool:
        """Whether one forward pass over `sequences` may be kept for the first optimizer step on them.

        It may if that step is on all of them, its graph fits into the memory of one micro-batch, and ranks need not run
        equally many passes.
        """
        lengths = [len(sequence.ids) for sequence in sequences]
        padded = sum(len(group) * max(lengths[index] for index in group) for group in similar_lengths(lengths))
        return self.num_minibatches == 1 and not self.gathering and padded <= self.tokens_per_micro_batch

    def micro_batches(
        self, sequences: Iterable[TokenSequence], rows: set[int], network: Policy | ValueNetwork
    ) -> Iterator[SequenceBatch]:
        """Micro-batches of the sequences that belong to `rows`, padded for `network` and on its device."""
        pad_id, device = network.tokenizer.pad_token_id, self.device_of(network)
        chosen = [sequence for sequence in sequences if sequence.row in rows]
        meter.count(sum(len(sequence.ids) for sequence in chosen), 0)
        batches = micro_batches(chosen, self.tokens_per_micro_batch, pad_id, device)
        if self.gathering:  # every forward pass gathers weights from all ranks, so all ranks run equally many
            empty = pad_sequences([TokenSequence(0, [pad_id], [-1])], pad_id, device)
            batches = iter(padded_to_longest(batches, empty, device))
        for chunk in meter.each("other", batches):
            meter.count(0, chunk.ids.numel())
            if self.on_micro_batch is not None:
                self.on_micro_batch()
            yield chunk

    def shape_advantages(self, advantages: Tensor, turn_mask: Tensor, weights: Tensor | None = None) -> Tensor:
        """Advantages for the policy loss, [B, T]: normalized with the `weights` of their paths, [B], then clipped."""
        if self.normalize_advantage:
            weighted = [] if weights is None else [weights[:, None].expand_as(advantages)]
            advantages = on_all_rows(normalize_advantages, advantages, turn_mask, *weighted)
        if self.advantage_clip is not None:
            advantages = advantages.clamp(-self.advantage_clip, self.advantage_clip)
        return advantages

    def update_policies(self, batch: RolloutBatch, advantages: Mapping[str, Tensor]) -> None:
        """Take the policy-gradient steps of every agent; `advantages` holds [B, T] by agent id."""
        advantages = {name: signed_shares(values, batch, name) for name, values in advantages.items()}
        learning = chain.from_iterable(self.policy_learners.values())
        sequences = {agent_id: action_sequences(batch.trajectories, agent_id) for agent_id in learning}
        if self.policy_update_hook is not None:
            self.policy_update_hook(sequences, advantages)
            return
        sequences = self.before_first_step(sequences)
        for rows in self.minibatches(len(batch.trajectories), self.num_epochs):
            for name, members in self.policy_learners.items():
                losses = (self.policy_losses(agent, sequences[agent], rows, advantages[agent]) for agent in members)
                self.optimize(name, chain.from_iterable(losses), f"loss/policy/{name}")

    def before_first_step(self, sequences: Mapping[str, list[TokenSequence]]) -> dict[str, list[TokenSequence]]:
        """Sequences by agent, with the trainer's log-probabilities where `sampler_correction` needs them."""
        if self.num_epochs * self.num_minibatches == 1:  # a single step takes them from its own forward pass
            return dict(sequences)
        corrected = [agent_id for agent_id in sequences if self.specs[agent_id].correction() != "off"]
        return {**sequences, **{name: self.with_trainer_log_probs(name, sequences[name]) for name in corrected}}

    def with_trainer_log_probs(self, agent_id: str, sequences: Sequence[TokenSequence]) -> list[TokenSequence]:
        """Sequences with the log-probabilities that the policy of an agent gives their actions now."""
        scores = self.token_scores(agent_id, sequences)
        return [replace(one, trainer_log_probs=own) for one, (own, _) in zip(sequences, scores, strict=True)]

    @torch.no_grad()
    def token_scores(self, agent_id: str, sequences: Sequence[TokenSequence]) -> list[tuple[list[float], list[float]]]:
        """Log-probabilities and entropies (nats) of the L positions of each sequence under an agent's policy now."""
        policy = self.policies[agent_id]
        lengths = [len(sequence.ids) for sequence in sequences]
        groups = iter(similar_lengths(lengths, self.tokens_per_micro_batch))
        scores: list[tuple[list[float], list[float]]] = [([], [])] * len(sequences)
        for chunk in self.micro_batches(sequences, {sequence.row for sequence in sequences}, policy):
            log_probs, entropies = (values.tolist() for values in policy.log_probs(chunk))
            for row, index in enumerate(next(groups, [])):  # ranks without rows left take part, too
                scores[index] = (log_probs[row][: lengths[index]], entropies[row][: lengths[index]])
        return scores

    def token_entropies(self, trajectories: Sequence[Trajectory]) -> dict[str, list[float]]:
        """Entropy of the distribution that each token of an action was drawn from, by the action's uid.

        All ranks call it, as weights may be sharded. There are none for agents whose weights are elsewhere.
        """
        by_action = {}
        for agent_id in [name for name, policy in self.policies.items() if policy.has_weights]:
            sequences = action_sequences(trajectories, agent_id)
            of_turns: dict[tuple[int, int], list[float]] = defaultdict(list)
            for sequence, (_, values) in zip(sequences, self.token_scores(agent_id, sequences), strict=True):
                for turn, value in zip(sequence.turns, values, strict=True):
                    of_turns[sequence.row, turn].append(value)
            for row, trajectory in enumerate(trajectories):
                for index, played in enumerate(trajectory.turns):
                    if (row, index) in of_turns:  # not an action that an earlier trajectory shares
                        action, values = played.actions[agent_id], of_turns[row, index]
                        by_action[action.uid] = values[len(values) - len(action.token_ids) :]  # messages come before it
        return by_action

    def policy_losses(
        self, agent_id: str, sequences: Sequence[TokenSequence], rows: set[int], advantages: Tensor, log: bool = True
    ) -> Iterator[Tensor]:
        """Losses of one agent, one per micro-batch; their sum is the mean over the trajectories in `rows`.

        Args:
            agent_id: The agent.
            sequences: The agent's token sequences, from `packing.action_sequences`.
            rows: Indices of the trajectories in this minibatch.
            advantages: Advantages, [B, T], or [2, B, T] as `packing.signed_shares` returns them.
            log: Log entropy, KL divergence and log-probability drift after the last micro-batch.
        """
        policy, reference = self.policies[agent_id], self.references.get(agent_id)
        # with LoRA the initial policy is the backbone without adapters
        reference_log_probs = reference.log_probs if reference else partial(policy.log_probs, adapter=None)
        device = self.device_of(policy)
        advantages = advantages.to(device)
        action_tokens = sum(turn >= 0 for s in sequences if s.row in rows for turn in s.turns)
        num_rows, num_tokens = sum_over_ranks(torch.tensor([len(rows), action_tokens]), device).clamp(min=1)
        shape = (advantages.shape[-2], advantages.shape[-1])
        sums = torch.zeros(4, device=device)  # of entropy, KL divergence, drift and importance weights
        correction, cap = policy.spec.correction(), policy.spec.sampler_weight_cap
        for chunk in self.micro_batches(sequences, rows, policy):
            mask = chunk.action_mask
            if self.kl_weight:
                with torch.no_grad():
                    initial_log_probs, _ = reference_log_probs(chunk)
            log_probs, entropies = policy.log_probs(chunk)
            turn_mask = chunk.sum_by_turn(mask.float(), shape) > 0
            weighted, before, shares = log_probs, chunk.old_log_probs, advantages
            if correction != "off":
                before = log_probs.detach() if chunk.trainer_log_probs is None else chunk.trainer_log_probs
                if correction == "token":  # the ratio keeps its value; each token's gradient has its own weight
                    weights = sampler_weights(before, chunk.old_log_probs, mask, cap)
                    weighted = log_probs.detach() + weights * (log_probs - log_probs.detach())
                else:
                    ours, theirs = (chunk.sum_by_turn(values, shape) for values in (before, chunk.old_log_probs))
                    weights = sampler_weights(ours, theirs, turn_mask, cap)
                    shares, weights = advantages * weights, chunk.per_turn(weights)
                sums[3] += weights[mask].sum() / num_tokens
            summed = chunk.sum_by_turn(weighted, shape), chunk.sum_by_turn(before, shape)
            loss = policy_gradient_loss(*summed, shares, turn_mask, self.ratio_clip) / num_rows
            token_entropy = entropies[mask].sum() / num_tokens
            if self.entropy_weight:  # autograd would compute the gradient of a product with 0 too
                loss = loss - self.entropy_weight * token_entropy
            sums[0] += token_entropy.detach()
            if self.kl_weight:
                divergence = kl_penalty(log_probs, initial_log_probs, mask) / num_tokens
                loss = loss + self.kl_weight * divergence
                sums[1] += divergence.detach()
            sums[2] += (log_probs.detach() - chunk.old_log_probs)[mask].abs().sum() / num_tokens
            yield loss
        if not log:
            return
        entropy, kl, drift, weight = sum_over_ranks(sums, device)
        self.log(f"policy/entropy/{agent_id}", entropy)
        self.log(f"policy/log_prob_drift/{agent_id}", drift)
        if correction != "off":
            self.log(f"policy/sampler_weight/{agent_id}", weight)
        if self.kl_weight:
            self.log(f"policy/kl/{agent_id}", kl)

    def optimize(self, name: str, losses: Iterable[Tensor], metric: str) -> None:
        """Take one optimizer step of `name`: zero, backpropagate, sum over ranks, clip and step.

        Each loss is a part of a mean over all ranks, so gradients are summed over ranks. No other code does this.

        Args:
            name: Name of the optimizer, a key of `learners`.
            losses: Losses of the micro-batches; each is backpropagated before the next is computed.
            metric: Metric name of the sum of the losses.

        Raises:
            TrainingError: The loss or its gradient is not finite; the rollout is saved in the log folder.
        """
        if self._empty_rollouts or name in self.frozen:  # the same on all ranks
            return
        optimizer = self.by_learner(self.optimizers())[name]
        with meter.phase("update/policy" if name in self.policy_learners else "update/critic"):
            drop_gradients(self.learners[name])
            total = torch.zeros((), device=self.device)
            for loss in losses:
                self.manual_backward(loss)
                total += loss.detach().to(self.device)
            total = sum_over_ranks(total, self.device)
            sum_gradients(self.learners[name])
            weights = [weight for weight in self.learners[name] if weight.grad is not None]
            gradients = [weight.grad for weight in weights if weight.grad is not None]
            norm = full_tensor(nn.utils.get_total_norm(gradients))
            if not torch.isfinite(total) or not torch.isfinite(norm):
                self.stop(f"{metric} is {total.item()} with gradient norm {norm.item()}", self._rollout)
            if self.gradient_clip_norm and norm > self.gradient_clip_norm:
                nn.utils.clip_grads_with_norm_(weights, self.gradient_clip_norm, norm)
            optimizer.step()
            self._updated.add(name)
            drop_gradients(self.learners[name])  # free their memory for the next network
        self.log(metric, total)
        self.log(f"optim/grad_norm/{name}", norm)
