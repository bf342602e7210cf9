"""Files and folders that are replaced as one, and folders of runs that only one run writes to at a time."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from collm.errors import TrainingError
from collm.runtime.files import clean, present, replacing, write_text

Fit = Callable[..., int]


def hold(path: Path, ready: Any) -> None:
    """Another run, until it is killed."""
    with path.open("a+") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        lock.write("process 17 on elsewhere")
        lock.flush()
        ready.send(True)
        ready.recv()


def test_only_one_run_at_a_time_in_a_folder(fit: Fit, run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_folder.mkdir(parents=True)
    (run_folder / "config.yaml").write_text("of the other run")
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    other = context.Process(target=hold, args=(run_folder / ".lock", there))
    other.start()
    here.recv()
    same = ["--trainer.logger.init_args.version=0", "--trainer.limit_val_batches=0", "--trainer.max_epochs=1"]
    assert fit(*same) == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told
    assert told.count("error: ") == 1
    assert "version_0 is in use: process 17 on elsewhere runs there. Wait until it has ended" in told
    assert (run_folder / "config.yaml").read_text() == "of the other run"
    assert not (run_folder / "checkpoints").exists()
    other.kill()  # whose lock is nobody's then
    other.join()
    assert fit(*same) == 0
    assert (run_folder / ".lock").read_text().startswith(f"process {os.getpid()} on ")


# Files that are replaced as one


@pytest.mark.parametrize(
    ("old", "new"), [("file", "file"), ("folder", "folder"), ("file", "folder"), ("folder", "file")]
)
@pytest.mark.parametrize("how", ["whole", "broken"])
def test_replacing(tmp_path: Path, old: str, new: str, how: str) -> None:
    def make(path: Path, kind: str, text: str) -> None:
        if kind == "folder":
            path.mkdir()
        (path if kind == "file" else path / "part").write_text(text)

    def content(path: Path) -> str:
        return (path / "part" if path.is_dir() else path).read_text()

    target = tmp_path / "target"
    make(target, old, "old")

    def replace() -> None:
        with replacing(target) as unfinished:
            make(unfinished, new, "new")
            assert content(target) == "old"
            if how == "broken":
                raise OSError(28, "No space left on device")

    if how == "whole":
        replace()
    else:
        with pytest.raises(TrainingError, match=f"{target} could not be written: No space left on device"):
            replace()
    assert content(target) == ("new" if how == "whole" else "old")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_checkpoint_folder_moved_aside_by_a_killed_process_is_found(tmp_path: Path) -> None:
    aside = tmp_path / ".last.ckpt.previous"
    aside.mkdir()
    (aside / "meta.pt").write_text("whole")
    write_text(tmp_path / ".last.ckpt.4.tmp", "half")
    assert present(tmp_path / "last.ckpt") == aside
    clean(tmp_path, "other.ckpt")
    assert present(tmp_path / "last.ckpt") == aside
    clean(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]
    assert (tmp_path / "last.ckpt" / "meta.pt").read_text() == "whole"
