"""What every critic offers to an algorithm: values before an update, and learning from value targets.

A critic is used in training only and may read anything that precedes the joint action it judges: the history of one
agent (CoLLM-DC), the joint history (CoLLM-CC), or the state of the environment. To add one: subclass `Critic` in a new
file and name the class under `model.critic` in a yaml file.
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
from collm.packing import SequenceBatch, TokenSequence
from collm.returns import next_turn
from collm.trajectory import RolloutBatch


class Learner(Protocol):
    """What a critic uses of the algorithm it belongs to."""

    device: torch.device
    discount: float
    parameters_mode: str
    critics_share_weights: bool
    """Whether critics stand on the weights of policies."""
    specs: Mapping[str, ModelSpec]
    """The language model of each agent."""

    def backbone(self, name: str, spec: ModelSpec, adapter: str | None) -> Backbone:
        """The language model called `name`; models are shared as `model.parameters` says."""
        ...

    def minibatches(self, num_rows: int, num_epochs: int) -> Iterator[set[int]]:
        """The rows of each optimizer step."""
        ...

    def micro_batches(
        self, sequences: Iterable[TokenSequence], rows: set[int], network: Any
    ) -> Iterator[SequenceBatch]:
        """The sequences of `rows`, padded, in batches that fit into memory."""
        ...

    def optimize(self, name: str, losses: Iterable[Tensor], metric: str) -> None:
        """One optimizer step on the sum of `losses`."""
        ...


class Critic(nn.Module, ABC):
    """Estimates V(h_t), the expected discounted return from turn t on, for one or several agents.

    An instance that is passed to an algorithm is a template: CoLLM-DC copies it for every agent. Weights are loaded by
    `load`, and `attach` tells a critic whose it is.

    Attributes:
        name: Name of its optimizer and prefix of its metrics.
        agent_ids: The agents whose histories it may read.
        learning_rate: Step size of its optimizer; None for a critic without one.
        reads_text: Whether it gives a value at any place of a history, as a language model does.
    """

    name: str
    agent_ids: tuple[str, ...]
    learning_rate: float | None = None
    reads_text: bool = False

    def attach(
        self,
        name: str,
        agent_ids: Sequence[str],
        learner: Learner,
        encoder_class: type[HistoryEncoder] = HistoryEncoder,
    ) -> None:
        """Make it the critic `name` of `learner`; nothing is loaded yet.

        Args:
            name: Name of its optimizer and prefix of its metrics.
            agent_ids: The agents whose histories it may read.
            learner: The algorithm that it belongs to.
            encoder_class: Where in a history the algorithm needs values, if not before each joint action alone.

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

    @property
    def learner(self) -> Learner:
        return self._learner[0]

    def load(self) -> None:  # noqa: B027 (most critics without a language model load nothing)
        """Load the weights."""

    def trainable_parameters(self) -> list[nn.Parameter]:
        """What its optimizer steps; empty for a critic without an optimizer."""
        return []

    def initialize(self, mean_return: Tensor) -> None:  # noqa: B027 (only critics that start as a constant use it)
        """Begin with all values at the mean discounted return of the first rollout, []."""

    @abstractmethod
    def values(self, batch: RolloutBatch) -> Tensor:
        """V(h_t) at the turns of `batch`, without gradients; it changes nothing.

        Returns:
            Values, [B, T]; [B, T, K] from a critic of K kinds of values, which says what they are. 0 at masked turns.
        """

    def next_values(self, batch: RolloutBatch, values: Tensor) -> Tensor:
        """V(h_{t+1}), 0 after the last turn of an episode, as there is no bootstrap beyond the horizon.

        Args:
            batch: The trajectories that `values` are of.
            values: V(h_t), [B, T].

        Returns:
            Values of the next turn, [B, T].
        """
        return next_turn(values, batch.turn_mask)

    @abstractmethod
    def update(self, batch: RolloutBatch, values: Tensor, targets: Tensor) -> None:
        """Learn from fixed targets.

        Args:
            batch: The newest rollout.
            values: What `values(batch)` returned before the update.
            targets: Value targets, [B, T]; those at masked turns do not count.
        """

    def checkpoint(self) -> dict[str, Any]:
        """State besides weights and buffers that an exact resume needs; all ranks call it together."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:  # noqa: B027 (weights and buffers are restored elsewhere)
        """Take over what `checkpoint` returned when the checkpoint was written."""
