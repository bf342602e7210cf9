"""Runs without the command line, whose parsing takes most of a short run, in this process or in two at once."""

from __future__ import annotations

import functools
import importlib
import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import Strategy

from collm.callbacks.baseline import EvaluateFirst
from collm.callbacks.export import ExportAgents
from collm.callbacks.interruption import StopInOrder
from collm.callbacks.samples import LogSamples
from collm.critics.base import Critic
from collm.data import RolloutDataModule
from collm.models.policy_spec import PolicySpec
from collm.models.specs import ModelSpec
from collm.strategies.checkpoints import FileOrFolder
from collm.strategies.fsdp import FullySharded
from collm.strategies.placed import Placed
from toy import TellToStop


@dataclass
class Run:
    """One run: the folder it is in, a configuration as `toy_config` makes it, and how its processes work together.

    `strategy` is `one` (a single process), `ddp`, or the arguments of `FullySharded`, or of `Placed` (in one process).
    """

    folder: str
    config: dict[str, Any]
    strategy: str | dict[str, Any] = "one"
    checkpoint: str | None = None
    told_to_stop: bool = False
    trainer: dict[str, Any] = field(default_factory=dict)

    def fit(self) -> L.Trainer:
        Path(self.folder).mkdir(exist_ok=True)
        L.seed_everything(0, verbose=False)
        given, data = self.config["model"]["init_args"], dict(self.config["data"])
        sampler = data.pop("sampler", None)
        datamodule = RolloutDataModule(made(data.pop("environment")), made(sampler) if sampler else None, **data)
        rest = {name: value for name, value in given.items() if name not in ("policy", "critic")}
        rest |= {name: later(given[name]) for name in ("optimizer", "lr_schedule") if name in given}
        module = named(self.config["model"]["class_path"])(
            agent_ids=datamodule.agent_ids,
            policy=PolicySpec(**given["policy"]),
            **({"critic": critic_of(given["critic"])} if "critic" in given else {}),
            **rest,
        )
        module.hparams.clear()  # objects here, which checkpoints cannot hold
        callbacks = [StopInOrder(), EvaluateFirst(), LogSamples(), ExportAgents()]
        callbacks.append(ModelCheckpoint(filename="last", save_on_train_epoch_end=True, enable_version_counter=False))
        options = {"enable_progress_bar": False, "num_sanity_val_steps": 0, "log_every_n_steps": 1}
        options["devices"] = 1 if self.strategy == "one" or "devices" in self.strategy else 2
        trainer = L.Trainer(
            strategy=self.made_strategy(),
            logger=TensorBoardLogger(f"{self.folder}/logs", "collm", default_hp_metric=False),
            callbacks=callbacks + ([TellToStop()] if self.told_to_stop else []),
            inference_mode=False,
            **(options | self.config["trainer"] | self.trainer),
        )
        trainer.strategy.checkpoint_io = FileOrFolder()
        trainer.fit(module, datamodule=datamodule, ckpt_path=self.checkpoint)
        return trainer

    def made_strategy(self) -> str | Strategy:
        if isinstance(self.strategy, str):
            return {"one": "auto", "ddp": "ddp"}[self.strategy]
        return Placed(**self.strategy) if "devices" in self.strategy else FullySharded(**self.strategy)


def named(path: str) -> type:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def critic_of(spec: dict[str, Any]) -> Critic:
    options = dict(spec.get("init_args", {}))
    if "model" in options:
        options["model"] = ModelSpec(**options["model"])
    return named(spec["class_path"])(**options)


def made(spec: dict[str, Any]) -> Any:
    return named(spec["class_path"])(**spec.get("init_args", {}))


def later(spec: str | dict[str, Any]) -> Any:
    spec = {"class_path": spec} if isinstance(spec, str) else spec
    return functools.partial(named(spec["class_path"]), **spec.get("init_args", {}))


def fit_in_pair(folder: Path, runs: Sequence[Run], timeout: float = 300, start: str = "fork") -> None:
    """Do `runs` one after another in two processes; the exit status of each is left in its folder.

    Processes are forked, as the imports take longer than many a run; `start` may be `spawn`.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    logs = [folder / f"rank_{rank}.log" for rank in range(2)]
    context: Any = multiprocessing.get_context(start)
    processes = [context.Process(target=fit_as_rank, args=(rank, port, runs, log)) for rank, log in enumerate(logs)]
    for process in processes:
        process.start()
    deadline = time.monotonic() + timeout
    try:
        for process in processes:
            process.join(max(0, deadline - time.monotonic()))
        codes = [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0], "\n".join(log.read_text()[-3000:] for log in logs)


def fit_as_rank(rank: int, port: int, runs: Sequence[Run], log: Path) -> None:
    """Do `runs` as one of two processes, with the variables in which Lightning looks for the other one."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    os.environ |= {"NODE_RANK": "0", "LOCAL_RANK": str(rank)}
    sys.stdout = sys.stderr = log.open("w", buffering=1)
    for descriptor in (1, 2):  # what is printed below Python
        os.dup2(sys.stdout.fileno(), descriptor)
    for run in runs:
        status = 0
        print(f"--- {run.folder}")
        try:
            run.fit()
        except SystemExit as stopped:
            status = stopped.code
        Path(run.folder, f"status_{rank}").write_text(str(status))
