"""A critic on numeric features of the state: ridge regression in closed form.

Critics are used in training only, so the state can be their input (arXiv 2601.21972; centralized training with critics
on states: Lyu, Baisero, Xiao, Amato, arXiv 2201.01221 and 2408.14597). If a dozen numbers describe the progress of the
team, this critic needs far fewer episodes than a language model on the history, and no GPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from collm.critics.base import Critic, StateSource
from collm.errors import ConfigurationError
from collm.returns import discounted_returns
from collm.runtime.checks import POSITIVE, SHARE_ABOVE_ZERO, check_numbers
from collm.runtime.collectives import num_ranks, sum_over_ranks
from collm.trajectory import RolloutBatch

_CONSTANT = 1e-6  # a feature whose deviation is below this fraction of its mean is treated as constant
_LEAST_VARIANCE = 0.01  # smallest residual variance of one turn, as a fraction of that over all turns


class StateCritic(Critic):
    """Base class of critics on state features: collects them, and gives a baseline for the first rollout.

    Args:
        features: Names of the features that are read; by default all that the environment has.

    Attributes:
        names: Names of the features that are read, F of them; set by `check`.
        environment_names: Names of all features of the environment; set by `check`.
        horizon: Largest number of turns of an episode.
    """

    depends_on = "s"

    def __init__(self, features: Sequence[str] | None = None) -> None:
        super().__init__()
        self.chosen = features
        self.names: tuple[str, ...] = ()
        self.environment_names: tuple[str, ...] = ()
        self.horizon = 0

    def attached(self) -> None:
        self.refuse_individual()

    def check(self, environment: StateSource) -> None:
        self.environment_names, self.horizon = tuple(environment.feature_names), environment.horizon
        if not self.environment_names:
            raise ConfigurationError(
                f"model.critic is a {type(self).__name__}, but {type(environment).__name__} has no state "
                "features; implement `state_features`, or use LanguageModelCritic."
            )
        self.names = self.environment_names if self.chosen is None else tuple(self.chosen)
        unknown = [name for name in self.names if name not in self.environment_names]
        if unknown or not self.names or len(set(self.names)) < len(self.names):
            raise ConfigurationError(
                f"model.critic.features is {list(self.names)}; name some of the features of "
                f"{type(environment).__name__}, each once: {', '.join(self.environment_names)}."
            )

    @property
    def num_inputs(self) -> int:
        """D = 2 F + 1, the number of inputs of the regression."""
        return 2 * len(self.names) + 1

    def inputs(self, batch: RolloutBatch) -> Tensor:
        """Turns left, features, and features times turns left at every turn; 0 at turns not played, [B, T, D]."""
        inputs = torch.zeros(*batch.rewards.shape, self.num_inputs, dtype=torch.float64)
        for row, trajectory in enumerate(batch.trajectories):
            if not trajectory.turns:
                continue
            for index, turn in enumerate(trajectory.turns):
                self.check_features(turn.features, f"task {trajectory.task.task_id!r} before turn {index + 1}")
            read = [[turn.features[name] for name in self.names] for turn in trajectory.turns]
            features = torch.tensor(read, dtype=torch.float64)
            left = trajectory.horizon - torch.arange(len(features), dtype=torch.float64)[:, None]
            inputs[row, : len(features)] = torch.cat([left, features, features * left], dim=1)
        return inputs

    def check_features(self, features: Mapping[str, float], where: str) -> None:
        """Raise `ConfigurationError` if features are not finite or their names differ from those of the first task."""
        if tuple(features) != self.environment_names:
            differing = sorted(set(features) ^ set(self.environment_names)) or list(features)
            raise ConfigurationError(
                f"the features of {where} have other names or another order than those of the first task: "
                f"{', '.join(differing)}; `state_features` must give the same names in the same order in every state."
            )
        for name, value in features.items():
            if not math.isfinite(value):
                raise ConfigurationError(
                    f"the state feature {name!r} is {value} in {where}; it must be a finite number."
                )

    def check_names(self, state: Mapping[str, Any]) -> None:
        """Raise `ConfigurationError` if a checkpoint is of a critic on other features."""
        if list(state.get("names", [])) != list(self.names):
            raise ConfigurationError(
                f"the checkpoint's critic {self.name!r} has the state features {state.get('names')}, this run has "
                f"{list(self.names)}; use the configuration it was made with."
            )

    def checked(self, name: str, tensor: Tensor, shape: Sequence[int]) -> Tensor:
        """A tensor of a checkpoint in float64; raises `ConfigurationError` if it is not finite or not of `shape`."""
        if tuple(tensor.shape) != tuple(shape) or not tensor.isfinite().all():
            raise ConfigurationError(
                f"the checkpoint's {name} of the critic {self.name!r} have the shape {tuple(tensor.shape)} or are not "
                f"finite, but {tuple(shape)} is needed; use the configuration it was made with."
            )
        return tensor.double()

    def returns(self, batch: RolloutBatch) -> Tensor:
        """Discounted reward to go, in float64 on the CPU, [B, T]."""
        return discounted_returns(batch.rewards.double().cpu(), batch.turn_mask.cpu(), self.learner.discount)

    def mean_of_others(self, batch: RolloutBatch) -> Tensor:
        """Mean reward to go of the other groups of the rollout at each turn, [B, T].

        0 at a turn that no other group has played.
        """
        mask = batch.turn_mask.cpu().double() * batch.weights.double().cpu()[:, None]
        sums = torch.stack([self.returns(batch) * mask, mask])  # [2, B, T]
        groups, index = batch.groups.cpu().unique(return_inverse=True)
        by_group = sums.new_zeros(2, len(groups), sums.shape[2]).index_add(1, index, sums)
        total = sums.new_zeros(2, self.horizon)
        total[:, : sums.shape[2]] = sums.sum(1)
        total = self.summed(total)[:, : sums.shape[2]]
        others, count = total[:, None] - by_group
        means = torch.where(count > 1e-9, others / count.clamp(min=1e-9), 0.0)
        return torch.where(batch.turn_mask.cpu(), means[index], 0.0)

    def summed(self, tensor: Tensor) -> Tensor:
        """The sum of `tensor` over all ranks, on the CPU."""
        return sum_over_ranks(tensor, self.learner.device).cpu() if num_ranks() > 1 else tensor


class FeaturesCritic(StateCritic):
    """V(s) by ridge regression of returns on state features, solved again for every rollout.

    Inputs are the turns left, the features of `Environment.state_features`, and each feature times the turns left;
    they are standardized, the intercept is not penalized, and values have the units of returns. Recent rollouts have
    larger weights. The values of a group of episodes are fitted on all earlier rollouts and on the other groups of this
    rollout, so that no value depends on its own return or on a return after the same actions. A group is one episode if
    `data.num_generations` is 1, else all episodes of a task, or all paths of its rollout tree. In the first rollout,
    the value at a turn is the mean return of the other groups at that turn.

    With `gae_lambda: 1` any such baseline leaves the gradient unbiased. Below 1, values of the state can bias it if
    agents do not observe all of the state (Lyu et al.).

    The critic regresses on Monte-Carlo returns and ignores `critic_lambda`. It needs no optimizer: it stores sums of
    products, [T, 2 F + 3, 2 F + 3] for F features and T turns, which are summed over the processes of a run.

    Args:
        penalty: Ridge penalty on standardized coefficients, in units of turns: 3 weighs as much as 3 observed turns.
        forgetting: Weight of a rollout relative to the next one, above 0 and at most 1; 1 weighs all alike.
        weigh_turns: Weight each turn index by 1 / variance of its residuals in earlier rollouts; if false, all turns
            have the same weight.
        features: Names of the features that are read; by default all that the environment has.
    """

    def __init__(
        self,
        penalty: float = 3.0,
        forgetting: float = 0.85,
        weigh_turns: bool = True,
        features: list[str] | None = None,
    ):
        super().__init__(features)
        self.penalty = penalty
        self.forgetting = forgetting
        self.weigh_turns = weigh_turns
        check_numbers("critic", self, penalty=POSITIVE, forgetting=SHARE_ABOVE_ZERO)

    def check(self, environment: StateSource) -> None:
        previous = self.names, self.horizon
        super().check(environment)
        if previous == (self.names, self.horizon):  # another stage of the same run
            return
        size = self.num_inputs + 2
        self.moments = torch.zeros(self.horizon, size, size, dtype=torch.float64)  # products of (1, x, G) by turn
        self.turn_weights = torch.ones(self.horizon, dtype=torch.float64)
        self.num_rollouts = 0

    def values(self, batch: RolloutBatch) -> Tensor:
        if self.num_rollouts == 0:
            return self.mean_of_others(batch).to(batch.rewards)
        rows, weights = self.rows(batch)
        by_turn = self.turn_weights[: rows.shape[1]]
        total = self.forgetting * self.moments + self.summed(self.products(rows, weights))
        total = (self.turn_weights[:, None, None] * total).sum(0)
        left_out = (rows * (weights * by_turn)[..., None]).transpose(1, 2) @ rows  # by trajectory, [B, D + 2, D + 2]
        groups, index = batch.groups.cpu().unique(return_inverse=True)
        left_out = left_out.new_zeros(len(groups), *left_out.shape[1:]).index_add(0, index, left_out)  # by group
        coefficients = solve_ridge(total - left_out, self.penalty)[index]  # [B, 1 + D]
        values = torch.einsum("bti,bi->bt", rows[..., :-1], coefficients)
        return values.to(batch.rewards)

    def update(self, batch: RolloutBatch, values: Tensor, targets: Tensor) -> None:
        """Add the rollout to the sums; `values` and `targets` are not used."""
        products = self.summed(self.products(*self.rows(batch)))
        if not products[:, 0, 0].any():  # no turn was played on any rank
            return
        self.moments = self.forgetting * self.moments + products
        self.num_rollouts += 1
        if self.weigh_turns:
            weighted = (self.turn_weights[:, None, None] * self.moments).sum(0)
            self.turn_weights = precision_of_turns(self.moments, solve_ridge(weighted, self.penalty))

    def rows(self, batch: RolloutBatch) -> tuple[Tensor, Tensor]:
        """(1, x, G) at every turn, [B, T, D + 2], and its weight, 0 at turns not played, [B, T]."""
        inputs, returns = self.inputs(batch), self.returns(batch)
        rows = torch.cat([torch.ones_like(inputs[..., :1]), inputs, returns[..., None]], dim=-1)
        mask = batch.turn_mask.cpu().double()
        return rows * mask[..., None], mask * batch.weights.double().cpu()[:, None]

    def products(self, rows: Tensor, weights: Tensor) -> Tensor:
        """Sums over trajectories of the products of (1, x, G) at every turn of the horizon, [T, D + 2, D + 2]."""
        products = torch.zeros_like(self.moments)
        turns = rows.transpose(0, 1)
        products[: len(turns)] = (turns * weights.T[..., None]).transpose(1, 2) @ turns
        return products

    def checkpoint(self) -> dict[str, Any]:
        return {
            "names": list(self.names),
            "moments": self.moments,
            "turn_weights": self.turn_weights,
            "num_rollouts": self.num_rollouts,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.check_names(state)
        for name in ("moments", "turn_weights"):
            setattr(self, name, self.checked(name, state[name], getattr(self, name).shape))
        self.num_rollouts = int(state["num_rollouts"])


def solve_ridge(products: Tensor, penalty: float) -> Tensor:
    """Intercept and coefficients of ridge regression on standardized inputs, for inputs that are not standardized.

    Args:
        products: Weighted sums of products of (1, x, y), [..., D + 2, D + 2].
        penalty: Added to the diagonal of the matrix of standardized inputs; the intercept is not penalized.

    Returns:
        Coefficients of (1, x), [..., 1 + D]; 0 for constant inputs, and all 0 without observations.
    """
    count = products[..., :1, :1].clamp(min=1e-9)
    means = products[..., 0, 1:] / count[..., 0]  # of x and y
    centered = products[..., 1:, 1:] - count * means[..., :, None] * means[..., None, :]
    x_mean, y_mean = means[..., :-1], means[..., -1:]
    deviation = (centered.diagonal(dim1=-2, dim2=-1)[..., :-1] / count[..., 0]).clamp(min=0).sqrt()
    varies = deviation > _CONSTANT * x_mean.abs() + 1e-12
    scale = torch.where(varies, 1 / torch.where(varies, deviation, 1.0), 0.0)
    squares = scale[..., :, None] * centered[..., :-1, :-1] * scale[..., None, :]
    squares = squares + penalty * torch.eye(squares.shape[-1], dtype=squares.dtype)
    slopes = scale * torch.linalg.solve(squares, scale * centered[..., :-1, -1])
    return torch.cat([y_mean - (slopes * x_mean).sum(-1, keepdim=True), slopes], dim=-1)


def precision_of_turns(moments: Tensor, coefficients: Tensor) -> Tensor:
    """1 / variance of the residuals at each turn, scaled to a mean of 1 over all observations.

    Args:
        moments: Sums of products of (1, x, G) by turn, [T, D + 2, D + 2].
        coefficients: Of (1, x), [1 + D].

    Returns:
        Weights, 1 at turns without observations, [T].
    """
    contrast = torch.cat([-coefficients, torch.ones(1, dtype=coefficients.dtype)])
    squares = torch.einsum("i,tij,j->t", contrast, moments, contrast).clamp(min=0)
    counts = moments[:, 0, 0]
    pooled = squares.sum() / counts.sum().clamp(min=1e-9)
    variances = (squares / counts.clamp(min=1e-9)).clamp(min=_LEAST_VARIANCE * float(pooled))
    if pooled <= 1e-12:  # there is no residual
        return torch.ones_like(counts)
    weights = torch.where(counts > 1e-9, 1 / variances.clamp(min=1e-12), 0.0)
    return torch.where(counts > 1e-9, weights * counts.sum() / (weights * counts).sum(), 1.0)
