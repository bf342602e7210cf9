"""A file that marks a run as finished: a run that was stopped by a signal also exits without an error."""

from __future__ import annotations

import json
from pathlib import Path

import lightning as L

from collm.runtime.files import write_text


class MarkFinished(L.Callback):
    """Writes `finished.json` to the run's folder when training has reached its end, and only then."""

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # a broadcast, so all ranks take part
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            record = {"epochs": trainer.current_epoch, "joint_samples": pl_module.joint_samples}
            write_text(folder / "finished.json", json.dumps(record))
