"""A sum of two critics: state features, and a language model on what they leave over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from torch import Tensor, nn

from collm.critics.base import Critic, Learner, StateSource
from collm.critics.features import FeaturesCritic
from collm.critics.histories import HistoryEncoder
from collm.critics.language_model import LanguageModelCritic
from collm.trajectory import RolloutBatch


class SumCritic(Critic):
    """V = V_features(s) + V_rest(h), where the second critic regresses on targets less the values of the first.

    For tasks whose features are poor: what a few numbers say is known at once, and the language model learns the rest.
    Before it has learned anything it says 0.

    Args:
        features: The critic on state features.
        rest: The critic of what they leave over; it may read the history, the state, or both.
    """

    def __init__(self, features: FeaturesCritic | None = None, rest: LanguageModelCritic | None = None):
        super().__init__()
        parts = {"features": features or FeaturesCritic(), "rest": rest or LanguageModelCritic()}
        self.parts = cast("Mapping[str, Critic]", nn.ModuleDict(parts))
        self.learning_rate = self.parts["rest"].learning_rate

    def attach(
        self,
        name: str,
        agent_ids: Sequence[str],
        learner: Learner,
        encoder_class: type[HistoryEncoder] = HistoryEncoder,
    ) -> None:
        super().attach(name, agent_ids, learner, encoder_class)
        for part in self.parts.values():
            part.attach(name, agent_ids, learner, encoder_class)

    def check(self, environment: StateSource) -> None:
        for part in self.parts.values():
            part.check(environment)

    def load(self) -> None:
        self.parts["rest"].load()

    def trainable_parameters(self) -> list[nn.Parameter]:
        return self.parts["rest"].trainable_parameters()

    def values(self, batch: RolloutBatch) -> Tensor:
        return self.parts["features"].values(batch) + self.parts["rest"].values(batch)

    def update(self, batch: RolloutBatch, values: Tensor, targets: Tensor) -> None:
        known = self.parts["features"].values(batch)  # as they were, before they learn
        self.parts["features"].update(batch, known, targets)
        self.parts["rest"].update(batch, values - known, targets - known)

    def checkpoint(self) -> dict[str, Any]:
        return {name: part.checkpoint() for name, part in self.parts.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        for name, part in self.parts.items():
            part.restore(state.get(name, {}))
