"""What an algorithm writes into checkpoints and expects of them: what trains, and nothing that is frozen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
from torch import nn

from collm.errors import ConfigurationError
from collm.schedules import follow_learning_rates


class Checkpointed(L.LightningModule):
    """A module with several `learners` whose checkpoints hold only their weights."""

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
        kept = self._trainable_names()
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
        missing = sorted(self._trainable_names() - set(checkpoint["state_dict"]))
        if missing:
            raise ConfigurationError(
                f"the checkpoint lacks {len(missing)} weights that train here, {missing[0]!r} among them; use the "
                "configuration it was made with."
            )
        self.joint_samples = checkpoint["collm"]["joint_samples"]
        self.num_rollouts = checkpoint["collm"]["num_rollouts"]
        follow_learning_rates(checkpoint, checkpoint["collm"].get("learning_rates", {}), self.learning_rates())

    def _trainable_names(self) -> set[str]:
        trainable = {id(parameter) for parameters in self.learners.values() for parameter in parameters}
        return {name for name, weight in self.named_parameters(remove_duplicate=False) if id(weight) in trainable}
