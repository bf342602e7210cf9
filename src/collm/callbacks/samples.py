"""Transcripts and pictures of episodes, in TensorBoard and in the run's folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image, ImageDraw
from torch import Tensor

from collm.environments.contract import pictured
from collm.runtime.checks import COUNT_OR_ZERO, check_number
from collm.runtime.collectives import gather_objects
from collm.runtime.files import replacing
from collm.trajectory import RolloutBatch, Trajectory


class LogSamples(L.Callback):
    """Writes the episodes of evaluations and predictions to files and TensorBoard.

    Every evaluation writes all transcripts to `transcripts/` and a few of them as text and pictures to TensorBoard.
    `before_after.png` shows the pictures of the first and of the last evaluation. `predict` writes
    `predictions.jsonl`. Transcripts are written batch by batch, so a run that breaks off keeps them. They hold the
    environment's picture of every turn, what critics expected of it and, for some episodes, the log-probability of
    every token and the entropy of the distribution it was drawn from. Nothing is written in a `fast_dev_run`.

    Args:
        num_shown: Episodes of different tasks shown per evaluation.
        num_with_tokens: Episodes of different tasks per batch of an evaluation whose transcripts hold the tokens, which
            takes one forward pass of the policies for the entropies.
        estimates: Ask critics for the values of evaluated episodes, which takes one forward pass of them.
    """

    def __init__(self, num_shown: int = 4, num_with_tokens: int = 16, estimates: bool = True):
        self.num_shown = check_number("LogSamples.num_shown", num_shown, COUNT_OR_ZERO)
        self.num_with_tokens = check_number("LogSamples.num_with_tokens", num_with_tokens, COUNT_OR_ZERO)
        self.estimates = estimates
        self._shown: dict[str, Trajectory] = {}
        self._first: np.ndarray | None = None

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        trainer.datamodule.eval_sampler.pictures = True  # type: ignore[attr-defined]

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: RolloutBatch, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        name = f"transcripts/{trainer.state.stage.value}-{pl_module.joint_samples:08d}.jsonl"
        for trajectory in self._keep(trainer, pl_module, name, batch, batch_idx):
            if len(self._shown) < self.num_shown:
                self._shown.setdefault(trajectory.task.task_id, trajectory)

    on_test_batch_end = on_validation_batch_end

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: RolloutBatch, batch_idx: int, *args: Any
    ) -> None:
        self._keep(trainer, pl_module, "predictions.jsonl", batch, batch_idx)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        shown, self._shown = list(self._shown.values()), {}
        folder, step = _folder(trainer), pl_module.joint_samples
        if not trainer.is_global_zero or not shown or trainer.fast_dev_run:  # type: ignore[attr-defined]
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
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            print(f"transcripts are in {folder / 'predictions.jsonl'}")

    def _keep(
        self, trainer: L.Trainer, pl_module: Any, name: str, batch: RolloutBatch, batch_idx: int
    ) -> list[Trajectory]:
        """Append a batch, of all ranks, to a file in the run's folder, one JSON object per line and episode."""
        if self.estimates and hasattr(pl_module, "estimates"):
            note_estimates(batch, pl_module.estimates(batch))
        own = [*batch.trajectories, *batch.left_out]
        chosen = [own[index] for index in firsts(own)[: self.num_with_tokens]]
        gathered = gather_objects((own, pl_module.token_entropies(chosen)))
        trajectories = list(chain.from_iterable(part for part, _ in gathered))
        entropies = {uid: values for _, part in gathered for uid, values in part.items()}
        path = _folder(trainer) / name
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            with_tokens = set(firsts(trajectories)[: self.num_with_tokens])
            path.parent.mkdir(parents=True, exist_ok=True)
            numbers: dict[str, str] = {}  # of actions, so that transcripts do not depend on random ids
            with path.open("w" if batch_idx == 0 else "a") as file:
                for index, trajectory in enumerate(trajectories):
                    record = trajectory.record()
                    add_branches(record, trajectory, numbers)
                    if index in with_tokens:
                        add_tokens(record, trajectory, pl_module.policies, entropies)
                    file.write(json.dumps(record) + "\n")
        return trajectories

    def state_dict(self) -> dict[str, Any]:
        return {"first": None if self._first is None else self._first.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["first"] is not None:
            self._first = np.array(state["first"], dtype=np.uint8)


def note_estimates(batch: RolloutBatch, estimates: Mapping[str, Tensor]) -> None:
    """Write what critics say, [B, T] by name, to the turns of a batch."""
    for name, values in estimates.items():
        for trajectory, row in zip(batch.trajectories, values.tolist(), strict=True):
            for turn, value in zip(trajectory.turns, row, strict=False):
                turn.estimates[name] = value


def add_branches(record: dict[str, Any], trajectory: Trajectory, numbers: dict[str, str]) -> None:
    """Add to a transcript the node of every turn in its rollout tree, and numbers of its actions, equal if shared."""
    for kept, turn in zip(record["turns"], trajectory.turns, strict=True):
        if turn.branch is not None:
            actions = {name: numbers.setdefault(one.uid, str(len(numbers))) for name, one in turn.actions.items()}
            kept["branch"] = {"node": turn.branch.node, "parent": turn.branch.parent, "actions": actions}


def firsts(trajectories: Sequence[Trajectory]) -> list[int]:
    """Index of the first trajectory of each task."""
    return sorted({one.task.task_id: index for index, one in reversed([*enumerate(trajectories)])}.values())


def add_tokens(
    record: dict[str, Any],
    trajectory: Trajectory,
    policies: Mapping[str, Any],
    entropies: Mapping[str, Sequence[float]],
) -> None:
    """Add to a transcript the tokens of every action: text, log-probability and, where it is known, entropy.

    Those of scripts, stand-ins and servers that tell no log-probabilities are left out.
    """
    for kept, turn in zip(record["turns"], trajectory.turns, strict=True):
        kept["tokens"] = {}
        for agent_id, action in turn.actions.items():
            known = action.policy_version is not None or any(action.log_probs)  # unknown ones are noted as 0
            if action.log_probs and known:
                pieces = [policies[agent_id].tokenizer.decode([token]) for token in action.token_ids]
                numbers = [[round(value, 3) for value in action.log_probs]]
                numbers += [[round(value, 3) for value in entropies[action.uid]]] if action.uid in entropies else []
                kept["tokens"][agent_id] = [list(token) for token in zip(pieces, *numbers, strict=True)]


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
    width, caption = max(before.shape[1], after.shape[1], 600), 40
    canvas = Image.new("RGB", (width, before.shape[0] + after.shape[0] + 2 * caption), "white")
    draw = ImageDraw.Draw(canvas)
    top = 0
    for words, picture in (("before training", before), (f"after {step:,} joint samples", after)):
        draw.text((20, top + 8), words, fill="black", font_size=24)
        canvas.paste(Image.fromarray(picture), (0, top + caption))
        top += caption + picture.shape[0]
    with replacing(path) as unfinished:
        canvas.save(unfinished, "PNG")
