"""A sum of two critics: one on state features, and a language model on the residual."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from collm.critics.base import Critic, StateSource
from collm.critics.features import FeaturesCritic
from collm.critics.language_model import LanguageModelCritic
from collm.trajectory import RolloutBatch


class SumCritic(Critic):
    """V = V_features(s) + V_rest(h), where the second critic regresses on targets minus the values of the first.

    Use it if state features explain only a part of the returns: the feature critic fits that part in a few rollouts,
    and the language model learns the residual, which it predicts as 0 at the start.

    Args:
        features: The critic on state features; a `FeaturesCritic` with its defaults by default.
        rest: The critic of the residual, on the history, the state, or both; a `LanguageModelCritic` with its defaults
            by default.
    """

    depends_on = "h, s"

    def __init__(self, features: FeaturesCritic | None = None, rest: LanguageModelCritic | None = None):
        super().__init__()
        parts = {"features": features or FeaturesCritic(), "rest": rest or LanguageModelCritic()}
        self.parts = cast("Mapping[str, Critic]", nn.ModuleDict(parts))
        self.learning_rate = self.parts["rest"].learning_rate

    def attached(self) -> None:
        for part in self.parts.values():
            part.attach(self.name, self.agent_ids, self.learner, self.encoder_class)

    def check(self, environment: StateSource) -> None:
        for part in self.parts.values():
            part.check(environment)

    def load(self) -> None:
        self.parts["rest"].load()

    def trainable_parameters(self) -> list[nn.Parameter]:
        return self.parts["rest"].trainable_parameters()

    def values(self, batch: RolloutBatch) -> Tensor:
        return self.parts["features"].values(batch) + self.parts["rest"].values(batch)

    def differentiable_values(self, batch: RolloutBatch) -> Tensor:
        return self.parts["features"].values(batch) + self.parts["rest"].differentiable_values(batch)

    def update(self, batch: RolloutBatch, values: Tensor, targets: Tensor) -> None:
        feature_values = self.parts["features"].values(batch)  # before the update
        self.parts["features"].update(batch, feature_values, targets)
        self.parts["rest"].update(batch, values - feature_values, targets - feature_values)

    def checkpoint(self) -> dict[str, Any]:
        return {name: part.checkpoint() for name, part in self.parts.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        for name, part in self.parts.items():
            part.restore(state.get(name, {}))
