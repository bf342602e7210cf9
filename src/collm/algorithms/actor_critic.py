"""The base class of actor-critic methods: it holds critics, computes value targets and logs both."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from collm.algorithms.base import MultiAgentModule
from collm.critics.base import Critic, Learner
from collm.critics.histories import HistoryEncoder
from collm.critics.language_model import LanguageModelCritic
from collm.objectives import generalized_advantages
from collm.returns import discounted_returns, explained_variance
from collm.runtime.checks import COUNT_OR_ZERO, SHARE, check_numbers
from collm.runtime.collectives import on_all_rows, sum_over_ranks
from collm.runtime.naming import NamedModules
from collm.trajectory import RolloutBatch


class ActorCritic(MultiAgentModule):
    """Agents that learn from the temporal-difference errors of one or more critics.

    Args:
        critic: The critic, by `class_path`; a language-model critic by default. Algorithms with one critic per agent
            make a copy of it for each agent.
        gae_lambda: Lambda of generalized advantage estimation, from 0 to 1: 0 gives the paper's one-step TD error, 1
            the Monte-Carlo return minus the value. Value targets use it too unless `critic_lambda` is set.
        critic_lambda: Lambda of the value targets, from 0 to 1; 1 regresses critics on Monte-Carlo returns. By default
            `gae_lambda`.
        critic_warmup: Number of rollouts at the start of training in which critics are updated and policies are not.
        kwargs: Arguments of every algorithm; see `MultiAgentModule` and `Agents`.
    """

    critics_share_weights = False  # True where critics are value heads on the policies' networks

    def __init__(
        self,
        critic: Critic | None = None,
        gae_lambda: float = 0.0,
        critic_lambda: float | None = None,
        critic_warmup: int = 0,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.critic_template = [critic or LanguageModelCritic()]  # in a list: the template itself is never trained
        self.gae_lambda = gae_lambda
        self.critic_lambda = gae_lambda if critic_lambda is None else critic_lambda
        self.critic_warmup = critic_warmup
        self.critics: NamedModules[Critic] = NamedModules()
        check_numbers("model", self, gae_lambda=SHARE, critic_lambda=SHARE, critic_warmup=COUNT_OR_ZERO)

    def add_critic(
        self, name: str, agent_ids: Sequence[str], encoder_class: type[HistoryEncoder] = HistoryEncoder
    ) -> Critic:
        """Add a critic for `agent_ids`; see `Critic.attach`. `configure_model` loads its weights."""
        critic = copy.deepcopy(self.critic_template[0])
        critic.attach(name, agent_ids, cast(Learner, self), encoder_class)
        self.critics[name] = critic
        return critic

    @property
    def critic(self) -> Critic:
        """The centralized critic, in algorithms that have one."""
        return self.critics["critic"]

    def setup(self, stage: str) -> None:
        super().setup(stage)
        for critic in self.critics.values():
            critic.check(self.trainer.datamodule.environment)  # type: ignore[attr-defined]

    def critic_names(self) -> list[str]:
        return list(self.critics)

    def networks(self) -> list[str]:
        if self.critics_share_weights:
            return super().networks()
        return super().networks() + [name for name, critic in self.critics.items() if critic.learning_rate is not None]

    def configure_model(self) -> None:
        if self.policies:
            return
        super().configure_model()
        for critic in self.critics.values():
            self.load_critic(critic)

    def load_critic(self, critic: Critic) -> None:
        """Load the weights of a critic and register the parameters that its optimizer updates."""
        critic.load()
        if weights := critic.trainable_parameters():
            self.learners[critic.name] = weights

    def learning_rates(self) -> dict[str, float]:
        rates = super().learning_rates()
        for name, critic in self.critics.items():
            if critic.learning_rate is not None and name in self.learners:
                rates[name] = critic.learning_rate
        return rates

    def gae(self, batch: RolloutBatch, values: Tensor, next_values: Tensor, gae_lambda: float | None = None) -> Tensor:
        """Generalized advantage estimates at `gae_lambda`, by default that of the run, [B, T].

        At lambda 0 they are the TD errors r_t + gamma V(h_{t+1}) - V(h_t).

        Args:
            batch: The rollout.
            values: V(h_t), [B, T].
            next_values: V(h_{t+1}), [B, T].
            gae_lambda: Weight of later TD errors, in [0, 1].
        """
        chosen = self.gae_lambda if gae_lambda is None else gae_lambda
        return generalized_advantages(batch.rewards, values, batch.turn_mask, self.discount, chosen, next_values)

    def value_targets(self, batch: RolloutBatch, values: Tensor, next_values: Tensor, advantages: Tensor) -> Tensor:
        """Regression targets of `values`, [B, T]: lambda-returns at `critic_lambda`, detached from the graph."""
        if self.critic_lambda != self.gae_lambda:
            advantages = self.gae(batch, values, next_values, self.critic_lambda)
        return advantages + values

    def log_critic(self, name: str, batch: RolloutBatch, values: Tensor, targets: Tensor) -> None:
        """Log mean value, mean target and explained variance of the values behind this update's advantages."""
        returns = discounted_returns(batch.rewards, batch.turn_mask, self.discount)
        explained, *by_turn = on_all_rows(explained_variance, values, returns, batch.turn_mask)
        self.log(f"{name}/explained_variance", explained)
        for turn, share in enumerate(by_turn, start=1):
            self.log(f"{name}/explained_variance/turn_{turn}", share)
        played = [values[batch.turn_mask].sum(), targets[batch.turn_mask].sum(), batch.turn_mask.float().sum()]
        value, target, count = sum_over_ranks(torch.stack(played), self.device)
        if count:
            self.log(f"{name}/value", value / count)
            self.log(f"{name}/target", target / count)

    def estimates(self, batch: RolloutBatch) -> dict[str, Tensor]:
        """The critics' values at the turns of `batch` and the advantages before `shape_advantages`, by name, [B, T]."""
        estimates: dict[str, Tensor] = {}
        for critic in (one for one in self.critics.values() if one.knows(batch)):
            whose = "" if critic.centralized else f"_{critic.agent_ids[0]}"
            values = critic.values(batch)
            estimates[f"V{whose}({critic.depends_on})"] = values
            estimates[f"advantage{whose}"] = self.gae(batch, values, critic.next_values(batch, values))
        return estimates

    @property
    def policies_learn(self) -> bool:
        """False while only critics warm up."""
        return self.num_rollouts > self.critic_warmup

    def initialize_critics(self, batch: RolloutBatch) -> None:
        """Initialize the value bias of critics to the mean return of the first rollout with a played turn."""
        returns = discounted_returns(batch.rewards, batch.turn_mask, self.discount)
        weights = batch.turn_mask * batch.weights[:, None]
        total, count = sum_over_ranks(torch.stack([(weights * returns).sum(), weights.sum()]), self.device)
        if count:
            for critic in self.critics.values():
                critic.initialize(total / count)

    def on_train_batch_start(self, batch: RolloutBatch, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        self.initialize_critics(batch)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["collm"]["critics"] = {name: critic.checkpoint() for name, critic in self.critics.items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        for name, critic in self.critics.items():
            critic.restore(checkpoint["collm"]["critics"].get(name, {}))
