"""Algorithms without a trainer, for tests of a single update."""

from __future__ import annotations

from typing import TypeVar

from collm.algorithms.base import MultiAgentModule

M = TypeVar("M", bound=MultiAgentModule)


def without_trainer(module: M) -> M:
    """The module with weights and optimizers; what it logs is in `module.logged`, by name and in order."""
    module.configure_model()
    optimizers, _ = module.configure_optimizers()
    module.optimizers = lambda: optimizers
    module.manual_backward = lambda loss: loss.backward()
    module.logged = []
    module.log = lambda name, value, **_: module.logged.append((name, float(value)))
    return module
