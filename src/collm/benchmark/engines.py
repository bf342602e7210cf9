"""Engines side by side: `python tools/bench.py engines`, whole iterations of CoLLM-CC with adapters, on any device.

Every engine that is installed plays and learns the same work: responses of a fixed length, random or SmolLM2's weights.
CPU seconds stand beside the wall time, because they hardly depend on what else a machine does.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
import time
from functools import partial
from typing import Any

import lightning as L
import torch

from collm.algorithms.collm_cc import CoLLMCC
from collm.benchmark.operations import Iterations, play_and_learn
from collm.benchmark.timed_table import Table
from collm.benchmark.tiny_model import build_benchmark_model
from collm.critics.language_model import LanguageModelCritic
from collm.data import RolloutDataModule
from collm.environments.workload import Workload
from collm.models.policy_spec import PolicySpec
from collm.models.specs import ModelSpec

LORA: dict[str, Any] = {"lora_rank": 16, "lora_alpha": 32.0, "learning_rate": 1e-5}


class CpuSeconds(L.Callback):
    """CPU seconds of this process in each iteration."""

    def __init__(self) -> None:
        self.measured: list[float] = []
        self.began = time.process_time()

    def on_train_batch_end(self, *args: Any) -> None:
        now = time.process_time()
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
                if engine == "vllm" and importlib.util.find_spec("vllm") is None:
                    table.add(name, "not installed")
                else:
                    table.measure(name, partial(iteration, known, table, name, path, engine))
    print(f"\n{table.text()}", end="")
    return int(table.failed)


def iteration(known: argparse.Namespace, table: Table, name: str, path: str, engine: str) -> None:
    """Measure iterations of two agents and a critic, each an adapter on one model."""
    new = known.new_tokens
    policy = PolicySpec(
        path, engine=engine, max_new_tokens=new, min_new_tokens=new, top_p=known.top_p, context_length=512, **LORA
    )
    data = RolloutDataModule(
        Workload(2, 1, known.prompt_tokens, num_tasks=known.joint_samples),
        tasks_per_rollout=known.joint_samples,
        rollouts_per_epoch=1 + known.iterations,
    )
    critic = LanguageModelCritic(ModelSpec(path, context_length=512, **LORA))
    module = CoLLMCC(agent_ids=data.agent_ids, policy=policy, critic=critic, parameters="lora")
    rounds, cpu = Iterations(lora=True), CpuSeconds()
    play_and_learn(module, data, "auto", rounds, cpu)
    warm = rounds.measured[1:]
    seconds, generate = (statistics.median(one[key] for one in warm) for key in ("seconds", "generate"))
    table.add(
        name,
        3600 * known.joint_samples / seconds,
        "joint samples/hour",
        sampled_tokens_per_second=warm[0]["sampled_tokens"] / generate,
        seconds=seconds,
        generate_seconds=generate,
        cpu_seconds=statistics.median(cpu.measured[1:]),
        first_seconds=rounds.measured[0]["seconds"],
    )
