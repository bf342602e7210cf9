"""Checkpoints of an algorithm: which weights they hold, and the checks of a checkpoint that is loaded.

A checkpoint holds trained weights and frozen weights that were initialized at random. Frozen weights that come from a
folder or the hub are not stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from collm.errors import ConfigurationError
from collm.models.backbone import Backbone
from collm.models.policy_spec import PolicySpec

# The optimizers of torch.optim keep tensors of the shape of the weight, except under these keys.
_SCALARS = ("step", "eta", "mu", "mu_product")
_FACTORS = ("row_var", "col_var")
_RATES = ("lr", "initial_lr", "base_lrs", "_last_lr")


class Checkpointed(L.LightningModule):
    """A Lightning module whose checkpoints hold the weights of its `learners`."""

    agent_ids: tuple[str, ...]
    parameters_mode: str
    specs: Mapping[str, PolicySpec]
    learners: dict[str, list[nn.Parameter]]  # trained parameters, by the name of their optimizer
    optimizer: Callable[..., torch.optim.Optimizer]
    joint_samples: int
    num_rollouts: int

    def learning_rates(self) -> Mapping[str, float]:
        """Learning rate of each optimizer, by name."""
        raise TypeError(f"{type(self).__name__} must implement learning_rates")

    def identity(self) -> dict[str, Any]:
        """Settings that a checkpoint must share with the run that continues it."""
        return {"algorithm": type(self).__name__, "agent_ids": list(self.agent_ids), "parameters": self.parameters_mode}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        stored = self.stored_names()
        frozen = {name for name, _ in self.named_parameters(remove_duplicate=False)} - stored
        checkpoint["state_dict"] = {
            name: value
            for name, value in checkpoint["state_dict"].items()
            if name not in frozen and f"{name.partition('.weight.')[0]}.weight" not in frozen  # nor scales
        }
        rates = self.learning_rates()
        checkpoint["collm"] = {
            **self.identity(),
            "joint_samples": self.joint_samples,
            "num_rollouts": self.num_rollouts,
            "endpoints": {name: spec.endpoint.urls for name, spec in self.specs.items() if spec.endpoint},
            "frozen": [name for name, spec in self.specs.items() if spec.frozen],
            "learning_rates": {name: rates[name] for name in self.learners},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._check_weights(checkpoint["state_dict"])
        kept = checkpoint["collm"]
        rates = kept.get("learning_rates", {})
        if not is_count(kept.get("joint_samples")):
            raise self.misfit(f"its joint_samples is {kept.get('joint_samples')!r}, not a count")
        if not isinstance(rates, dict) or not all(is_rate(rate) for rate in rates.values()):
            raise self.misfit(f"its learning_rates are {rates!r}, not positive numbers")
        if self.trainer.state.fn == "fit":
            if not rates.keys() <= self.learners.keys():
                raise self.misfit(f"it has optimizers of {', '.join(rates)}, this run of {', '.join(self.learners)}")
            self._check_optimizers(checkpoint.get("optimizer_states"))
            wrong = mismatch(checkpoint["loops"].get("fit_loop"), self.trainer.fit_loop.state_dict(), "loops.fit_loop")
            if wrong:
                raise self.misfit(wrong)
        if not is_count(kept.get("num_rollouts")):
            raise self.misfit(f"its num_rollouts is {kept.get('num_rollouts')!r}, not a count")
        self.joint_samples, self.num_rollouts = kept["joint_samples"], kept["num_rollouts"]
        if self.trainer.state.fn == "fit":
            follow_learning_rates(checkpoint, rates, self.learning_rates())

    def misfit(self, cause: str) -> ConfigurationError:
        """The error for a checkpoint that does not fit this run."""
        return ConfigurationError(
            f"checkpoint {str(self.trainer.ckpt_path)!r} does not fit this run: {cause}; use the configuration it was "
            "made with, which is in config.yaml beside it, or another checkpoint."
        )

    def _check_weights(self, state: dict[str, Any]) -> None:
        missing = sorted(self.stored_names() - set(state))
        if missing:
            raise self.misfit(f"it lacks {len(missing)} weights that this run needs, {missing[0]!r} among them")
        for name, weight in self.state_dict().items():
            if name in state and (wrong := misshapen(state[name], weight)):
                raise self.misfit(f"{name!r} is {wrong}")

    def _check_optimizers(self, states: Any) -> None:
        """Check that each optimizer has a state, whose tensors have the shapes of the weights they belong to."""
        if not isinstance(states, list) or len(states) != len(self.learners):
            stored = len(states) if isinstance(states, list) else "no"
            raise self.misfit(f"it has {stored} optimizers, this run has {len(self.learners)}")
        for (name, weights), state in zip(self.learners.items(), states, strict=True):
            try:
                numbers = [number for group in state["param_groups"] for number in group["params"]]
                entries = [(number, *entry) for number, kept in state["state"].items() for entry in kept.items()]
            except (AttributeError, KeyError, TypeError) as error:
                raise self.misfit(f"the state of the optimizer of {name!r} is not one ({error!r})") from error
            if len(numbers) != len(weights) or not {number for number, _, _ in entries} <= set(range(len(weights))):
                raise self.misfit(f"the optimizer of {name!r} has {len(numbers)} weights there and {len(weights)} here")
            for number, key, value in entries if self._has_known_states() else ():
                expected = torch.zeros(()) if key in _SCALARS else weights[number]
                if key not in _FACTORS and (wrong := misshapen(value, expected)):
                    raise self.misfit(f"{key!r} of weight {number} of {name!r} is {wrong}")

    def _has_known_states(self) -> bool:
        """Whether the optimizer is from torch.optim; the states of others may have any shape."""
        optimizer = self.optimizer([{"params": [nn.Parameter(torch.zeros(1, 1))], "lr": 1.0}])
        return type(optimizer).__module__.startswith("torch.optim")

    def stored_names(self) -> set[str]:
        """Names of the weights that checkpoints hold: all trained ones, and frozen ones initialized at random."""
        needed = [weight for weights in self.learners.values() for weight in weights]
        needed += [
            w for one in self.modules() if isinstance(one, Backbone) and one.random_weights for w in one.parameters()
        ]
        ids = set(map(id, needed))
        return {name for name, weight in self.named_parameters(remove_duplicate=False) if id(weight) in ids}


def follow_learning_rates(checkpoint: Mapping[str, Any], before: Mapping[str, float], now: Mapping[str, float]) -> None:
    """Scale the learning rates in `checkpoint` by the ratio of the new setting to the old one.

    A checkpoint stores the rates of optimizers and schedules, so loading it would undo a changed setting. A schedule
    keeps its step, and optimizers whose setting has not changed keep their rates.

    Args:
        checkpoint: A checkpoint of Lightning, changed in place.
        before: Learning rate of each optimizer when the checkpoint was written, in the order of the optimizers.
        now: Learning rate of each optimizer in this run.
    """
    for part in ("optimizer_states", "lr_schedulers"):
        for (name, rate), state in zip(before.items(), checkpoint.get(part, ()), strict=False):
            if now[name] != rate:
                _multiply(state, now[name] / rate)


def _multiply(state: Any, factor: float) -> None:
    """Multiply all learning rates in the nested state of an optimizer or schedule."""
    if isinstance(state, list):
        for entry in state:
            _multiply(entry, factor)
    elif isinstance(state, dict):
        for key, value in state.items():
            if key in _RATES:
                state[key] = [rate * factor for rate in value] if isinstance(value, list) else value * factor
            else:
                _multiply(value, factor)


def is_count(value: Any) -> bool:
    """Whether `value` is a non-negative int."""
    return type(value) is int and value >= 0


def is_rate(value: Any) -> bool:
    """Whether `value` is a positive, finite number."""
    return type(value) in (int, float) and 0 < value < float("inf")


def misshapen(value: Any, weight: Tensor) -> str | None:
    """How `value` differs from a tensor with the shape and kind of dtype of `weight`; None if it does not."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__} there, a tensor here"
    if value.shape != weight.shape:
        return f"of shape {list(value.shape)} there and {list(weight.shape)} here"
    if value.is_floating_point() != weight.is_floating_point():
        return f"of type {value.dtype} there and {weight.dtype} here"
    return None


def mismatch(value: Any, expected: Any, where: str) -> str | None:
    """The first missing key or wrong type in nested dictionaries, compared with `expected`; None if there is none.

    Items of lists are not compared, and None on either side matches anything.
    """
    if value is None or expected is None:
        return None
    if type(value) is not type(expected):
        return f"{where} is a {type(value).__name__}, not a {type(expected).__name__}"
    if not isinstance(expected, dict):
        return None
    if missing := expected.keys() - value.keys():
        return f"{where}.{min(missing)} is missing"
    wrong = (mismatch(value[key], one, f"{where}.{key}") for key, one in expected.items())
    return next(filter(None, wrong), None)
