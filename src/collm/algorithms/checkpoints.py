"""What an algorithm writes into checkpoints and expects of them: what trains, and what could not be had again.

Frozen weights that come from a folder or the hub are not written; those that were drawn at random are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
from torch import nn

from collm.errors import ConfigurationError
from collm.models.backbone import Backbone
from collm.schedules import follow_learning_rates


class Checkpointed(L.LightningModule):
    """A module with several `learners` whose checkpoints hold their weights."""

    agent_ids: tuple[str, ...]
    parameters_mode: str
    learners: dict[str, list[nn.Parameter]]  # what trains, by the name of its optimizer
    joint_samples: int
    num_rollouts: int

    def learning_rates(self) -> Mapping[str, float]:
        """Step size of each optimizer."""
        raise TypeError(f"{type(self).__name__} must say its learning rates")

    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree on before it can be continued."""
        return {"algorithm": type(self).__name__, "agent_ids": list(self.agent_ids), "parameters": self.parameters_mode}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        kept = self.stored_names()
        frozen = {name for name, _ in self.named_parameters(remove_duplicate=False)} - kept
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k not in frozen}
        rates = self.learning_rates()
        checkpoint["collm"] = {
            **self.identity(),
            "joint_samples": self.joint_samples,
            "num_rollouts": self.num_rollouts,
            "learning_rates": {name: rates[name] for name in self.learners},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        missing = sorted(self.stored_names() - set(checkpoint["state_dict"]))
        if missing:
            raise ConfigurationError(
                f"the checkpoint lacks {len(missing)} weights that this run needs, {missing[0]!r} among them; use the "
                "configuration it was made with."
            )
        self.joint_samples = checkpoint["collm"]["joint_samples"]
        self.num_rollouts = checkpoint["collm"]["num_rollouts"]
        follow_learning_rates(checkpoint, checkpoint["collm"].get("learning_rates", {}), self.learning_rates())

    def stored_names(self) -> set[str]:
        """Names of the weights in checkpoints: all that train, and frozen ones that were drawn at random."""
        needed = [weight for weights in self.learners.values() for weight in weights]
        needed += [w for one in self.modules() if isinstance(one, Backbone) and one.drawn for w in one.parameters()]
        ids = set(map(id, needed))
        return {name for name, weight in self.named_parameters(remove_duplicate=False) if id(weight) in ids}
