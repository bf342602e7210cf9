"""Transcripts and pictures of episodes, in TensorBoard and in the run's folder."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image, ImageDraw

from collm.environments.contract import pictured
from collm.runtime.checks import COUNT_OR_ZERO, check_number
from collm.runtime.collectives import gather_objects
from collm.runtime.files import replacing
from collm.trajectory import RolloutBatch, Trajectory


class LogSamples(L.Callback):
    """Writes the episodes of evaluations and predictions to files and TensorBoard.

    Every evaluation writes all transcripts to `transcripts/` and a few of them as text and pictures to TensorBoard.
    `before_after.png` shows the pictures of the first and of the last evaluation. `predict` writes
    `predictions.jsonl`. Transcripts are written batch by batch, so a run that breaks off keeps them.

    Args:
        num_shown: Episodes of different tasks shown per evaluation.
    """

    def __init__(self, num_shown: int = 4):
        self.num_shown = check_number("LogSamples.num_shown", num_shown, COUNT_OR_ZERO)
        self._shown: dict[str, Trajectory] = {}
        self._first: np.ndarray | None = None

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: RolloutBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        assert trainer.state.stage is not None  # only while no loop runs
        name = f"transcripts/{trainer.state.stage.value}-{pl_module.joint_samples:08d}.jsonl"
        for trajectory in _keep(trainer, name, batch, batch_idx):
            if len(self._shown) < self.num_shown:
                self._shown.setdefault(trajectory.task.task_id, trajectory)

    on_test_batch_end = on_validation_batch_end

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: RolloutBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        _keep(trainer, "predictions.jsonl", batch, batch_idx)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        shown, self._shown = list(self._shown.values()), {}
        folder, step = _folder(trainer), pl_module.joint_samples
        if not trainer.is_global_zero or not shown:
            return
        environment = trainer.datamodule.environment  # type: ignore[attr-defined]
        picture = side_by_side([pictured(environment, trajectory) for trajectory in shown])
        if picture is not None:
            if self._first is None:
                self._first = picture
            _save_comparison(folder / "before_after.png", self._first, picture, step)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                for index, trajectory in enumerate(shown):
                    logger.experiment.add_text(f"eval/transcript_{index}", as_markdown(trajectory), step)
                if picture is not None:
                    logger.experiment.add_image("eval/final_states", picture, step, dataformats="HWC")

    on_test_epoch_end = on_validation_epoch_end

    def on_predict_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        folder = _folder(trainer)
        if trainer.is_global_zero:
            print(f"transcripts are in {folder / 'predictions.jsonl'}")

    def state_dict(self) -> dict[str, Any]:
        return {"first": None if self._first is None else self._first.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["first"] is not None:
            self._first = np.array(state["first"], dtype=np.uint8)


def _keep(trainer: L.Trainer, name: str, batch: RolloutBatch, batch_idx: int) -> list[Trajectory]:
    """Append a batch, of all ranks, to a file in the run's folder, one JSON object per line and episode."""
    trajectories = list(chain.from_iterable(gather_objects([*batch.trajectories, *batch.left_out])))
    path = _folder(trainer) / name
    if trainer.is_global_zero:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w" if batch_idx == 0 else "a") as file:
            file.writelines(json.dumps(trajectory.record()) + "\n" for trajectory in trajectories)
    return trajectories


def as_markdown(trajectory: Trajectory) -> str:
    """An episode for the text tab of TensorBoard."""
    lines = [f"**{trajectory.task.task_id}**, return {trajectory.total_reward:.3f}"]
    for index, turn in enumerate(trajectory.turns):
        lines.append(f"### turn {index + 1}, reward {turn.reward:.3f}")
        for message in turn.messages or [item for agent_id in turn.actions for item in turn.written_by(agent_id)]:
            shown, written = _quoted(message.observation), _quoted(message.action.text)
            lines.append(f"{message.agent_id} is shown\n{shown}\nand writes\n{written}")
    return "\n\n".join(lines)


def side_by_side(pictures: list[np.ndarray | None]) -> np.ndarray | None:
    """Concatenate pictures horizontally on a white background; None without pictures."""
    present = [picture for picture in pictures if picture is not None]
    if not present:
        return None
    height = max(picture.shape[0] for picture in present)
    padded = [np.pad(p, ((0, height - p.shape[0]), (0, 8), (0, 0)), constant_values=255) for p in present]
    return np.concatenate(padded, axis=1)


def _quoted(text: str) -> str:
    # an indented code block, which the text cannot end
    return "\n" + "\n".join("    " + line for line in (text or "(nothing)").splitlines()) + "\n"


def _folder(trainer: L.Trainer) -> Path:
    """The run's folder; a broadcast, so all ranks have to call it."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def _save_comparison(path: Path, before: np.ndarray, after: np.ndarray, step: int) -> None:
    """Save the pictures of the first and the last evaluation, one above the other, with captions."""
    width, caption = max(before.shape[1], after.shape[1]), 24
    canvas = Image.new("RGB", (width, before.shape[0] + after.shape[0] + 2 * caption), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((4, 4), "before training: target and build", fill="black")
    canvas.paste(Image.fromarray(before), (0, caption))
    draw.text((4, caption + before.shape[0] + 4), f"after {step} joint samples: target and build", fill="black")
    canvas.paste(Image.fromarray(after), (0, 2 * caption + before.shape[0]))
    with replacing(path) as unfinished:
        canvas.save(unfinished, "PNG")
