"""A few evaluated episodes as a table in the console."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import TQDMProgressBar

from collm.callbacks.samples import firsts
from collm.callbacks.summary import in_columns
from collm.runtime.checks import COUNT, check_number
from collm.runtime.terminal import printable
from collm.trajectory import RolloutBatch, Trajectory


class PrintSamples(L.Callback):
    """Prints what the agents wrote in a few episodes after every evaluation, with the reward of every turn.

    `--trainer.callbacks+=PrintSamples` adds it to a run.

    Args:
        num_episodes: Episodes, of different tasks.
        max_characters: Characters of an answer that are shown.
    """

    def __init__(self, num_episodes: int = 2, max_characters: int = 60):
        self.num_episodes = check_number("PrintSamples.num_episodes", num_episodes, COUNT)
        self.max_characters = check_number("PrintSamples.max_characters", max_characters, COUNT)
        self._chosen: dict[str, Trajectory] = {}

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: RolloutBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        for index in firsts(batch.trajectories):
            trajectory = batch.trajectories[index]
            if len(self._chosen) < self.num_episodes:
                self._chosen.setdefault(trajectory.task.task_id, trajectory)

    on_test_batch_end = on_validation_batch_end

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        rows = [("task", "turn", "agent", "writes", "reward")]
        for task_id, trajectory in self._chosen.items():
            for number, turn in enumerate(trajectory.turns, 1):
                for agent_id, action in turn.actions.items():
                    text = in_one_line(action.text, self.max_characters)
                    rows.append((task_id, str(number), agent_id, text, f"{turn.reward:.3f}"))
        self._chosen = {}
        if trainer.is_global_zero and len(rows) > 1:
            bar = trainer.progress_bar_callback
            text = f"\nafter {pl_module.joint_samples:,} joint samples\n{in_columns(rows)}"
            tell = bar.print if isinstance(bar, TQDMProgressBar) and bar.is_enabled else print
            tell(text)

    on_test_epoch_end = on_validation_epoch_end


def in_one_line(text: str, most: int) -> str:
    """At most `most` characters of `text` on one line; what a terminal might obey is replaced."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= most else f"{line[: most - 1]}…"
