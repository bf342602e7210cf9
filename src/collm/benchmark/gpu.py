"""Performance of a GPU, and the share of it that decoding and updates reach: `python tools/bench.py gpu`.

All measurements use random weights of a known shape, in one process.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from transformers import Qwen3Config

from collm.algorithms.collm_cc import CoLLMCC
from collm.benchmark.operations import Iterations, play_and_learn
from collm.benchmark.options import SHAPES
from collm.benchmark.timed_table import Table
from collm.benchmark.tiny_model import build_tokenizer
from collm.critics.language_model import LanguageModelCritic
from collm.data import RolloutDataModule
from collm.environments.workload import Workload
from collm.inference.actors import Actors
from collm.models.backbone import Backbone
from collm.models.policy import Policy
from collm.models.policy_spec import PolicySpec
from collm.models.random_model import write_model
from collm.models.specs import ModelSpec

LORA = {"lora_rank": 16, "lora_alpha": 32.0}


def measure_gpu(known: argparse.Namespace) -> int:
    """Make all measurements; the exit status is 1 if one failed for a reason other than time or memory."""
    known.device = known.device or ("cuda" if torch.cuda.is_available() else "cpu")
    table = Table(known)
    bench = Bench(known, table)
    print(table.text(), end="", flush=True)
    table.measure("card", bench.card)
    with tempfile.TemporaryDirectory() as folder:
        bench.write_model(folder)
        for engine in known.engines:
            table.measure(f"decode, {engine}", partial(bench.decode, engine))
        for parameters in ("separate", "lora"):
            for engine in known.engines if parameters == "separate" else known.engines[:1]:
                name = f"iteration, {parameters}, {engine}"
                table.measure(name, partial(bench.iteration, name, parameters, engine))
    print(f"\n{table.text()}\n{known.out / 'gpu.json'}:")
    print((known.out / "gpu.json").read_text(), flush=True)
    return int(table.failed)


class Bench:
    """The measurements.

    Args:
        known: Arguments of the command.
        table: Table for the results.
    """

    def __init__(self, known: argparse.Namespace, table: Table):
        self.known = known
        self.table = table
        self.device = torch.device(known.device)
        self.folder = ""
        self.bandwidth = self.peak = float("nan")  # bytes and operations per second

    def write_model(self, folder: str) -> None:
        """Write configuration and tokenizer of the model; its weights are made on the device."""
        self.folder = folder
        shape = dict(SHAPES[self.known.shape])
        tokenizer = build_tokenizer(shape.pop("vocab_size"))
        shape |= {"max_position_embeddings": 4096, "tie_word_embeddings": True}
        write_model(folder, tokenizer, Qwen3Config, seed=None, **shape)

    def seconds(self, work: Callable[[], Any], times: int = 1) -> float:
        """Average seconds of `work` on the device."""
        self.wait()
        began = time.perf_counter()
        for _ in range(times):
            work()
        self.wait()
        return (time.perf_counter() - began) / times

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def card(self) -> None:
        """Measure memory bandwidth by a copy on the device, and FLOP/s by matrix products."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        self.table.add("card", name, torch=torch.__version__, threads=torch.get_num_threads())
        size, dtype = self.known.size, getattr(torch, self.known.dtype)
        source = torch.ones(size * size * 8, dtype=torch.bfloat16, device=self.device)
        target = torch.empty_like(source)
        target.copy_(source)
        self.bandwidth = 2 * source.nbytes / self.seconds(lambda: target.copy_(source), 10)
        self.table.add("memory, copy on the device", self.bandwidth / 1e9, "GB/s", bytes=source.nbytes)
        left, right = (torch.randn(size, size, device=self.device).to(dtype) for _ in range(2))
        left @ right
        seconds = min(self.seconds(lambda: left @ right, 5) for _ in range(4))
        self.peak = 2 * size**3 / seconds
        self.table.add(f"product of {size} x {size}, {self.known.dtype}", self.peak / 1e12, "TFLOP/s")

    def decode(self, engine: str) -> None:
        """Measure tokens per second of decoding, without the time of the first token, which includes the prefill."""
        known = self.known
        with self.device:
            backbone = Backbone(self.folder, known.dtype, random_weights=True)
        backbone.to(self.device).eval()
        weights = sum(weight.nbytes for weight in backbone.parameters())
        config = backbone.lm.config
        per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 2
        generator = torch.Generator(self.device).manual_seed(0)
        cpu_generator = torch.Generator().manual_seed(0)

        def actors(new: int) -> Actors:
            spec = PolicySpec(
                self.folder, dtype=known.dtype, engine=engine, max_new_tokens=new, min_new_tokens=new, keep_cache=False
            )
            return Actors({"a": Policy("a", spec, backbone, None)})

        def respond(asked: Actors, prompts: list[list[int]]) -> None:
            with asked.serving(0):
                asked.sample({"a": prompts}, generator, False)

        for rows in known.rows:
            prompts = torch.randint(2, config.vocab_size, (rows, known.prompt_tokens), generator=cpu_generator).tolist()
            first, full = actors(1), actors(known.new_tokens)
            respond(actors(4), prompts)
            prefill = self.seconds(partial(respond, first, prompts))
            total = self.seconds(partial(respond, full, prompts))
            step = (total - prefill) / (known.new_tokens - 1)
            read = weights + rows * (known.prompt_tokens + known.new_tokens / 2) * per_token
            self.table.add(
                f"decode, {engine}, {rows} rows",
                rows / step,
                "tokens/s",
                share_of_bandwidth_limit=read / self.bandwidth / step,
                milliseconds_per_step=1e3 * step,
                limit_tokens_per_second=rows * self.bandwidth / read,
                prefill_seconds=prefill,
                with_prefill_tokens_per_second=rows * known.new_tokens / total,
            )

    def iteration(self, name: str, parameters: str, engine: str) -> None:
        """Measure rollout, values and updates of CoLLM-CC, and the share of peak FLOP/s that updates reach."""
        known = self.known
        lora = LORA if parameters == "lora" else {}
        shared: dict[str, Any] = {"path": self.folder, "dtype": known.dtype, "random_weights": True, **lora}
        new = known.new_tokens
        policy = PolicySpec(**shared, engine=engine, max_new_tokens=new, min_new_tokens=new)
        tasks = max(1, known.joint_samples // known.turns)
        data = RolloutDataModule(
            Workload(known.agents, known.turns, known.prompt_tokens, num_tasks=tasks),
            tasks_per_rollout=tasks,
            rollouts_per_epoch=1 + known.iterations,
        )
        module = CoLLMCC(
            agent_ids=data.agent_ids,
            policy=policy,
            critic=LanguageModelCritic(ModelSpec(**shared)),
            parameters=parameters,
            tokens_per_micro_batch=known.micro_batch,
        )
        rounds = Iterations(lora=bool(lora))
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        try:
            play_and_learn(module, data, "gpu" if self.device.type == "cuda" else "cpu", rounds)
        finally:  # keep the measurements that were made before the time limit
            if rounds.measured:
                self.report(name, rounds.measured)
            else:
                print(f"{name}: no iteration was measured", file=sys.stderr)

    def report(self, name: str, measured: list[dict[str, float]]) -> None:
        """Add the rows of an iteration: medians over the measured iterations after the first."""
        warm = measured[1:] or measured
        median = {key: statistics.median(iteration[key] for iteration in warm) for key in warm[0]}
        update = median["update/policy"] + median["update/critic"] + median["values"]
        known_phases = {"generate": median["generate"], "update": update - median["values"], "values": median["values"]}
        other = median["seconds"] - sum(known_phases.values())
        shares = {f"{phase}_seconds": seconds for phase, seconds in {**known_phases, "other": other}.items()}
        cuda = self.device.type == "cuda"
        peak = {"peak_memory_gb": torch.cuda.max_memory_allocated(self.device) / 1e9} if cuda else {}
        self.table.add(
            name,
            3600 * median["joint_samples"] / median["seconds"],
            "joint samples/hour",
            seconds=median["seconds"],
            **shares,
            **peak,
            sampled_tokens_per_second=median["sampled_tokens"] / median["generate"],
            iterations=len(warm),
            first_seconds=measured[0]["seconds"],
        )
        self.table.add(
            f"{name}: update and values",
            median["operations"] / update / self.peak,
            "of the measured operations/s",
            teraflop=median["operations"] / 1e12,
            teraflop_per_second=median["operations"] / update / 1e12,
            tokens=median["tokens"],
            tokens_per_second=median["tokens"] / update,
        )
