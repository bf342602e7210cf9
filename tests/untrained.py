"""Algorithms without a trainer and critics without an algorithm, for tests of a single step."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, TypeVar

import torch

from collm.algorithms.base import MultiAgentModule
from collm.critics.histories import HistoryEncoder
from collm.critics.language_model import LanguageModelCritic
from collm.models.backbone import Backbone
from collm.models.specs import ModelSpec

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


def lone_critic(
    folder: str,
    agent_ids: Sequence[str],
    encoder_class: type[HistoryEncoder] = HistoryEncoder,
    backbone: Backbone | None = None,
    context_length: int | None = None,
    **options: Any,
) -> LanguageModelCritic:
    """A language-model critic without an algorithm, whose head gives every history a value of its own."""
    critic = LanguageModelCritic(ModelSpec(folder, context_length=context_length), **options)
    specs = {agent_id: ModelSpec(folder) for agent_id in agent_ids}
    critic.attach(
        "critic",
        agent_ids,
        SimpleNamespace(specs=specs, parameters_mode="separate", critics_share_weights=False),
        encoder_class,
    )
    adapter = backbone.adapters[0] if backbone and backbone.adapters else None
    critic.read_with(backbone or Backbone(folder, "float32"), adapter, folder)
    torch.manual_seed(0)
    torch.nn.init.normal_(critic.network.head.weight)  # a fresh head gives all histories one value
    return critic.eval()
