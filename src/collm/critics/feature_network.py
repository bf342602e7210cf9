"""A critic on numbers of the true state: a small network, for values that are not nearly linear in them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from collm.critics.base import StateSource
from collm.critics.features import StateCritic, row_weights
from collm.errors import ConfigurationError
from collm.runtime.checks import COUNT, POSITIVE, check_numbers
from collm.runtime.collectives import gather_objects, num_ranks, rank, sum_over_ranks
from collm.trajectory import RolloutBatch


class FeatureNetworkCritic(StateCritic):
    """V(s) by a multilayer perceptron on the inputs of `FeaturesCritic`, trained on the returns of the last rollouts.

    Inputs and returns are standardized by those of the rollouts it keeps. The values of a rollout come from earlier
    ones alone; the first rollout has, turn by turn, the mean return of its other groups. Where values are nearly linear
    in the features, `FeaturesCritic` is ahead: it needs fewer rollouts and cannot be trained for too long.

    Args:
        hidden_sizes: Units of each hidden layer, tanh; by default one layer of 32.
        learning_rate: Step size.
        memory: Rollouts that are kept to learn from, the newest one included.
        steps: Optimizer steps per rollout, each on all turns of one part of what is kept.
        parts: How many such parts there are.
    """

    def __init__(
        self,
        hidden_sizes: list[int] | None = None,
        learning_rate: float = 3e-3,
        memory: int = 16,
        steps: int = 20,
        parts: int = 4,
    ):
        super().__init__()
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
        nn.init.zeros_(last.weight)  # at first all values are the mean return
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
        """What the network says of inputs [..., D], in units of returns as kept, [...]."""
        first = next(self.network.parameters())
        return self.network(((inputs - self.mean[:-1]) / self.scale[:-1]).to(first)).squeeze(-1)

    def update(self, batch: RolloutBatch, values: Tensor, targets: Tensor) -> None:
        """Keep the rollout and learn from all that are kept; `values` and `targets` are not used."""
        mask = batch.turn_mask.cpu()
        weights = row_weights(batch)[:, None].expand(mask.shape)
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
        """Measure inputs and returns [n, D + 1] in their deviations from the mean, of all ranks together."""
        count = self.summed(weights.sum()).clamp(min=1e-9)
        self.mean = self.summed((weights[:, None] * rows).sum(0)) / count
        deviation = (self.summed((weights[:, None] * (rows - self.mean).square()).sum(0)) / count).sqrt()
        self.scale = torch.where(deviation > 1e-6 * self.mean.abs() + 1e-12, deviation, 1.0)

    def losses(self, inputs: Tensor, returns: Tensor, weights: Tensor) -> Iterator[Tensor]:
        """The mean squared error over the turns of all ranks, in standardized units."""
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
        else:  # other processes share out the turns of each rollout anew
            together = [
                [torch.cat(tensors) for tensors in zip(*rollout, strict=True)] for rollout in zip(*parts, strict=True)
            ]
            rollouts = [[tensor[rank() :: num_ranks()] for tensor in rollout] for rollout in together]
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
