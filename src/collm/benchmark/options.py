"""How the commands of this room are called; nothing large is imported, so that their help appears at once."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

BENCHMARKS = """Benchmarks: any configuration against the floor, and the table of the README.

    python tools/bench.py run --config configs/experiments/str_build_tiny.yaml
    python tools/bench.py table --out bench [--comlrl PYTHON] [--trl PYTHON] [--only floor/tiny growth]
    python tools/bench.py scaling --processes 2 --tasks 8 --config configs/experiments/tldr_smollm2.yaml
    python tools/bench.py gpu --out bench_gpu
    python tools/bench.py engines --out bench

`run` takes the arguments of `fit` and measures rounds of one rollout and one update. `table` measures each ratio in
separate processes and writes a JSON file for it; existing files are not measured again. Ratios to other libraries need
the Python interpreter of an environment in which the library is installed. `scaling` compares several processes with
one, with one thread and equally many tasks for each; it needs as many cores. `gpu` measures a GPU and the performance
of a model with the shape of Qwen3-1.7B on it, in five minutes. `engines` compares the engines that generate.
"""
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
PEERS = {"comlrl": "peer_comlrl.py", "trl": "peer_trl.py"}
"""Other libraries, each with the script that measures it."""

SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-1.7b": {
        "vocab_size": 151936,
        "hidden_size": 2048,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 6144,
    },
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 128,
    },
}
"""Models that `gpu` measures."""


def plan_parser() -> argparse.ArgumentParser:
    """Options of the command `plan`; all others are those of `fit`."""
    parser = argparse.ArgumentParser(
        description="Memory that a configuration needs on every device. All other arguments are those of `fit`.",
        allow_abbrev=False,
    )
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 8], help="numbers of devices")
    parser.add_argument("--memory", type=float, default=141.0, help="memory of a device in GB (an H200 has 141)")
    parser.add_argument("--prompt_tokens", type=int, default=1024, help="tokens of an observation at each turn")
    return parser


def bench_parser() -> argparse.ArgumentParser:
    """Options of the command `bench`."""
    parser = argparse.ArgumentParser(description=BENCHMARKS, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure one configuration; all other arguments are those of fit")
    run.add_argument("--no-floor", action="store_true", help="do not measure the floor for comparison")
    run.add_argument("--in-turn", action="store_true", help="wait for a line on standard input before every round")
    run.add_argument("--threads", type=int, default=1, help="threads of the computation (1)")
    table = commands.add_parser("table", help="measure all ratios of the README, with one thread on one core")
    table.add_argument("--only", nargs="*", default=[], help="prefixes of the names of the ratios to measure")
    for peer in PEERS:
        table.add_argument(f"--{peer}", metavar="PYTHON", help=f"interpreter of an environment with {peer}")
    scaling = commands.add_parser("scaling", help="several processes against one; all other arguments are those of fit")
    scaling.add_argument("--processes", type=int, default=2, help="processes with one thread each (2)")
    scaling.add_argument("--tasks", type=int, default=8, help="tasks per rollout of each process (8)")
    card = commands.add_parser("gpu", help="performance of a GPU and the share that a run reaches, with random weights")
    _add_gpu(card)
    side_by_side = commands.add_parser("engines", help="the engines that generate, in whole iterations")
    _add_engines(side_by_side)
    for command, out in ((run, "bench.json"), (table, "bench")):
        command.add_argument("--out", type=Path, default=Path(out), help=f"where results are written ({out})")
    for command in (run, table, scaling):
        command.add_argument("--rounds", type=int, default=5, help="measured rounds (5)")
        command.add_argument("--warmup", type=int, default=1, help="rounds before them (1)")
    for command in (run, table):
        command.add_argument(
            "--clock",
            choices=list(CLOCKS),
            default="wall",
            help="wall time or CPU time (wall); CPU time is more reliable on a shared machine",
        )
    return parser


def _add_gpu(parser: argparse.ArgumentParser) -> None:
    """Options of `gpu`."""
    parser.add_argument(
        "--out", type=Path, default=Path("bench_gpu"), help="folder for gpu.json and gpu.md (bench_gpu)"
    )
    parser.add_argument("--shape", choices=list(SHAPES), default="qwen3-1.7b", help="shape of the model (qwen3-1.7b)")
    parser.add_argument("--dtype", default="bfloat16", help="dtype of the weights (bfloat16)")
    parser.add_argument("--device", help="device of all measurements (cuda if there is one)")
    parser.add_argument("--engines", nargs="+", default=["collm", "transformers"], help="engines that sample")
    parser.add_argument("--rows", nargs="+", type=int, default=[16, 64], help="sequences decoded in one batch (16 64)")
    parser.add_argument("--prompt-tokens", type=int, default=128, help="tokens of a prompt (128)")
    parser.add_argument("--new-tokens", type=int, default=128, help="tokens of a response (128)")
    parser.add_argument("--agents", type=int, default=2, help="agents of an iteration (2)")
    parser.add_argument("--turns", type=int, default=2, help="turns of an iteration (2)")
    parser.add_argument("--joint-samples", type=int, default=64, help="joint samples of an iteration (64)")
    parser.add_argument("--micro-batch", type=int, default=8192, help="tokens of a forward and backward pass (8192)")
    parser.add_argument("--iterations", type=int, default=3, help="measured iterations, after a warm-up (3)")
    parser.add_argument("--size", type=int, default=8192, help="rows of the matrices that measure peak FLOP/s (8192)")
    parser.add_argument("--limit", type=float, default=280, help="time limit of all measurements in seconds (280)")
    parser.add_argument("--each", type=float, default=75, help="time limit of each measurement in seconds (75)")


def _add_engines(parser: argparse.ArgumentParser) -> None:
    """Options of `engines`."""
    parser.add_argument("--out", type=Path, default=Path("bench"), help="folder for the results (bench)")
    parser.add_argument("--models", nargs="+", default=["heads of 64", "smollm2"], help="models (both)")
    parser.add_argument(
        "--engines", nargs="+", default=["collm", "transformers", "vllm"], help="engines (collm transformers vllm)"
    )
    parser.add_argument("--served", nargs="*", default=["vllm"], help="servers: collm, transformers, vllm (vllm)")
    parser.add_argument("--servers", nargs="+", type=int, default=[1, 2], help="servers of each agent (1 2)")
    parser.add_argument("--joint-samples", type=int, default=8, help="joint samples of an iteration (8)")
    parser.add_argument("--prompt-tokens", type=int, default=64, help="words of a prompt (64)")
    parser.add_argument("--new-tokens", type=int, default=32, help="tokens of a response (32)")
    parser.add_argument("--iterations", type=int, default=3, help="measured iterations, after a warm-up (3)")
    parser.add_argument("--top-p", type=float, default=1.0, help="top-p of all engines (1)")
    parser.add_argument("--limit", type=float, default=3600, help="time limit of all measurements in seconds (3600)")
    parser.add_argument("--each", type=float, default=900, help="time limit of each measurement in seconds (900)")
