"""Engines side by side: `python tools/bench.py engines`, whole iterations of CoLLM-CC with adapters, on any device.

Every engine that is installed plays and learns the same work: responses of a fixed length, random or SmolLM2's weights.
CPU seconds stand beside the wall time, because they hardly depend on what else a machine does. Servers of `--served`
run on this machine too, one and two of each agent, with rollouts before updates (synchronous) and beside them
(overlapped).
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
import time
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import lightning as L
import torch

from collm.algorithms.collm_cc import CoLLMCC
from collm.benchmark.operations import Iterations, play_and_learn
from collm.benchmark.served import OneRun, Served, servers
from collm.benchmark.timed_table import Table
from collm.benchmark.tiny_model import build_benchmark_model
from collm.critics.language_model import LanguageModelCritic
from collm.data import RolloutDataModule
from collm.environments.workload import Workload
from collm.models.endpoint_spec import EndpointSpec
from collm.models.policy_spec import PolicySpec
from collm.models.specs import ModelSpec

LORA: dict[str, Any] = {"lora_rank": 16, "lora_alpha": 32.0, "learning_rate": 1e-5}


class CpuSeconds(L.Callback):
    """CPU seconds of this process, and of servers, in each iteration."""

    def __init__(self, served: Served | None):
        self.measured: list[float] = []
        self.served = served
        self.began = self.now()

    def now(self) -> float:
        """CPU seconds so far."""
        return time.process_time() + (self.served.cpu_seconds() if self.served else 0.0)

    def on_train_batch_end(self, *args: Any) -> None:
        now = self.now()
        self.measured.append(now - self.began)
        self.began = now


def measure_engines(known: argparse.Namespace) -> int:
    """Measure every engine with every model; the exit status is 1 if one failed."""
    known.device = "cuda" if torch.cuda.is_available() else "cpu"
    table = Table(known, "engines")
    with tempfile.TemporaryDirectory() as folder:
        build_benchmark_model(folder, layers=2, heads=2, tied=False)  # every engine takes heads of 64 numbers
        for model in known.models:
            path = folder if model == "heads of 64" else model
            for engine in known.engines:
                name = f"{model}, {engine}"
                if is_missing(engine):
                    table.add(name, "not installed")
                else:
                    table.measure(name, partial(iteration, known, table, name, spec_of(known, path, engine)))
            for backend, number in product(known.served, known.servers if known.served else []):
                name = f"{model}, {backend}, {number} server{'s' * (number > 1)} of each agent"
                if is_missing(backend):
                    table.add(name, "not installed")
                else:
                    table.measure(name, partial(through_servers, known, table, name, path, backend, number))
    print(f"\n{table.text()}", end="")
    return int(table.failed)


def is_missing(engine: str) -> bool:
    """Whether an engine is an optional package that is not installed."""
    return engine == "vllm" and importlib.util.find_spec("vllm") is None


def spec_of(known: argparse.Namespace, path: str, engine: str) -> PolicySpec:
    """The settings of every agent."""
    new = known.new_tokens
    return PolicySpec(
        path, engine=engine, max_new_tokens=new, min_new_tokens=new, top_p=known.top_p, context_length=512, **LORA
    )


def through_servers(known: argparse.Namespace, table: Table, name: str, path: str, backend: str, number: int) -> None:
    """Measure iterations whose rollouts come from servers on this machine, one after the other and overlapped."""
    spec = spec_of(known, path, "endpoint")
    with (
        tempfile.TemporaryDirectory() as folder,
        servers(spec, Workload(2, 1).agent_ids, backend, number, Path(folder), known.each) as served,
    ):
        for ahead, kind in enumerate(("synchronous", "overlapped")):
            iteration(known, table, f"{name}, {kind}", spec, served, ahead)


def iteration(
    known: argparse.Namespace,
    table: Table,
    name: str,
    spec: PolicySpec,
    served: Served | None = None,
    ahead: int = 0,
) -> None:
    """Measure iterations of two agents and a critic, each an adapter on one model.

    Args:
        known: Arguments of the command.
        table: Where rows are added.
        name: Name of the row.
        spec: Settings of the agents.
        served: The servers, for engine endpoint.
        ahead: `data.max_staleness`.
    """
    data = RolloutDataModule(
        Workload(2, 1, known.prompt_tokens, num_tasks=known.joint_samples),
        tasks_per_rollout=known.joint_samples,
        rollouts_per_epoch=1 + known.iterations + ahead,  # nothing is generated beside the last update
        max_staleness=ahead,
    )
    critic = LanguageModelCritic(ModelSpec(spec.path, context_length=512, **LORA))
    agents: dict[str, Any] = {"policy": spec}
    if served:
        endpoints = {name: EndpointSpec(urls, trained=True, patience=known.each) for name, urls in served.urls.items()}
        agents = {"policies": {name: replace(spec, endpoint=endpoint) for name, endpoint in endpoints.items()}}
    module = CoLLMCC(agent_ids=data.agent_ids, critic=critic, parameters="lora", **agents)
    rounds, cpu = Iterations(lora=True), CpuSeconds(served)
    play_and_learn(module, data, "auto", rounds, cpu, *([OneRun()] if served else []))
    measured = slice(1, 1 + known.iterations)
    warm = rounds.measured[measured]
    seconds, generate = (statistics.median(one[key] for one in warm) for key in ("seconds", "generate"))
    tokens = warm[0]["sampled_tokens"]
    while_generating = {} if ahead else {"sampled_tokens_per_second": tokens / generate}
    table.add(
        name,
        3600 * known.joint_samples / seconds,
        "joint samples/hour",
        **while_generating,  # with the next rollout beside the update, nobody knows how long it takes alone
        tokens_per_second_of_iterations=tokens / seconds,
        seconds=seconds,
        generate_seconds=generate,
        cpu_seconds=statistics.median(cpu.measured[measured]),
        first_seconds=rounds.measured[0]["seconds"],
    )
