"""Runs without the command line, whose parsing takes most of a short run, in this process or in two at once.

`python pair.py runs.json` is started once for each rank, with the variables in which Lightning looks for it.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger

from collm.callbacks.baseline import EvaluateFirst
from collm.callbacks.export import ExportAgents
from collm.callbacks.interruption import StopInOrder
from collm.callbacks.samples import LogSamples
from collm.data import RolloutDataModule
from collm.models.critic import CriticSpec
from collm.models.policy import PolicySpec
from collm.strategies.checkpoints import FileOrFolder
from collm.strategies.fsdp import FullySharded
from toy import REPOSITORY, TellToStop


@dataclass
class Run:
    """One run: the folder it is in, a configuration as `toy_config` makes it, and how its processes work together.

    `strategy` is `one` (a single process), `ddp`, or the arguments of `FullySharded`.
    """

    folder: str
    config: dict[str, Any]
    strategy: str | dict[str, Any] = "one"
    checkpoint: str | None = None
    told_to_stop: bool = False
    trainer: dict[str, Any] = field(default_factory=dict)

    def fit(self) -> None:
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
            **({"critic": CriticSpec(**given["critic"])} if "critic" in given else {}),
            **rest,
        )
        module.hparams.clear()  # objects here, which checkpoints cannot hold
        callbacks = [StopInOrder(), EvaluateFirst(), LogSamples(), ExportAgents()]
        callbacks.append(ModelCheckpoint(filename="last", save_on_train_epoch_end=True, enable_version_counter=False))
        options = {"enable_progress_bar": False, "num_sanity_val_steps": 0, "log_every_n_steps": 1}
        trainer = L.Trainer(
            strategy={"one": "auto", "ddp": "ddp"}[self.strategy]
            if isinstance(self.strategy, str)
            else FullySharded(**self.strategy),
            devices=1 if self.strategy == "one" else 2,
            logger=TensorBoardLogger(f"{self.folder}/logs", "collm", default_hp_metric=False),
            callbacks=callbacks + ([TellToStop()] if self.told_to_stop else []),
            inference_mode=False,
            **(options | self.config["trainer"] | self.trainer),
        )
        trainer.strategy.checkpoint_io = FileOrFolder()
        trainer.fit(module, datamodule=datamodule, ckpt_path=self.checkpoint)


def named(path: str) -> type:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def made(spec: dict[str, Any]) -> Any:
    return named(spec["class_path"])(**spec.get("init_args", {}))


def later(spec: str | dict[str, Any]) -> Any:
    spec = {"class_path": spec} if isinstance(spec, str) else spec
    return functools.partial(named(spec["class_path"]), **spec.get("init_args", {}))


def fit_in_pair(folder: Path, runs: list[Run], timeout: float = 300) -> None:
    """Do `runs` one after another in two processes; the exit status of each is left in its folder."""
    (folder / "runs.json").write_text(json.dumps([asdict(run) for run in runs]))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY / "src"), str(REPOSITORY / "tests")]),
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "NODE_RANK": "0",
    }
    logs = [folder / f"rank_{rank}.log" for rank in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder / "runs.json")],
            env=os.environ | shared | {"LOCAL_RANK": str(rank)},
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
        )
        for rank, log in enumerate(logs)
    ]
    try:
        codes = [process.wait(timeout) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0], "\n".join(log.read_text()[-3000:] for log in logs)


def main() -> None:
    torch.set_num_threads(1)
    for given in json.loads(Path(sys.argv[1]).read_text()):
        run, status = Run(**given), 0
        print(f"--- {run.folder}", flush=True)
        try:
            run.fit()
        except SystemExit as stopped:
            status = stopped.code
        Path(run.folder, f"status_{os.environ['LOCAL_RANK']}").write_text(str(status))


if __name__ == "__main__":
    main()
