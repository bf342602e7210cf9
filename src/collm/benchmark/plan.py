"""The command that tells how much memory a configuration needs, without loading weights.

The algorithm is built as for a run, but on PyTorch's meta device, where parameters have a shape but no memory;
`memory` computes its needs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from collm import cli
from collm.benchmark.memory import Plan
from collm.benchmark.options import plan_parser
from collm.models.loading import ASSETS

GB = 1e9
_CONTEXT = 1.5  # GB for CUDA, its libraries and the collectives


def table(plan: Plan, devices: Sequence[int], memory: float) -> Iterator[str]:
    """The needs as a Markdown table, in GB (10^9 bytes) per device; the fullest device if they differ."""
    columns = ["parameters", "gradients", "optimizer", "activations", "gathered", "sampled", "cache", "peak"]
    several = ("ddp",) if plan.quantized else ("ddp", "fsdp")  # quantized weights cannot be sharded
    rows = [
        (number, strategy, plan.needs(number, strategy == "fsdp"))
        for number in devices
        for strategy in (several if number > 1 else ("one device",))
    ]
    networks = plan.module.networks()
    if len(networks) > 1 and plan.module.parameters_mode != "lora":
        rows.append((len(networks), "placed", plan.placed()))
    yield "| devices | strategy | " + " | ".join(columns) + f" | of {memory:g} GB |"
    yield "|---|---|" + "---:|" * len(columns) + "---|"
    for number, strategy, needs in sorted(rows, key=lambda row: row[0]):
        cells = [f"{getattr(needs, name) / GB:.1f}" for name in columns]
        free = memory - _CONTEXT - needs.peak / GB
        verdict = f"fits, {free:.0f} GB free" if free >= 0 else f"{-free:.0f} GB too much"
        yield f"| {number} | {strategy} | " + " | ".join(cells) + f" | {verdict} |"


class _Planning(cli.CollmCLI):
    """The command line, which stops before weights are loaded."""

    options: argparse.Namespace

    def before_instantiate_classes(self) -> None:
        super().before_instantiate_classes()
        config = self.config[self.subcommand]
        overrides = {
            "accelerator": "cpu",
            "devices": 1,
            "num_nodes": 1,
            "strategy": "auto",
            "logger": False,
            "callbacks": None,
        }
        for name, value in overrides.items():  # the run may be planned on another machine
            config.trainer[name] = value
        config.trainer.callbacks = None
        arguments = config.model.init_args
        critic = (arguments.get("critic") or {}).get("init_args", {}).get("model")
        for spec in [arguments.policy, critic, *(arguments.get("policies") or {}).values()]:
            if spec is not None:
                spec.path = self.config_path(spec.path)
                spec.random_weights = True

    def config_path(self, path: str) -> str:
        """`path`, or a folder with the configuration of a hub model, if the package ships its configuration."""
        known = json.loads((ASSETS / "architectures.json").read_text())
        if path not in known:
            return path
        folder = Path(self.options.folder) / path.replace("/", "_")
        if not folder.exists():
            shutil.copytree(ASSETS / "tiny", folder, ignore=shutil.ignore_patterns("*.safetensors"))
            (folder / "config.json").write_text(json.dumps(known[path]))
        return str(folder)

    def _run_subcommand(self, subcommand: str) -> None:
        with torch.device("meta"):
            self.model.configure_model()
        horizon, spec = self.datamodule.environment.horizon, next(iter(self.model.specs.values()))
        history = horizon * (self.options.prompt_tokens + spec.max_new_tokens)
        rows = self.datamodule.tasks_per_rollout * self.datamodule.num_generations
        plan = Plan(self.model, rows, min(history, spec.prompt_room() + spec.max_new_tokens))
        for line in describe(plan, self.options):
            print(line)


def describe(plan: Plan, options: argparse.Namespace) -> Iterator[str]:
    """The networks, the assumptions and the table."""
    module = plan.module
    copies = [(f"reference of {name}", one) for name, one in module.reference_backbones.items()]
    for name, backbone in [*module.backbones.items(), *copies]:
        count = sum(weight.numel() for weight in backbone.lm.parameters())
        adapters = f", adapters {', '.join(backbone.adapters)}" if backbone.adapters else ""
        how = f"{backbone.lm.dtype}{f' and {backbone.quantization}' if backbone.quantization else ''}"
        yield f"{name}: {count:,} parameters in {how}{adapters}".replace("torch.", "")
    trains = {name: sum(weight.numel() for weight in weights) for name, weights in module.learners.items()}
    yield "trains: " + ", ".join(f"{name} {count:,}" for name, count in trains.items())
    yield (
        f"assumed: {module.tokens_per_micro_batch:,} tokens per micro-batch, {plan.rows} episodes side by side, "
        f"histories of {plan.history:,} tokens ({options.prompt_tokens} per turn beside the response)"
    )
    yield "peak = parameters + gradients + optimizer + the larger of (activations + gathered) and (sampled + cache)"
    yield ""
    yield from table(plan, options.devices, options.memory)


def main(default_config: str | Path | None = None, args: Sequence[str] | None = None) -> int:
    """Print the memory needs of a configuration; the exit status is that of `fit`."""
    options, rest = plan_parser().parse_known_args(args)
    with tempfile.TemporaryDirectory() as folder:
        options.folder = folder
        planning = type("Planning", (_Planning,), {"options": options})
        return cli.main(default_config, ["fit", *rest], planning)
