"""The command that tells how much memory a configuration needs, without loading weights.

The algorithm is built as for a run, but on PyTorch's meta device, where parameters have a shape but no memory;
`memory` computes its needs.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace

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
        for spec in model_specs(config.model.init_args):
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
        data, prompt_tokens = self.datamodule, self.options.prompt_tokens
        specs = [self.model.specs[name] for name, policy in self.model.policies.items() if policy.has_weights]
        history = max(
            min(data.environment.horizon * (prompt_tokens + spec.max_new_tokens), spec.max_tokens()) for spec in specs
        )
        rows = data.tasks_per_rollout * data.sampler.most_at_once(data.environment, data.num_generations)
        plan = Plan(self.model, rows, history)
        for line in describe(plan, self.options):
            print(line)


def model_specs(settings: Any) -> Iterator[Any]:
    """The specifications of all models in parsed settings, of critics inside of critics as well."""
    if isinstance(settings, Namespace) and "random_weights" in settings:
        yield settings
    elif isinstance(settings, (Namespace, Mapping)):
        for value in (vars(settings) if isinstance(settings, Namespace) else settings).values():
            yield from model_specs(value)


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
        f"assumed: {module.tokens_per_micro_batch:,} tokens per micro-batch, {plan.rows} responses side by side, "
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
