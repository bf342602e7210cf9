"""Policy gradients at a fixed policy, task by task: what a method would have updated with, measured, not applied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from collm.errors import ConfigurationError
from collm.packing import TokenSequence
from collm.runtime.checks import COUNT, COUNT_OR_ZERO, Range, check_numbers
from collm.runtime.files import read_file, replacing, unreadable
from collm.trajectory import RolloutBatch


class MeasureGradients(L.Callback):
    """Holds the policies still, lets critics learn for some rollouts, then measures gradients on those that follow.

    Everything else is as in training: rollouts of the same size, advantages as the algorithm shapes them. The gradient
    of a task is that of the mean of the policy loss over its episodes, for all agents together; tasks are what is
    drawn independently. At the end of `fit` a file holds, for n tasks and P weights: `gram` [n, n], the products of
    their gradients; `dots` [n], those with the reference; `mean` [P]; and `episodes_per_task`. The n times P gradients
    have to fit in main memory.

    Args:
        path: File to write.
        policies: Checkpoint of a run with the same agents whose policies are taken, whatever it was trained with; null
            for the weights the run begins with.
        fit_rollouts: Rollouts in which critics learn, if there are any.
        measured_rollouts: Rollouts that are measured after them; then the run ends.
        reference: File that another run of this callback at the same policy has written.
        data_seed: Seed of the rollouts in place of that of the run, so that they are independent of others'.
    """

    def __init__(
        self,
        path: str,
        policies: str | None = None,
        fit_rollouts: int = 0,
        measured_rollouts: int = 32,
        reference: str | None = None,
        data_seed: int | None = None,
    ):
        self.path = path
        self.data_seed = data_seed
        self.policies = policies
        self.fit_rollouts = fit_rollouts
        self.measured_rollouts = measured_rollouts
        self.reference = reference
        check_numbers("MeasureGradients", self, fit_rollouts=COUNT_OR_ZERO, measured_rollouts=COUNT)
        check_numbers("MeasureGradients", self, data_seed=Range(0, 2**62, whole=True).or_none)
        self._scored: dict[str, tuple[Sequence[TokenSequence], Tensor]] = {}  # what each agent's loss is made of
        self._gradients: list[Tensor] = []
        self._episodes = 0
        self._rollouts = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if getattr(pl_module, "critics_share_weights", False):
            raise ConfigurationError(
                f"{type(pl_module).__name__} has its values on the policies' weights, so they cannot be learned while "
                "the policies are held still; use CoLLMDC."
            )
        if trainer.world_size > 1:
            raise ConfigurationError("gradients are measured by one process; set trainer.devices to 1.")
        if not getattr(pl_module, "critics", None):
            self.fit_rollouts = 0
        if self.data_seed is not None:
            trainer.datamodule.seed = self.data_seed
        if self.policies is not None:
            take_policies(pl_module, self.policies)
        pl_module.policy_update_hook = self.keep

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        pl_module.policy_update_hook = None
        pl_module.frozen.clear()

    def keep(self, sequences: Mapping[str, Sequence[TokenSequence]], advantages: Mapping[str, Tensor]) -> None:
        """Keep what the policy losses of the rollout are made of, in place of an update."""
        self._scored = {agent_id: (sequences[agent_id], advantages[agent_id]) for agent_id in sequences}

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if self._rollouts >= self.fit_rollouts:
            pl_module.frozen |= set(getattr(pl_module, "critics", {}))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: RolloutBatch, batch_idx: int
    ) -> None:
        if self._rollouts >= self.fit_rollouts:
            if set(self._scored) != set(pl_module.agent_ids):
                raise ConfigurationError("the policies were not updated while measuring; lower model.critic_warmup.")
            for group in batch.groups.unique().tolist():
                rows = set((batch.groups == group).nonzero().flatten().tolist())
                self._gradients.append(self.gradient(pl_module, rows))
                self._episodes += len(rows)
        self._scored = {}
        self._rollouts += 1
        if self._rollouts == self.fit_rollouts + self.measured_rollouts:
            trainer.should_stop = True

    def gradient(self, pl_module: L.LightningModule, rows: set[int]) -> Tensor:
        """Ascent direction of the mean over `rows`, all agents' weights in one row, [P]."""
        pieces = []
        for name, members in pl_module.team.items():
            weights = [weight for weight in pl_module.learners[name] if weight.requires_grad]
            total = [torch.zeros_like(weight) for weight in weights]
            for agent_id in members:
                sequences, advantages = self._scored[agent_id]
                for loss in pl_module.policy_losses(agent_id, sequences, rows, advantages, log=False):
                    found = torch.autograd.grad(loss, weights, allow_unused=True)
                    total = [old if new is None else old - new for old, new in zip(total, found, strict=True)]
            pieces += [part.flatten().float().cpu() for part in total]
        return torch.cat(pieces)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._rollouts < self.fit_rollouts + self.measured_rollouts or len(self._gradients) < 2:
            raise ConfigurationError(
                f"{len(self._gradients)} gradients were measured in {self._rollouts} rollouts; there must be two tasks "
                f"and {self.fit_rollouts + self.measured_rollouts} rollouts at least, so train for longer."
            )
        gradients = torch.stack(self._gradients)
        record = {
            "gram": (gradients @ gradients.T).double(),
            "mean": gradients.mean(0),
            "episodes_per_task": self._episodes / len(gradients),
            "rollout_tasks": len(gradients) / self.measured_rollouts,
        }
        if self.reference is not None:
            reference = read_file(self.reference)["mean"]
            record["dots"] = (gradients @ reference).double()
        with replacing(self.path) as unfinished:
            torch.save(record, unfinished)


def take_policies(pl_module: L.LightningModule, path: str) -> None:
    """Load the agents' weights of a checkpoint, and nothing else of it."""
    if not Path(path).is_file():
        raise ConfigurationError(f"checkpoint {path!r} does not exist; give the path of a .ckpt file.")
    wanted = {id(weight) for name in pl_module.team for weight in pl_module.learners[name]}
    names = {name for name, weight in pl_module.named_parameters(remove_duplicate=False) if id(weight) in wanted}
    state = read_file(path).get("state_dict")
    if not isinstance(state, dict):
        raise unreadable(path, "there is no 'state_dict' in it")
    missing = sorted(names - set(state))
    if missing:
        raise ConfigurationError(
            f"checkpoint {path!r} lacks {len(missing)} weights of the policies, {missing[0]!r} among them; use one of "
            "the same agents and models."
        )
    pl_module.load_state_dict({name: state[name] for name in names}, strict=False)
