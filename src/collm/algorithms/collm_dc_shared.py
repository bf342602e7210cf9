"""CoLLM-DC whose critics are value heads on the backbones of the actors (arXiv 2601.21972, appendix B).

Equations 2 and 3 are those of `collm_dc`; one optimizer per agent trains the backbone and the value head:

    loss_i = policy loss of (2) + critic.loss_weight * value loss of (3)

Critics need no memory beyond their heads; the paper warns that the two losses may interfere. The authors' released
code uses a `loss_weight` of 0.6 and a `value_clip` of 0.2.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

from torch import Tensor

from collm.algorithms.actor_critic import ActorCritic
from collm.algorithms.settings import refuse_foreign
from collm.critics.language_model import LanguageModelCritic
from collm.errors import ConfigurationError
from collm.packing import action_sequences, signed_shares
from collm.trajectory import RolloutBatch


class CoLLMDCShared(ActorCritic):
    """CoLLM-DC with value heads on the actors' own weights: one optimizer for actor and head.

    Value heads take the history as text, as separate critics do, with the weights and the tokenizer of the actor.
    The learning rate is that of the policy, and of the settings in `critic.model` only `context_length` has an effect.

    Args:
        critic: A language-model critic. `num_epochs` sets the passes of actor and critic; `critic.epochs` must be 1 and
            `critic.replay` 0. During `critic_warmup` the value loss alone trains, the weights that both share included.
        kwargs: Arguments of every actor-critic algorithm; see `ActorCritic`.
    """

    critics_share_weights = True

    def __init__(self, critic: LanguageModelCritic | None = None, **kwargs):
        super().__init__(critic=critic, **kwargs)
        refuse_foreign(self.specs, "agents whose critics are on their own models")
        template = self.critic_template[0]
        if not isinstance(template, LanguageModelCritic):
            raise ConfigurationError(
                f"model.critic is a {type(template).__name__}, but the critics here are value heads on the language "
                "models of the actors; use LanguageModelCritic."
            )
        if template.epochs != 1 or template.replay:
            raise ConfigurationError(
                f"critic.epochs is {template.epochs} and critic.replay is {template.replay}, but value heads learn "
                "together with their actors; set critic.epochs to 1, critic.replay to 0 and use model.num_epochs."
            )
        self.own_critics: dict[str, Any] = {
            agent_id: self.add_critic(f"critic/{agent_id}", [agent_id]) for agent_id in self.agent_ids
        }

    def load_critic(self, critic: Any) -> None:
        (agent_id,) = critic.agent_ids
        policy = self.policies[agent_id]
        critic.read_with(policy.backbone, policy.adapter, policy.spec.path)
        learner = next(name for name, members in self.policy_learners.items() if agent_id in members)
        self.learners[learner] = [*self.learners[learner], *critic.network.head.parameters()]

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> None:
        actions, records, advantages = {}, {}, {}
        for agent_id, critic in self.own_critics.items():
            values = critic.values(batch)  # V_i(h_{i,t}), [B, T]
            next_values = critic.next_values(batch, values)  # V_i(h_{i,t+1})
            errors = self.gae(batch, values, next_values)  # delta_{i,t} of (2) at gae_lambda 0
            targets = self.value_targets(batch, values, next_values, errors)  # of (3)
            self.log_critic(critic.name, batch, values, targets)
            actions[agent_id] = action_sequences(batch.trajectories, agent_id)
            records[agent_id] = critic.record(batch, values, targets)
            errors = self.shape_advantages(errors, batch.turn_mask, batch.weights)
            advantages[agent_id] = signed_shares(errors, batch, agent_id)
        actions = self.before_first_step(actions)

        def losses(agent_id: str, rows: set[int]) -> Iterator[Tensor]:
            if self.policies_learn:
                yield from self.policy_losses(agent_id, actions[agent_id], rows, advantages[agent_id])  # (2)
            yield from self.own_critics[agent_id].losses(records[agent_id], rows)  # (3)

        for rows in self.minibatches(len(batch.trajectories), self.num_epochs):
            for name, members in self.policy_learners.items():
                parts = chain.from_iterable(losses(agent_id, rows) for agent_id in members)
                self.optimize(name, parts, f"loss/actor_critic/{name}")
