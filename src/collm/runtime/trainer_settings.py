"""Settings of Lightning's trainer that would train nothing, cannot work here, or fail only once weights are loaded."""

from __future__ import annotations

import os
from typing import Any

import torch

from collm.errors import ConfigurationError
from collm.runtime.checks import COUNT, COUNT_OR_ZERO, Range, check_number

_BATCHES = {
    "fit": "limit_train_batches",
    "validate": "limit_val_batches",
    "test": "limit_test_batches",
    "predict": "limit_predict_batches",
}


def check_trainer(trainer: Any, command: str, rollouts_per_epoch: int) -> None:
    """Refuse settings of the trainer.

    Args:
        trainer: What was set, as attributes.
        command: `fit`, `validate`, `test` or `predict`.
        rollouts_per_epoch: Training batches of an epoch.

    Raises:
        ConfigurationError: Names the setting, its value and what to set instead.
    """
    for name in ("max_steps", "min_steps"):
        if getattr(trainer, name) not in (None, -1):
            raise ConfigurationError(
                f"trainer.{name} is {getattr(trainer, name)}, but a step is counted for every optimizer of every agent "
                "here; set the length of a run with trainer.max_epochs (an epoch is data.rollouts_per_epoch rollouts)."
            )
    if trainer.max_epochs not in (None, -1):
        check_number("trainer.max_epochs", trainer.max_epochs, COUNT, "Use -1 for a run without an end.")
    if isinstance(trainer.max_time, str) and not trainer.max_time.strip("0: "):
        raise ConfigurationError(f"trainer.max_time is {trainer.max_time!r}, in which nothing happens; raise it.")
    for name, neutral in (("gradient_clip_val", (None, 0)), ("accumulate_grad_batches", (1,))):
        if getattr(trainer, name) not in neutral:
            raise ConfigurationError(
                f"trainer.{name} is {getattr(trainer, name)}, but it does not work with several optimizers; remove "
                "it and use model.gradient_clip_norm and model.tokens_per_micro_batch."
            )
    if str(trainer.precision).startswith("16"):
        raise ConfigurationError(
            f"trainer.precision is {trainer.precision}, which needs a gradient scaling that is not done here; use "
            "bf16-mixed or 32-true."
        )
    if trainer.overfit_batches:
        raise ConfigurationError(
            f"trainer.overfit_batches is {trainer.overfit_batches}, but every batch is a new rollout, which cannot be "
            "trained on twice; remove it and lower data.rollouts_per_epoch."
        )
    name = _BATCHES[command]
    limit = getattr(trainer, name)
    size = rollouts_per_epoch if command == "fit" else 1 / max(limit or 0.0, 1e-9)  # of evaluations, not known yet
    if limit is not None and 0 <= limit <= 1 and limit * size < 1:
        raise ConfigurationError(f"trainer.{name} is {limit}, so that {command} would do nothing; raise or remove it.")
    check_number("trainer.check_val_every_n_epoch", trainer.check_val_every_n_epoch, COUNT.or_none)
    every = trainer.val_check_interval
    if isinstance(every, float):
        check_number("trainer.val_check_interval", every, Range(0, 1, above=True), "Or give a number of rollouts.")
    elif isinstance(every, int):
        most = rollouts_per_epoch if trainer.check_val_every_n_epoch is not None else COUNT.most
        remedy = f"An epoch has data.rollouts_per_epoch, {rollouts_per_epoch:,}."
        check_number("trainer.val_check_interval", every, Range(1, most, whole=True), remedy)
    for name, allowed in (
        ("num_sanity_val_steps", Range(-1, COUNT.most, whole=True)),
        ("log_every_n_steps", COUNT_OR_ZERO),
        ("num_nodes", COUNT),
        ("min_epochs", COUNT_OR_ZERO),
    ):
        check_number(f"trainer.{name}", getattr(trainer, name), allowed.or_none)
    check_devices(trainer)


def check_devices(trainer: Any) -> None:
    """Refuse numbers of processes that no processor could run; what GPUs there are, Lightning knows."""
    text = str(trainer.devices)
    on_cpu = trainer.accelerator == "cpu" or (trainer.accelerator == "auto" and not torch.cuda.is_available())
    cores = os.cpu_count() or 1
    if on_cpu and text.isdecimal() and int(text) > 4 * cores:
        raise ConfigurationError(
            f"trainer.devices is {text}, which is as many processes, but the processor has {cores} cores; lower it."
        )
