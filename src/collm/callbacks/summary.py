"""Prints what a run trains at its start, and its results and their folder at its end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L

FILES = {
    "replay": ("replay.html", "the episodes, turn by turn: open it in a browser"),
    "curve": ("return.png", "return on held-out tasks with its interval"),
    "pictures": ("before_after.png", "the first and the last evaluation"),
    "agents": ("agents", "every agent as a folder that transformers or peft loads"),
    "continue": ("checkpoints/last.ckpt", "for --ckpt_path"),
}


class PrintSummary(L.Callback):
    """Prints a table of agents and critics before training, and at its end what came of it and where the files are."""

    def __init__(self) -> None:
        self.returns: list[list[float]] = []  # mean and interval of each evaluation
        self._began = time.perf_counter()
        self._trained_before: int | None = None  # joint samples, before the run was resumed; None: nothing is trained

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._began = time.perf_counter()
        rows = [("network", "model", "parameters", "trained", "numbers", "device"), *networks(pl_module)]
        if trainer.is_global_zero:
            print("\n" + in_columns(rows))

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        if self._trained_before is None:  # callbacks are asked before the algorithm, which counts the batch
            self._trained_before = pl_module.joint_samples

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        found = [trainer.callback_metrics.get(f"eval/return{end}") for end in ("", "_low", "_high")]
        if trainer.state.fn == "fit" and all(value is not None for value in found):
            self.returns.append([float(value) for value in found if value is not None])

    # `on_train_end` is not called when a run resumes from the checkpoint of its last update
    def on_fit_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # a broadcast, so all ranks take part
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        lines = [(what, str(folder / name), words) for what, (name, words) in FILES.items() if (folder / name).exists()]
        if any(folder.glob("events.out.tfevents.*")):
            lines.append(("curves", f"tensorboard --logdir {folder.parent}", "all runs of this name"))
        minutes, seconds = divmod(round(time.perf_counter() - self._began), 60)
        if (before := self._trained_before) is not None:
            print(
                f"\ntrained on {pl_module.joint_samples - before:,} joint samples in {minutes} min {seconds:02} s"
                + f", after {before:,} before the run was resumed" * bool(before)
            )
        else:
            done = f"the run of {pl_module.joint_samples:,} joint samples was at its end"
            print(f"\n{done}, so nothing was trained; a larger --trainer.max_epochs goes on")
        if len(self.returns) > 1:
            first, last = (
                f"{mean:.2f} [{low:.2f}, {high:.2f}]" for mean, low, high in self.returns[:: len(self.returns) - 1]
            )
            print(f"return on held-out tasks: {first} before, {last} after")
        if lines:
            print(in_columns(lines))

    def state_dict(self) -> dict[str, Any]:
        return {"returns": self.returns}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.returns = [[float(value) for value in one] for one in state["returns"]]


def networks(module: Any) -> Iterator[tuple[str, ...]]:
    """Name, model, number of parameters, of trained ones, their format and device, of every agent and critic."""
    for name, members in module.policy_learners.items():
        policy = module.policies[members[0]]
        whose = name if len(members) == 1 else f"{name} ({', '.join(members)})"
        yield _network(whose, policy.spec, policy.backbone, module.learners[name], module)
    for name, critic in getattr(module, "critics", {}).items():
        network = getattr(critic, "network", None)
        if network is None or not hasattr(network, "backbone"):  # not a language model
            yield (name, type(critic).__name__, "", f"{_count(module.learners.get(name, ())):,}", "", "")
        else:
            trained = module.learners.get(name, network.trainable_parameters())
            yield _network(name, critic.model, network.backbone, trained, module)


def _network(name: str, spec: Any, backbone: Any, trained: Any, module: Any) -> tuple[str, ...]:
    own = (
        spec.path
        + (" (random)" if spec.random_weights else "")
        + (f", LoRA {spec.lora_rank}" if spec.lora_rank else "")
    )
    total = _count(backbone.lm.parameters())
    device = backbone.home or module.device
    return (name, own, f"{total:,}", f"{_count(trained):,}", backbone.dtype, str(device))


def _count(weights: Any) -> int:
    return sum(weight.numel() for weight in weights)


def in_columns(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows of text with their columns aligned."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
