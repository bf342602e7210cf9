"""The command line: reads configurations, links settings that must agree, and turns errors into one clear message.

`configs/base.yaml` is always read first, then every `--config` in order, then single arguments; the last value counts.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pkgutil
import sys
import sysconfig
import traceback
import warnings
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException

import collm.algorithms
import collm.callbacks
import collm.environments
import collm.samplers
from collm.algorithms.base import MultiAgentModule
from collm.data import RolloutDataModule
from collm.environments.base import Environment
from collm.errors import ConfigurationError, TrainingError, shortened
from collm.runtime.checks import SEED, check_number
from collm.runtime.collectives import is_about_a_lost_rank
from collm.runtime.configuration import StrictFiles
from collm.runtime.files import is_about_a_full_disk, unwritable
from collm.runtime.messages import readable
from collm.runtime.resuming import NAMED, find_named, while_restoring
from collm.runtime.run_folder import RunFolder
from collm.runtime.terminal import printable
from collm.runtime.trainer_settings import check_trainer
from collm.samplers.base import Sampler
from collm.strategies.checkpoints import FileOrFolder, meta_file, read_meta

_TRACEBACK = "COLLM_TRACEBACK"
_COMPONENTS = {
    "model": MultiAgentModule,
    "environment": Environment,
    "sampler": Sampler,
    "eval_sampler": Sampler,
    "callbacks": Callback,
}


class _Parser(StrictFiles, LightningArgumentParser):
    """A parser whose errors are one message with the setting, its value and the remedy."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})  # an abbreviated name is a mistake

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ConfigurationError(readable(shortened(message, 20_000), self, _COMPONENTS)) from ex


class CollmCLI(LightningCLI):
    """LightningCLI with the links and checks this project needs."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("data.agent_ids", "model.init_args.agent_ids", apply_on="instantiate")
        # jsonargparse skips this link for algorithms without the argument
        parser.link_arguments("data.num_generations", "model.init_args.num_generations")
        parser.link_arguments("seed_everything", "data.seed")
        text = "push every agent to the Hugging Face hub at the end of `fit`: owner and beginning of the names, me/team"
        parser.add_argument("--push_to_hub", type=str | None, default=None, help=text)
        text = "agents that `fit` exports: `last`, of its end, or `best`, of the highest return on held-out tasks"
        parser.add_argument("--export", type=Literal["last", "best"] | None, default=None, help=text)

    def before_instantiate_classes(self) -> None:
        command = str(self.subcommand)
        model, trainer = self.config[command].model, self.config[command].trainer
        if command == "fit" and model.class_path == f"{MultiAgentModule.__module__}.{MultiAgentModule.__name__}":
            raise ConfigurationError(
                "no algorithm is chosen yet; put --model=CoLLMCC or --config configs/algorithms/collm_cc.yaml (or that "
                "of another algorithm) before its settings."
            )
        check_trainer(trainer, command, self.config[command].data.rollouts_per_epoch)
        callbacks = trainer.callbacks if isinstance(trainer.callbacks, list) else [trainer.callbacks]
        callbacks = [item for item in callbacks if item]
        for switch, class_name in (
            ("enable_progress_bar", "RolloutProgress"),
            ("enable_checkpointing", "ModelCheckpoint"),
        ):
            if getattr(trainer, switch) is False:  # Lightning would refuse the callback instead of dropping it
                callbacks = [item for item in callbacks if not item.class_path.endswith(f".{class_name}")]
        trainer.callbacks = callbacks
        exports = [item for item in callbacks if item.class_path.endswith(".ExportAgents")]
        for name, argument in (("push_to_hub", "push_to_hub"), ("export", "checkpoint")):
            given = self.config[command][name]
            if given and not exports and command == "fit":
                raise ConfigurationError(
                    f"{name} is {given!r}, but ExportAgents is not among trainer.callbacks, so no agent would be "
                    f"exported; add it with --trainer.callbacks+=ExportAgents, or leave --{name} out."
                )
            for item in exports if given else ():
                item.init_args[argument] = given
        _check_writable(trainer)

    def _set_seed(self) -> None:
        seed = self._get(self.config, "seed_everything")
        if not isinstance(seed, bool):
            check_number("seed_everything", seed, SEED)
        super()._set_seed()

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except Exception as error:
            if _cause(error) is not None:
                raise
            raise ConfigurationError(_with_location(error)) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        try:
            return super().instantiate_trainer(**kwargs)
        except Exception as error:  # Lightning raises errors of many types for wrong arguments
            if _cause(error) is not None:
                raise
            raise ConfigurationError(f"trainer: {error} ({type(error).__name__})") from error

    def _parse_ckpt_path(self) -> None:
        """Check that the checkpoint exists.

        Lightning's own method lets the hyper-parameters in the checkpoint override the configuration. Here the
        configuration counts, and `after_instantiate_classes` refuses checkpoints of other algorithms or agents.
        """
        path = self.config[self.config.subcommand].get("ckpt_path")
        if not path or path in NAMED:
            return
        if not meta_file(path).is_file():
            raise ConfigurationError(
                f"checkpoint {path!r} does not exist; give the path of a .ckpt file, or of a folder that several "
                "processes wrote."
            )

    def after_instantiate_classes(self) -> None:
        self.trainer.strategy.checkpoint_io = FileOrFolder()
        path = self.config[self.subcommand].get("ckpt_path")
        if path in NAMED:
            path = str(find_named(path, self.trainer))
            self.config_init[self.subcommand]["ckpt_path"] = path
        if not path:
            return
        stored = read_meta(path)["collm"]
        for name, expected in self.model.identity().items():
            if stored.get(name) != expected:
                raise ConfigurationError(
                    f"checkpoint {path!r} has {name} {stored.get(name)}, this run has {expected}; use the "
                    "configuration of the checkpoint's run, which is in that run's config.yaml."
                )


def main(
    default_config: str | Path | None = None, args: ArgsType = None, command_line: type[CollmCLI] = CollmCLI
) -> int:
    """Run the command line; the exit status is 0, 1 for a run that failed, 2 for a mistake in the settings.

    Args:
        default_config: Configuration that is read before all others.
        args: Arguments that replace those of the process.
        command_line: The class that parses and runs them.
    """
    for package in (collm.algorithms, collm.environments, collm.samplers, collm.callbacks):
        for module in pkgutil.walk_packages(
            package.__path__, f"{package.__name__}."
        ):  # so that class names without their module, and --help, find all classes
            with contextlib.suppress(ImportError):  # a missing optional package is reported where it is used
                importlib.import_module(module.name)
    # warnings about Lightning's own use of torch, and about things that are done here on purpose
    for message in (
        ".*LeafSpec.*",
        "Your `IterableDataset` has `__len__` defined",
        ".*sync_dist=True.*",
        r"Found \d+ module\(s\) in eval mode",  # modules without dropout stay in eval mode
        "LightningCLI's args parameter",  # commands that run this one hand it arguments of their own
    ):
        warnings.filterwarnings("ignore", message)
    defaults = {"default_config_files": [str(default_config)]} if default_config else {}
    try:
        command_line(
            MultiAgentModule,
            RolloutDataModule,
            subclass_mode_model=True,
            parser_class=_Parser,
            parser_kwargs={name: dict(defaults) for name in ("fit", "validate", "test", "predict")},
            save_config_callback=RunFolder,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            args=args,
        )
    except Exception as error:
        cause = _cause(error) or while_restoring(error)
        if cause is None and is_about_a_full_disk(error):
            cause = TrainingError(unwritable(getattr(error, "filename", None) or "a file of the run", error))
        if cause is None and is_about_a_lost_rank(error):
            cause = TrainingError(
                f"another process of this run has ended or does not answer ({str(error).splitlines()[0]}). Its own "
                "output says what went wrong there; --ckpt_path with the run's checkpoints/last.ckpt continues from "
                "the last checkpoint."
            )
        if cause is None and _location(error).in_user_code:
            cause = TrainingError(_with_location(error))
        if cause is None or os.environ.get(_TRACEBACK):
            raise
        said = printable(shortened(str(cause)))
        print(f"\nerror: {said}\n({_TRACEBACK}=1 shows where it was raised)", file=sys.stderr)
        return 1 if isinstance(cause, TrainingError) else 2
    return 0


def _cause(error: BaseException | None) -> BaseException | None:
    """The error about a user's mistake in the chain of causes of `error`, if any; jsonargparse wraps such errors."""
    while error is not None and not isinstance(error, (ConfigurationError, TrainingError, MisconfigurationException)):
        error = error.__cause__
    return error


class _Location(NamedTuple):
    """The last line of a traceback outside of installed libraries, and whether it is outside of this package too."""

    text: str
    in_user_code: bool


def _location(error: BaseException) -> _Location:
    if isinstance(error, SyntaxError) and error.filename:
        return _Location(f"{error.filename} line {error.lineno}: {(error.text or '').strip()}", True)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "site-packages" not in frame.filename]
    frames = [frame for frame in frames if not frame.filename.startswith(("<", sysconfig.get_path("stdlib")))]
    if not frames:
        return _Location("", False)
    last = frames[-1]
    own = Path(last.filename).resolve().is_relative_to(Path(collm.algorithms.__file__).resolve().parents[1])
    return _Location(f"{last.filename} line {last.lineno}, in {last.name}: {last.line}", not own)


def _with_location(error: BaseException) -> str:
    """The message of an unexpected error, and where it was raised."""
    return f"{type(error).__name__}: {error}\n{_location(error).text}".rstrip()


def _check_writable(trainer: Any) -> None:
    """Refuse a log folder that is not writable, before training starts."""
    loggers = trainer.logger if isinstance(trainer.logger, list) else [trainer.logger]
    folders = [logger.get("init_args", {}).get("save_dir") for logger in loggers if not isinstance(logger, bool | None)]
    for folder in filter(None, [*folders, trainer.default_root_dir]):
        existing = next(
            parent for parent in (Path(folder).absolute(), *Path(folder).absolute().parents) if parent.exists()
        )
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            raise ConfigurationError(
                f"the log folder {folder!r} cannot be written ({existing} is not a writable folder); set "
                "trainer.logger.init_args.save_dir to one that is."
            )
