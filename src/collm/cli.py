"""The command line: reads configurations, links what must agree, and turns errors into one clear message.

`configs/base.yaml` is always read first, then every `--config` in order, then single arguments; later ones win.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import os
import pkgutil
import re
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

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
from collm.runtime import memory
from collm.runtime.checks import SEED, check_number
from collm.runtime.collectives import is_about_a_lost_rank
from collm.runtime.configuration import StrictFiles
from collm.runtime.files import is_about_a_full_disk, unwritable
from collm.runtime.resuming import NAMED, find_named, while_restoring
from collm.runtime.run_folder import RunFolder
from collm.runtime.trainer_settings import check_trainer
from collm.samplers.base import Sampler
from collm.strategies.checkpoints import FileOrFolder, meta_file, read_meta

_TRACEBACK = "COLLM_TRACEBACK"


class _Parser(StrictFiles, LightningArgumentParser):
    """A parser whose errors are one message: the setting, its value and what would be right in its place."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})  # a cut name is a mistake, not a shorthand

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise ConfigurationError(_readable(shortened(message, 20_000), self)) from ex


class CollmCLI(LightningCLI):
    """LightningCLI with the links and checks this project needs."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.link_arguments("data.agent_ids", "model.init_args.agent_ids", apply_on="instantiate")
        # algorithms without the argument are left alone
        parser.link_arguments("data.num_generations", "model.init_args.num_generations")
        parser.link_arguments("seed_everything", "data.seed")

    def before_instantiate_classes(self) -> None:
        command = str(self.subcommand)
        trainer = self.config[command].trainer
        check_trainer(trainer, command, self.config[command].data.rollouts_per_epoch)
        for switch, class_name in (
            ("enable_progress_bar", "RolloutProgress"),
            ("enable_checkpointing", "ModelCheckpoint"),
        ):
            if getattr(trainer, switch) is False:  # Lightning would complain about the callback instead of dropping it
                callbacks = trainer.callbacks if isinstance(trainer.callbacks, list) else [trainer.callbacks]
                trainer.callbacks = [one for one in callbacks if one and not one.class_path.endswith(f".{class_name}")]
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
            raise ConfigurationError(_with_place(error)) from error

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        try:
            return super().instantiate_trainer(**kwargs)
        except Exception as error:  # Lightning refuses its arguments with errors of many kinds
            if _cause(error) is not None:
                raise
            raise ConfigurationError(f"trainer: {error} ({type(error).__name__})") from error

    def _parse_ckpt_path(self) -> None:
        """Check that the checkpoint belongs to this configuration, before any weights load.

        Lightning would let the hyper-parameters in the checkpoint override the configuration; here the configuration
        is what counts, and a checkpoint of another algorithm or team is an error.
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
        found = read_meta(path)["collm"]
        for name, expected in self.model.identity().items():
            if found.get(name) != expected:
                raise ConfigurationError(
                    f"checkpoint {path!r} has {name} {found.get(name)}, this run has {expected}; use the configuration "
                    "the checkpoint was made with, which lies beside it in config.yaml."
                )


def main(
    default_config: str | Path | None = None, args: ArgsType = None, command_line: type[CollmCLI] = CollmCLI
) -> int:
    """Run the command line; the exit status is 0, 1 for a run that had to stop, 2 for a mistake in the settings.

    Args:
        default_config: Configuration that is read before all others.
        args: Arguments in place of those of the process.
        command_line: What is made of them.
    """
    for package in (collm.algorithms, collm.environments, collm.samplers, collm.callbacks):
        for module in pkgutil.walk_packages(
            package.__path__, f"{package.__name__}."
        ):  # so that short names and --help know what there is
            with contextlib.suppress(ImportError):  # what lacks an optional package says so where it is used
                importlib.import_module(module.name)
    memory.keep()
    # Lightning's own use of torch; the length of the rollout dataset, and numbers of all ranks together: on purpose
    in_eval_mode = r"Found \d+ module\(s\) in eval mode"  # which is how dropout is off
    for message in (".*LeafSpec.*", "Your `IterableDataset` has `__len__` defined", ".*sync_dist=True.*", in_eval_mode):
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
                f"another process of this run has ended or does not answer ({str(error).splitlines()[0]}). What went "
                "wrong there is in its own output; --ckpt_path with the run's checkpoints/last.ckpt goes on from the "
                "last checkpoint."
            )
        if cause is None and _place(error).foreign:
            cause = TrainingError(_with_place(error))
        if cause is None or os.environ.get(_TRACEBACK):
            raise
        print(f"\nerror: {shortened(str(cause))}\n({_TRACEBACK}=1 shows where it was raised)", file=sys.stderr)
        return 1 if isinstance(cause, TrainingError) else 2
    return 0


def _cause(error: BaseException | None) -> BaseException | None:
    """The mistake of a user behind `error`, if there is one; jsonargparse wraps what constructors raise."""
    while error is not None and not isinstance(error, (ConfigurationError, TrainingError, MisconfigurationException)):
        error = error.__cause__
    return error


class _Place(NamedTuple):
    """The last line of a traceback that is in nobody's library; `foreign` if it is not in this project either."""

    text: str
    foreign: bool


def _place(error: BaseException) -> _Place:
    if isinstance(error, SyntaxError) and error.filename:
        return _Place(f"{error.filename} line {error.lineno}: {(error.text or '').strip()}", True)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "site-packages" not in frame.filename]
    frames = [frame for frame in frames if not frame.filename.startswith(("<", sysconfig.get_path("stdlib")))]
    if not frames:
        return _Place("", False)
    last = frames[-1]
    own = Path(last.filename).resolve().is_relative_to(Path(collm.algorithms.__file__).resolve().parents[1])
    return _Place(f"{last.filename} line {last.lineno}, in {last.name}: {last.line}", not own)


def _with_place(error: BaseException) -> str:
    """The message of an error that is nobody's in particular, and where it was raised."""
    return f"{type(error).__name__}: {error}\n{_place(error).text}".rstrip()


def _check_writable(trainer: Any) -> None:
    """Refuse a log folder that cannot be written before a run has something to lose."""
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


# What jsonargparse says, taken apart

_NOISE = re.compile(
    r"Does not validate against|Subtypes:|Errors:|Given value|Expected a path but|Expected a None$|"
    r"Subclass types expect|a class path \(str\)|a dict with"
)
_UNKNOWN = re.compile(r"(?:[Oo]ption|[Kk]ey) '([\w.]+)'(?! is not accepted as)|unrecognized arguments: -*([\w.]+)")
_CLASS = re.compile(r"(?:dot import path string:|given class_path|Import path) '?([\w.]+)")
_COMPONENTS = {
    "model": MultiAgentModule,
    "environment": Environment,
    "sampler": Sampler,
    "eval_sampler": Sampler,
    "callbacks": Callback,
}


def _readable(message: str, parser: LightningArgumentParser) -> str:
    """The cause in jsonargparse's message, and the nearest name to one that is not known."""
    keys: list[str] = []  # where it is, from the outside in
    causes: list[str] = []
    given = ""
    for line in message.splitlines():
        text = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", line.strip().removeprefix("- "))
        text = re.sub(r"Expected a typing\.Literal\[(.*?)\]", r"Expected one of \1", text.replace("NoneType", "None"))
        if match := re.match(r'Parser key "([^"]+)":\s*', text):
            keys.append(match[1])
            text = text[match.end() :]
        if match := re.match(r"Given value: (?!NestedArg)(.{1,200})$", text):
            given = f"got {match[1]}"
        elif text and not _NOISE.match(text):
            causes.append(text)
    where = ".".join(dict.fromkeys(keys))
    causes = [_explained(cause, where, parser) for cause in dict.fromkeys(causes)]
    if (missing := re.search(r"No module named '([\w.]+)'", message)) and f"'{missing[1]}." not in message:
        given, causes = "", [f"no module named {missing[1]!r}, which it imports; install it or correct the name"]
    if given and all(cause.startswith("Expected") and "Got value" not in cause for cause in causes):
        causes.append(given)
    text = (f"{where}: " if where else "") + "; ".join(causes or [message.strip()])
    return re.sub(r"^([\w.]+): ([\w.]+): ", r"\1.\2: ", text)


def _explained(cause: str, where: str, parser: LightningArgumentParser) -> str:
    """`cause` in the words of this project, with the nearest right name where one is unknown."""
    if cause.startswith("unknown setting"):  # explained by the parser of a component already
        return cause
    if cause.endswith(" is abstract"):
        return f"no class is chosen yet; put --{where}=... in front of its settings"
    if match := re.search(r"arguments are required: (.*)", cause):
        return f"{match[1]} missing; give a --config that sets it, such as a complete one of configs/experiments"
    if match := _UNKNOWN.search(cause):
        name = match[1] or match[2]
        subcommands = parser._subcommands_action.choices.values() if parser._subcommands_action else ()
        known = {action.dest for one in (parser, *subcommands) for action in one._actions} - {"help"}
        shared = {*inspect.signature(MultiAgentModule).parameters}
        if {dest.partition(".")[0] for dest in known} - {"print_shtab"} == shared:
            return (
                f"unknown setting {name!r}; no algorithm is chosen yet, or one that lacks it: put --model=... in front "
                "of its settings"
            )
        return f"unknown setting {name!r}; {_nearest(name, known, 1)}"
    if match := _CLASS.search(cause):
        name = match[1]
        bases = [base for key, base in _COMPONENTS.items() if key in where.split(".")[-1:]] or _COMPONENTS.values()
        known = {cls.__name__ for base in bases for cls in _subclasses(base)}
        return f"{name!r} is not a class that fits here; {_nearest(name.split('.')[-1], known, 2)}"
    return cause


def _nearest(name: str, known: set[str], num: int) -> str:
    if near := difflib.get_close_matches(name, sorted(known), num, 0.6):
        return f"did you mean {' or '.join(map(repr, near))}?"
    return f"there are {', '.join(sorted(known))}" if len(known) <= 50 else "--help lists all there are"


def _subclasses(cls: type) -> Iterator[type]:
    """Classes of this project that can stand where `cls` is asked for."""
    subclasses: list[type] = cls.__subclasses__()
    for subclass in subclasses:
        yield from _subclasses(subclass)
        if subclass.__module__.startswith("collm.") and not inspect.isabstract(subclass):
            yield subclass
