"""The replay page of a run, in its folder."""

from __future__ import annotations

from pathlib import Path

import lightning as L
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from collm.errors import ConfigurationError
from collm.replay.page import write_page
from collm.replay.sources import has_transcripts


class WriteReplay(L.Callback):
    """Writes `replay.html`, which shows the episodes of evaluations, at the end of `fit` and the other commands."""

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # a broadcast, so all ranks take part
        if not trainer.is_global_zero or trainer.fast_dev_run or not has_transcripts(folder):  # type: ignore[attr-defined]
            return
        try:
            write_page([folder], folder / "replay.html", f"{folder.parent.name} {folder.name}")
        except ConfigurationError as error:  # no reason for a finished run to fail
            rank_zero_warn(f"there is no replay page: {error}")
            return
        if trainer.state.fn != "fit":  # which ends with a list of all files
            print(f"\nreplay: {folder / 'replay.html'} (open it in a browser)")

    on_test_end = on_fit_end
    on_predict_end = on_fit_end

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "validate":
            self.on_fit_end(trainer, pl_module)
