"""A critic on numeric features of the state: a small network, for values that are not nearly linear in them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from collm.critics.base import StateSource
from collm.critics.features import StateCritic
from collm.errors import ConfigurationError
from collm.runtime.checks import COUNT, POSITIVE, check_numbers
from collm.runtime.collectives import gather_objects, num_ranks, rank, sum_over_ranks
from collm.trajectory import RolloutBatch


class FeatureNetworkCritic(StateCritic):
    """V(s) by a multilayer perceptron on the inputs of `FeaturesCritic`, trained on the returns of the last rollouts.

    Inputs and returns are standardized with the mean and deviation of the kept rollouts. The values of a rollout come
    from a network trained on earlier rollouts only. In the first rollout, the value at a turn is the mean return of the
    other groups at that turn. If values are nearly linear in the features, prefer `FeaturesCritic`: it needs fewer
    rollouts and does not overfit with the number of steps.

    Args:
        hidden_sizes: Number of units of each hidden layer, with tanh activations; by default one layer of 32.
        learning_rate: Learning rate of the network.
        memory: Number of rollouts to train on: the latest one and the ones before it.
        steps: Optimizer steps per rollout, each on one random part of the turns in memory.
        parts: Number of parts into which each pass splits the turns in memory.
        features: Names of the features that are read; by default all that the environment has.
    """

    def __init__(
        self,
        hidden_sizes: list[int] | None = None,
        learning_rate: float = 3e-3,
        memory: int = 16,
        steps: int = 20,
        parts: int = 4,
        features: list[str] | None = None,
    ):
        super().__init__(features)
        self.hidden_sizes = [32] if hidden_sizes is None else list(hidden_sizes)
        self.learning_rate = learning_rate
        self.steps = steps
        self.parts = parts
        self.memory = memory
        check_numbers("critic", self, memory=COUNT, steps=COUNT, parts=COUNT, learning_rate=POSITIVE)
        if not self.hidden_sizes or min(self.hidden_sizes) < 1:
            raise ConfigurationError(f"critic.hidden_sizes is {hidden_sizes}; list the units of each hidden layer.")
        self.kept: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=memory)  # inputs, returns and weights, [n, ...]

    def check(self, environment: StateSource) -> None:
        super().check(environment)
        if not hasattr(self, "mean"):
            self.mean = torch.zeros(self.num_inputs + 1, dtype=torch.float64)  # of inputs and returns
            self.scale = torch.ones(self.num_inputs + 1, dtype=torch.float64)

    def load(self) -> None:
        sizes = [self.num_inputs, *self.hidden_sizes]
        layers = [part for pair in zip(sizes, sizes[1:], strict=False) for part in (nn.Linear(*pair), nn.Tanh())]
        last = nn.Linear(sizes[-1], 1)
        nn.init.zeros_(last.weight)  # so that all initial values are the mean return
        nn.init.zeros_(last.bias)
        self.network = nn.Sequential(*layers, last)

    def trainable_parameters(self) -> list[nn.Parameter]:
        return list(self.network.parameters())

    @torch.no_grad()
    def values(self, batch: RolloutBatch) -> Tensor:
        if not self.kept:
            return self.mean_of_others(batch).to(batch.rewards)
        values = self.mean[-1] + self.scale[-1] * self.outputs(self.inputs(batch)).double().cpu()
        return torch.where(batch.turn_mask, values.to(batch.rewards), 0.0)

    def outputs(self, inputs: Tensor) -> Tensor:
        """Outputs of the network for raw inputs [..., D], in units of standardized returns, [...]."""
        first = next(self.network.parameters())
        with torch.autocast(first.device.type, enabled=False):  # which would round values
            return self.network(((inputs - self.mean[:-1]) / self.scale[:-1]).to(first)).squeeze(-1)

    def update(self, batch: RolloutBatch, values: Tensor, targets: Tensor) -> None:
        """Store the rollout and train on all stored ones, on their returns; `values` and `targets` are not used."""
        mask = batch.turn_mask.cpu()
        weights = batch.weights.double().cpu()[:, None].expand(mask.shape)
        if not self.summed(weights[mask].sum()):  # no turn was played on any rank
            return
        self.kept.append((self.inputs(batch)[mask], self.returns(batch)[mask], weights[mask]))
        inputs, returns, weights = (torch.cat(parts) for parts in zip(*self.kept, strict=True))
        self.standardize(torch.cat([inputs, returns[:, None]], dim=1), weights)
        for step in range(self.steps):
            if step % self.parts == 0:
                order = torch.randperm(len(inputs))
            rows = order[step % self.parts :: self.parts]
            self.learner.optimize(
                self.name, self.losses(inputs[rows], returns[rows], weights[rows]), f"loss/{self.name}"
            )

    def standardize(self, rows: Tensor, weights: Tensor) -> None:
        """Set mean and standard deviation to those of inputs and returns, `rows` [n, D + 1], over all ranks."""
        count = self.summed(weights.sum()).clamp(min=1e-9)
        self.mean = self.summed((weights[:, None] * rows).sum(0)) / count
        deviation = (self.summed((weights[:, None] * (rows - self.mean).square()).sum(0)) / count).sqrt()
        self.scale = torch.where(deviation > 1e-6 * self.mean.abs() + 1e-12, deviation, 1.0)

    def losses(self, inputs: Tensor, returns: Tensor, weights: Tensor) -> Iterator[Tensor]:
        """The mean squared error over the turns of all ranks, in units of standardized returns."""
        device = next(self.network.parameters()).device
        count = sum_over_ranks(weights.sum().float(), device).clamp(min=1e-9)
        outputs = self.outputs(inputs)
        targets = ((returns - self.mean[-1]) / self.scale[-1]).to(outputs)
        yield (weights.to(outputs) * (outputs - targets).square()).sum() / count

    def checkpoint(self) -> dict[str, Any]:
        return {"names": list(self.names), "mean": self.mean, "scale": self.scale, "kept": gather_objects([*self.kept])}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.check_names(state)
        self.mean, self.scale = (self.checked(name, state[name], self.mean.shape) for name in ("mean", "scale"))
        parts = state["kept"]
        if len(parts) == num_ranks():
            rollouts = parts[rank()]
        else:  # the number of processes changed: redistribute the turns of each rollout
            merged = [
                [torch.cat(tensors) for tensors in zip(*rollout, strict=True)] for rollout in zip(*parts, strict=True)
            ]
            rollouts = [[tensor[rank() :: num_ranks()] for tensor in rollout] for rollout in merged]
        self.kept.clear()
        for inputs, returns, weights in rollouts:
            size = len(returns)
            self.kept.append(
                (
                    self.checked("inputs", inputs, (size, self.num_inputs)),
                    self.checked("returns", returns, (size,)),
                    self.checked("weights", weights, (size,)),
                )
            )
