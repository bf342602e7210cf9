"""CoLLM-DC whose critics are value heads on their actors' backbones (arXiv 2601.21972, appendix B).

Equations 2 and 3 as in `collm_dc`, with one optimizer per agent over the backbone, the policy and the value head:

    loss_i = policy loss of (2) + value_loss_weight * value loss of (3)

It takes the memory of the actors alone, and the paper warns that the two losses may interfere. The authors' released
code offers it with `value_loss_weight` 0.6 and `value_clip` 0.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

from collm.algorithms.actor_critic import ActorCritic
from collm.errors import ConfigurationError
from collm.models.critic import Critic
from collm.replay import Lesson
from collm.returns import generalized_advantages
from collm.trajectory import RolloutBatch, action_sequences, signed_shares


class CoLLMDCShared(ActorCritic):
    """CoLLM-DC with value heads on the actors' own weights: one optimizer for actor and head.

    The head reads the history as text, as separate critics do, with the weights and the tokenizer of its actor. Of
    `critic` only `context_length` and `progress` matter, and of the learning rates those of the policies.

    Args:
        kwargs: Everything that actor-critic algorithms share; `num_epochs` counts for actor and head alike.
    """

    separate_critics = False

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        if self.critic_epochs != 1:
            raise ConfigurationError(
                f"model.critic_epochs is {self.critic_epochs}, but value heads learn together with their actors here; "
                "use model.num_epochs."
            )
        if self.critic_replay or self.lm_loss_weight:
            raise ConfigurationError(
                f"model.critic_replay is {self.critic_replay} and model.lm_loss_weight is {self.lm_loss_weight}, which "
                "are for critics with weights of their own, but value heads stand on their actors' here; leave them 0."
            )
        if self.target_critic_rate is not None:
            raise ConfigurationError(
                "model.target_critic_rate is for critics with weights of their own, but value heads stand on their "
                "actors' here; leave it null."
            )

    def critic_readers(self) -> dict[str, tuple[str, ...]]:
        return {f"critic/{agent_id}": (agent_id,) for agent_id in self.agent_ids}

    def build_critic(self, name: str, reads: Sequence[str]) -> Critic:
        policy = self.policies[reads[0]]
        spec = replace(self.critic_spec, path=policy.spec.path)
        critic = Critic(spec, policy.backbone, policy.adapter, reads, same_tokens=reads)
        learner = next(learner for learner, members in self.team.items() if reads[0] in members)
        self.learners[learner] = [*self.learners[learner], *critic.head.parameters()]
        return critic

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> None:
        actions, histories, values, targets, shaped = {}, {}, {}, {}, {}
        for agent_id in self.agent_ids:
            name = f"critic/{agent_id}"
            actions[agent_id] = action_sequences(batch.trajectories, agent_id)
            histories[agent_id] = self.critics[name].encode(batch.trajectories)
            values[agent_id] = old = self.values(name, histories[agent_id], batch)  # V_i(h_{i,t}), [B, T]
            # delta_{i,t} of (2) at gae_lambda 0; with the value added, the target of (3), held fixed
            advantages = generalized_advantages(batch.rewards, old, batch.turn_mask, self.discount, self.gae_lambda)
            targets[agent_id] = self.value_targets(old, advantages, old, batch)
            advantages = self.shape_advantages(advantages, batch.turn_mask)
            shaped[agent_id] = signed_shares(advantages, batch, agent_id)
            self.log_critic(name, old, targets[agent_id], batch)
            self.rescale(name, targets[agent_id], batch)

        def losses(agent_id: str, rows: set[int]):
            if self.actors_learn:
                yield from self.policy_losses(agent_id, actions[agent_id], rows, shaped[agent_id])  # (2)
            lesson = Lesson(histories[agent_id], values[agent_id], targets[agent_id], batch.turn_mask)
            yield from self.value_losses(f"critic/{agent_id}", lesson, rows)  # (3)

        for rows in self.minibatches(batch, self.num_epochs):
            for name, members in self.team.items():
                combined = chain.from_iterable(losses(agent_id, rows) for agent_id in members)
                self.optimize(name, combined, f"loss/actor_critic/{name}")
