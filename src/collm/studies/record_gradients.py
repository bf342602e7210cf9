"""Measures the policy gradient of each task at fixed policies, without applying it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import lightning as L
import torch
from torch import Tensor

from collm.errors import ConfigurationError
from collm.packing import TokenSequence
from collm.runtime.checks import Count, CountOrZero, Range, checked
from collm.runtime.files import read_file, replacing, unreadable
from collm.trajectory import RolloutBatch


class MeasureGradients(L.Callback):
    """Freezes the policies, trains the critics for some rollouts, then measures gradients on the next rollouts.

    Everything else is as in training: the size of rollouts and the computation of advantages. The gradient of a task is
    that of the mean policy loss over its episodes, for all agents together; tasks are sampled independently. At the end
    of `fit` the callback writes a file with, for n tasks and P weights: `gram` [n, n], inner products of the gradients;
    `dots` [n], inner products with the reference; `mean` [P]; and `episodes_per_task`. The n x P gradients have to fit
    in main memory.

    Args:
        path: File to write.
        policies: Checkpoint of a run with the same agents, trained by any method, whose policies are used; null for
            the initial weights.
        fit_rollouts: Rollouts on which critics are trained, if the method has critics.
        measured_rollouts: Rollouts that are measured after them; then the run ends.
        reference: File that another run of this callback wrote at the same policy.
        data_seed: Seed of the rollouts instead of that of the run, so that they are independent of other rollouts.
    """

    @checked
    def __init__(
        self,
        path: str,
        policies: str | None = None,
        fit_rollouts: CountOrZero = 0,
        measured_rollouts: Count = 32,
        reference: str | None = None,
        data_seed: Annotated[int, Range(0, 2**62, whole=True)] | None = None,
    ):
        self.path = path
        self.data_seed = data_seed
        self.policies = policies
        self.fit_rollouts = fit_rollouts
        self.measured_rollouts = measured_rollouts
        self.reference = reference
        self._scored: dict[str, tuple[Sequence[TokenSequence], Tensor]] = {}  # data of each agent's loss
        self._gradients: list[Tensor] = []
        self._episodes = 0
        self._rollouts = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        if getattr(pl_module, "critics_share_weights", False):
            raise ConfigurationError(
                f"{type(pl_module).__name__} computes values with the policies' weights, so they cannot be trained "
                "while the policies are frozen; use CoLLMDC."
            )
        if trainer.world_size > 1:
            raise ConfigurationError("gradients are measured by one process; set trainer.devices to 1.")
        if not getattr(pl_module, "critics", None):
            self.fit_rollouts = 0
        if self.data_seed is not None:
            trainer.datamodule.seed = self.data_seed  # type: ignore[attr-defined]
        if self.policies is not None:
            take_policies(pl_module, self.policies)
        pl_module.policy_update_hook = self.keep

    def on_fit_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        pl_module.policy_update_hook = None
        pl_module.frozen.clear()

    def keep(self, sequences: Mapping[str, Sequence[TokenSequence]], advantages: Mapping[str, Tensor]) -> None:
        """Store the data of the policy losses instead of updating the policies."""
        self._scored = {agent_id: (own, advantages[agent_id]) for agent_id, own in sequences.items()}

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        if self._rollouts >= self.fit_rollouts:
            pl_module.frozen |= set(getattr(pl_module, "critics", {}))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: RolloutBatch, batch_idx: int
    ) -> None:
        if self._rollouts >= self.fit_rollouts:
            if set(self._scored) != set(chain.from_iterable(pl_module.policy_learners.values())):
                raise ConfigurationError("the policies were not updated while measuring; lower model.critic_warmup.")
            for group in batch.groups.unique().tolist():
                rows = set((batch.groups == group).nonzero().flatten().tolist())
                self._gradients.append(self.gradient(pl_module, rows))
                self._episodes += len(rows)
        self._scored = {}
        self._rollouts += 1
        if self._rollouts == self.fit_rollouts + self.measured_rollouts:
            trainer.should_stop = True

    def gradient(self, pl_module: Any, rows: set[int]) -> Tensor:
        """Negative gradient of the mean loss over `rows`, with the weights of all agents in one vector, [P]."""
        pieces = []
        for name, members in pl_module.policy_learners.items():
            weights = [weight for weight in pl_module.learners[name] if weight.requires_grad]
            total = [torch.zeros_like(weight) for weight in weights]
            for agent_id in members:
                sequences, advantages = self._scored[agent_id]
                for loss in pl_module.policy_losses(agent_id, sequences, rows, advantages, log=False):
                    found = torch.autograd.grad(loss, weights, allow_unused=True)
                    total = [old if new is None else old - new for old, new in zip(total, found, strict=True)]
            pieces += [part.flatten().float().cpu() for part in total]
        return torch.cat(pieces)

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
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


def take_policies(pl_module: Any, path: str) -> None:
    """Load only the agents' weights of a checkpoint."""
    if not Path(path).is_file():
        raise ConfigurationError(f"checkpoint {path!r} does not exist; give the path of a .ckpt file.")
    wanted = {id(weight) for name in pl_module.policy_learners for weight in pl_module.learners[name]}
    names = {name for name, weight in pl_module.named_parameters(remove_duplicate=False) if id(weight) in wanted}
    state = read_file(path).get("state_dict")
    if not isinstance(state, dict):
        raise unreadable(path, "there is no 'state_dict' in it")
    missing = sorted(names - set(state))
    if missing:
        raise ConfigurationError(
            f"checkpoint {path!r} lacks {len(missing)} weights of the policies, such as {missing[0]!r}; use a "
            "checkpoint of the same agents and models."
        )
    pl_module.load_state_dict({name: state[name] for name in names}, strict=False)
