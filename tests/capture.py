"""A callback that keeps the parameters from before and after a run, and whose they are."""

from __future__ import annotations

import lightning as L
from torch import Tensor


class Capture(L.Callback):
    """Parameters of the last run, by name: `before` and `after` it, and `learner`, whose optimizer holds them."""

    before: dict[str, Tensor] = {}
    after: dict[str, Tensor] = {}
    learner: dict[str, str] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        Capture.before = {name: weight.detach().clone() for name, weight in pl_module.named_parameters()}
        owners = {id(weight): name for name, weights in pl_module.learners.items() for weight in weights}
        Capture.learner = {name: owners.get(id(weight), "") for name, weight in pl_module.named_parameters()}

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        Capture.after = {name: weight.detach().clone() for name, weight in pl_module.named_parameters()}

    @classmethod
    def moved(cls) -> set[str]:
        """Names of the parameters that are not what they were."""
        return {name for name, weight in cls.after.items() if not weight.equal(cls.before[name])}

    @classmethod
    def owned_by(cls, *learners: str) -> set[str]:
        """Names of the parameters that these learners train."""
        return {name for name, owner in cls.learner.items() if owner in learners}
