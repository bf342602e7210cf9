"""The interface of critics: they give values before an update, and learn from value targets.

A critic is used in training only. It may take anything that precedes the joint action as input: the history of one
agent (CoLLM-DC), the joint history (CoLLM-CC), or the state of the environment. To add one, subclass `Critic` in a new
file and set `model.critic` to the class in a yaml file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from collm.critics.histories import HistoryEncoder
from collm.errors import ConfigurationError
from collm.models.backbone import Backbone
from collm.models.specs import ModelSpec
from collm.objectives import next_turn
from collm.packing import SequenceBatch, TokenSequence
from collm.trajectory import RolloutBatch


class Learner(Protocol):
    """The attributes and methods that a critic uses of its algorithm."""

    device: torch.device
    discount: float
    parameters_mode: str
    critics_share_weights: bool
    """Whether critics are value heads on the networks of the policies."""
    specs: Mapping[str, ModelSpec]
    """The language model of each agent."""

    def backbone(self, name: str, spec: ModelSpec, adapter: str | None) -> Backbone:
        """The language model of learner `name`; learners share models if `model.parameters` is `lora`."""

    def minibatches(self, num_rows: int, num_epochs: int) -> Iterator[set[int]]:
        """The rows (trajectories) of each optimizer step."""

    def serves_first_step(self, sequences: Sequence[TokenSequence]) -> bool:
        """Whether one forward pass over `sequences` may be kept for the first optimizer step on them."""

    def micro_batches(
        self, sequences: Iterable[TokenSequence], rows: set[int], network: Any
    ) -> Iterator[SequenceBatch]:
        """The sequences of `rows`, padded, in batches that fit into memory."""

    def optimize(self, name: str, losses: Iterable[Tensor], metric: str) -> None:
        """One optimizer step on the sum of `losses`."""


class StateSource(Protocol):
    """The attributes of the environment that a critic checks before any weights load."""

    horizon: int

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the state features; empty if the environment has none."""

    @property
    def has_state_text(self) -> bool:
        """Whether the environment describes its states as text."""


class Critic(nn.Module, ABC):
    """Estimates V(h_t), the expected discounted return from turn t on, for one or several agents.

    The instance passed to an algorithm is a template, which CoLLM-DC copies for every agent. `attach` assigns a copy to
    an algorithm and its agents, and `load` loads the weights.

    Attributes:
        name: Name of its optimizer and prefix of its metrics.
        agent_ids: The agents whose histories are its input.
        learning_rate: Learning rate of its optimizer; None for a critic without an optimizer.
        reads_text: Whether it can give a value at any token position of a history, as a language model can.
        depends_on: What its values depend on, as in the equations: `h`, the history, `s`, the state, or `h, s`.
    """

    name: str
    agent_ids: tuple[str, ...]
    learning_rate: float | None = None
    reads_text: bool = False
    depends_on: str = "h"

    def attach(
        self,
        name: str,
        agent_ids: Sequence[str],
        learner: Learner,
        encoder_class: type[HistoryEncoder] = HistoryEncoder,
    ) -> None:
        """Assign this critic to `learner` under `name`, before any weights load.

        Args:
            name: Name of its optimizer and prefix of its metrics.
            agent_ids: The agents whose histories are its input.
            learner: The algorithm that it belongs to.
            encoder_class: Encoder of histories, which sets the token positions at which the algorithm needs values; by
                default one before each joint action.

        Raises:
            ConfigurationError: The critic does not give the values that the algorithm needs.
        """
        if encoder_class is not HistoryEncoder and not self.reads_text:
            raise ConfigurationError(
                f"model.critic is a {type(self).__name__}, but {type(learner).__name__} needs values of actions, which "
                "only a critic that reads text gives; use LanguageModelCritic."
            )
        self.encoder_class = encoder_class
        self.name, self.agent_ids = name, tuple(agent_ids)
        self._learner = [learner]  # in a list, so that the algorithm is not registered as a submodule of its critic
        self.attached()

    def attached(self) -> None:  # noqa: B027 (most critics serve any agents)
        """Runs at the end of `attach`; raises `ConfigurationError` for agents that this critic cannot serve."""

    @property
    def learner(self) -> Learner:
        return self._learner[0]

    @property
    def centralized(self) -> bool:
        """Whether this critic serves all agents."""
        return len(self.agent_ids) == len(self.learner.specs)

    def refuse_individual(self) -> None:
        """Raise `ConfigurationError` if a critic on the state is assigned to one of several agents."""
        if not self.centralized:
            raise ConfigurationError(
                f"model.critic is a {type(self).__name__} on the state of the environment, which is the same for all "
                f"agents, but {type(self.learner).__name__} has one critic per agent; use CoLLMCC."
            )

    def check(self, environment: StateSource) -> None:  # noqa: B027 (most critics need nothing of the environment)
        """Raise `ConfigurationError` if `environment` lacks an input of this critic; runs before any weights load."""

    def load(self) -> None:  # noqa: B027 (most critics without a language model load nothing)
        """Load the weights."""

    def trainable_parameters(self) -> list[nn.Parameter]:
        """The parameters that its optimizer updates; empty for a critic without an optimizer."""
        return []

    def initialize(self, mean_return: Tensor) -> None:  # noqa: B027 (only critics that start as a constant use it)
        """Initialize all values to the mean discounted return of the first rollout, []."""

    def knows(self, batch: RolloutBatch) -> bool:
        """Whether it can give values for `batch`; only an oracle needs more than every batch holds."""
        return True

    @abstractmethod
    def values(self, batch: RolloutBatch) -> Tensor:
        """V(h_t) at the turns of `batch`, without gradients; it does not change the critic.

        Returns:
            Values, 0 at masked turns, [B, T]; [B, T, K] if the encoder defines K values per turn (`num_kinds`).
        """

    def differentiable_values(self, batch: RolloutBatch) -> Tensor:
        """`values` for `update`, with the graph of their forward pass if it can serve the first optimizer step.

        Detach them before any other use. They save `update` a forward pass, and change nothing of its result.
        """
        return self.values(batch)

    def next_values(self, batch: RolloutBatch, values: Tensor) -> Tensor:
        """V(h_{t+1}); 0 after the last turn of an episode, as values do not bootstrap beyond the horizon.

        Args:
            batch: The trajectories behind `values`.
            values: V(h_t), [B, T].

        Returns:
            Values of the next turn, [B, T].
        """
        return next_turn(values, batch.turn_mask)

    @abstractmethod
    def update(self, batch: RolloutBatch, values: Tensor, targets: Tensor) -> None:
        """Regress on value targets, which have no gradient.

        Args:
            batch: The latest rollout.
            values: The result of `values(batch)` or `differentiable_values(batch)` before the update.
            targets: Value targets, [B, T]; masked turns are ignored.
        """

    def checkpoint(self) -> dict[str, Any]:
        """State that an exact resume needs besides parameters and buffers; a collective call on all ranks."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:  # noqa: B027 (weights and buffers are restored elsewhere)
        """Restore the state that `checkpoint` returned."""
