"""The command line: reads configurations, links what must agree, and turns errors into one clear message.

`configs/base.yaml` is always read first, then every `--config` in order, then single arguments; later ones win.
"""

from __future__ import annotations

import difflib
import importlib
import os
import pkgutil
import re
import sys
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

import collm.algorithms
import collm.callbacks
import collm.environments
import collm.samplers
from collm.algorithms.base import MultiAgentModule
from collm.data import RolloutDataModule
from collm.errors import ConfigurationError, TrainingError

_TRACEBACK = "COLLM_TRACEBACK"


class _Parser(LightningArgumentParser):
    """A parser whose errors are one message that names the nearest known key."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:  # type: ignore[override]
        if os.environ.get(_TRACEBACK) and ex is not None:
            raise ex
        raise ConfigurationError(_readable(message, self))


class CollmCLI(LightningCLI):
    """LightningCLI with the links and checks this project needs."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("data.agent_ids", "model.init_args.agent_ids", apply_on="instantiate")
        # algorithms without the argument are left alone
        parser.link_arguments("data.num_generations", "model.init_args.num_generations")
        parser.link_arguments("seed_everything", "data.seed")

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        if config.trainer.max_steps not in (None, -1):
            raise ConfigurationError(
                f"trainer.max_steps is {config.trainer.max_steps}, but a step is counted for every optimizer of every "
                "agent here; set the length of a run with trainer.max_epochs (an epoch is data.rollouts_per_epoch rollouts)."
            )
        for name in ("gradient_clip_val", "accumulate_grad_batches"):
            if getattr(config.trainer, name) not in (None, 0, 1):
                raise ConfigurationError(
                    f"trainer.{name} does not work with several optimizers; use model.gradient_clip_norm and "
                    "model.tokens_per_micro_batch."
                )
        if str(config.trainer.precision).startswith("16"):
            raise ConfigurationError("trainer.precision 16 is not supported; use bf16-mixed or 32-true.")
        _check_writable(config)

    def _parse_ckpt_path(self) -> None:
        """Check that the checkpoint belongs to this configuration, before any weights load.

        Lightning would let the hyper-parameters in the checkpoint override the configuration; here the configuration
        is what counts, and a checkpoint of another algorithm or team is an error.
        """
        path = self.config[self.config.subcommand].get("ckpt_path")
        if not path or path in ("last", "best", "hpc"):
            return
        if not Path(path).is_file():
            raise ConfigurationError(f"checkpoint {path!r} does not exist; give the path of a .ckpt file.")

    def after_instantiate_classes(self) -> None:
        path = self.config[self.subcommand].get("ckpt_path")
        if not path or path in ("last", "best", "hpc"):
            return
        try:
            found = torch.load(path, weights_only=True, map_location="cpu", mmap=True).get("collm", {})
        except Exception as error:  # whatever the unpickler makes of a file that is no checkpoint
            raise ConfigurationError(f"checkpoint {path!r} could not be read: {error}") from error
        for name, expected in self.model.identity().items():
            if found.get(name) != expected:
                raise ConfigurationError(
                    f"checkpoint {path!r} has {name} {found.get(name)}, this run has {expected}; use the configuration "
                    "the checkpoint was made with, which lies beside it in config.yaml."
                )


def main(default_config: str | Path | None = None, args: ArgsType = None) -> int:
    """Run the command line; the exit status is 0, 1 for a run that had to stop, 2 for a mistake in the settings.

    Args:
        default_config: Configuration that is read before all others.
        args: Arguments in place of those of the process.
    """
    for package in (collm.algorithms, collm.environments, collm.samplers, collm.callbacks):
        for module in pkgutil.iter_modules(package.__path__):  # so that --help can list what there is
            importlib.import_module(f"{package.__name__}.{module.name}")
    defaults = {"default_config_files": [str(default_config)]} if default_config else {}
    try:
        CollmCLI(
            MultiAgentModule,
            RolloutDataModule,
            subclass_mode_model=True,
            parser_class=_Parser,
            parser_kwargs={name: dict(defaults) for name in ("fit", "validate", "test", "predict")},
            save_config_kwargs={"overwrite": True},
            seed_everything_default=0,
            auto_configure_optimizers=False,
            args=args,
        )
    except (ConfigurationError, TrainingError) as error:
        if os.environ.get(_TRACEBACK):
            raise
        print(f"\nerror: {error}\n({_TRACEBACK}=1 shows where it was raised)", file=sys.stderr)
        return 2 if isinstance(error, ConfigurationError) else 1
    return 0


def _check_writable(config: Any) -> None:
    """Refuse a log folder that cannot be written before a run has something to lose."""
    loggers = config.trainer.logger if isinstance(config.trainer.logger, list) else [config.trainer.logger]
    folders = [getattr(logger, "init_args", {}).get("save_dir") for logger in loggers if logger not in (None, True, False)]
    for folder in filter(None, [*folders, config.trainer.default_root_dir]):
        existing = next(parent for parent in (Path(folder).absolute(), *Path(folder).absolute().parents) if parent.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            raise ConfigurationError(f"the log folder {folder!r} cannot be written ({existing} is not writable).")


def _readable(message: str, parser: LightningArgumentParser) -> str:
    """The cause in jsonargparse's message, and the nearest name to one that is not known."""
    known = {action.dest for action in parser._actions} | _component_arguments()
    pattern = r"(?:Key|Option|option|Group|key) '([\w.]+)' is not (?:expected|accepted)|Unrecognized arguments: --([\w.]+)"
    lines = []
    for match in re.finditer(pattern, message):
        key = match.group(1) or match.group(2)
        near = difflib.get_close_matches(key, known, 1, 0.6) or difflib.get_close_matches(key.split(".")[-1], known, 1, 0.6)
        lines.append(f"unknown setting {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
    return "\n".join(dict.fromkeys(lines)) + ("\n" if lines else "") + message.strip()


def _component_arguments() -> set[str]:
    """Names of the constructor arguments of every component of the project."""
    import inspect

    names: set[str] = set()
    for name, module in list(sys.modules.items()):
        if name.startswith("collm."):
            for _, cls in inspect.getmembers(module, inspect.isclass):
                if cls.__module__.startswith("collm."):
                    for base in cls.__mro__[:-1]:
                        if "__init__" in vars(base) and base.__module__.startswith("collm."):
                            names |= set(inspect.signature(base.__init__).parameters) - {"self", "kwargs"}
    return names
