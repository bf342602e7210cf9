"""Runs that are killed at any time or run out of disk: the last checkpoint stays valid, and they resume bit for bit."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tqdm import tqdm

import collm.runtime.files
import collm.strategies.checkpoints
from collm import cli
from collm.strategies.checkpoints import FileOrFolder
from toy import REPOSITORY, toy_config

FORK = multiprocessing.get_context("fork")  # of this process, in which all is imported
OPTIONS = [
    "--data.environment.horizon=1",
    "--trainer.limit_val_batches=0",
    "--trainer.logger.init_args.version=run",
    "--trainer.callbacks+=collm.callbacks.finished.MarkFinished",
    "--model.optimizer=torch.optim.AdamW",
    "--model.critic.model.learning_rate=0.01",
    "--model.num_minibatches=2",  # drawn at random
    "--model.lr_schedule=torch.optim.lr_scheduler.StepLR",
    "--model.lr_schedule.step_size=3",
]
RUN = Path("logs", "collm", "run")


class Attempt:
    """A run in a process of its own, in `folder`, that goes on from the last checkpoint if there is one.

    Args:
        folder: Where `toy.yaml` is.
        epochs: Updates of the whole run.
        before: What is done in the new process first.
    """

    def __init__(self, folder: Path, epochs: int, before: Callable[[], None] = lambda: None):
        self.folder = folder
        self.last = folder / RUN / "checkpoints" / "last.ckpt"
        self.log = folder / "log.txt"
        self.log.unlink(missing_ok=True)
        self.begun, self.saved = FORK.Value("i", -1, lock=False), FORK.Value("i", -1, lock=False)
        resume = [f"--ckpt_path={self.last}"] if self.last.exists() else []
        args = ["fit", "--config=toy.yaml", f"--trainer.max_epochs={epochs}", *OPTIONS, *resume]
        self.process = FORK.Process(target=self._run, args=(args, before), daemon=True)
        self.process.start()

    def _run(self, args: list[str], before: Callable[[], None]) -> None:
        tqdm.set_lock(threading.RLock())  # the one from before the fork is shared: who dies while drawing would keep it
        os.chdir(self.folder)
        sys.stdout = sys.stderr = self.log.open("w", buffering=1)
        for descriptor in (1, 2):
            os.dup2(sys.stdout.fileno(), descriptor)
        save = FileOrFolder.save_checkpoint

        def told(io: FileOrFolder, checkpoint: dict, *args: Any, **kwargs: Any) -> None:
            self.begun.value = checkpoint["collm"]["num_rollouts"]
            save(io, checkpoint, *args, **kwargs)
            self.saved.value = checkpoint["collm"]["num_rollouts"]

        FileOrFolder.save_checkpoint = told
        before()
        os._exit(cli.main(REPOSITORY / "configs" / "base.yaml", args))

    def ended(self) -> int | None:
        """The exit status."""
        self.process.join(120)
        return self.process.exitcode

    def kill(self, seconds: float) -> int | None:
        """`kill -9`, so long after its first update was saved; the exit status."""
        while self.saved.value < 0 and self.process.is_alive():
            time.sleep(0.001)
        self.process.join(seconds)
        self.process.kill()
        return self.ended()


def updates(path: Path) -> int:
    """How many updates a checkpoint has behind it."""
    return torch.load(path, weights_only=True)["collm"]["num_rollouts"]


def assert_same_end(folder: Path, uninterrupted: Path) -> None:
    """That both runs ended, with the same bits in their checkpoints and agents, and nothing unfinished beside them."""
    expected, found = (
        torch.load(one / RUN / "checkpoints" / "last.ckpt", weights_only=True) for one in (uninterrupted, folder)
    )
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        torch.testing.assert_close(found[part], expected[part], rtol=0, atol=0)
    assert found["collm"] == expected["collm"]
    exported = sorted(
        path.relative_to(uninterrupted / RUN) for path in (uninterrupted / RUN / "agents").rglob("*") if path.is_file()
    )
    assert any(path.name == "model.safetensors" for path in exported)
    for path in [*exported, "finished.json"]:
        assert (folder / RUN / path).read_bytes() == (uninterrupted / RUN / path).read_bytes()
    assert leftovers(folder) == []


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*") if path.name != ".lock"]


def prepared(folder: Path, tiny_folder: str) -> Path:
    folder.mkdir()
    (folder / "toy.yaml").write_text(yaml.safe_dump(toy_config(tiny_folder)))
    return folder


class Dying:
    """Kills its process when a save has come to a given point: a byte of the file, or a call.

    Args:
        save: Which save of the process, from 0.
        point: The share of the bytes that are written, or `fsync`, `replace` or `end`.
        size: Bytes of a checkpoint.
    """

    def __init__(self, save: int, point: float | str, size: int):
        self.save, self.point, self.size, self.written = save, point, size, 0

    def __call__(self) -> None:
        torch_save, fsync, replace = torch.save, os.fsync, Path.replace

        def saving(checkpoint: dict, file: Any) -> None:
            self.save -= 1
            torch_save(checkpoint, _Counted(file, self))

        def reach(point: str, call: Callable) -> Callable:
            def reached(*args: Any) -> Any:
                if point == self.point and self.save < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                result = call(*args)
                if point == "replace" and self.point == "end" and self.save < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            return reached

        collm.strategies.checkpoints.torch.save = saving
        collm.runtime.files.os.fsync, Path.replace = reach("fsync", fsync), reach("replace", replace)

    def count(self, num_bytes: int) -> None:
        self.written += num_bytes
        if isinstance(self.point, float) and self.save < 0 and self.written >= self.point * self.size:
            os.kill(os.getpid(), signal.SIGKILL)


class _Counted:
    def __init__(self, file: Any, dying: Dying):
        self.file, self.dying = file, dying

    def write(self, data: bytes) -> int:
        self.file.write(data)
        self.file.flush()
        self.dying.count(len(data))
        return len(data)

    def flush(self) -> None:
        self.file.flush()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, tiny_folder: str) -> Callable[[int], Path]:
    """The folder of an uninterrupted run of so many updates."""
    made: dict[int, Path] = {}

    def of(epochs: int) -> Path:
        if epochs not in made:
            made[epochs] = prepared(tmp_path_factory.mktemp("uninterrupted") / "run", tiny_folder)
            assert Attempt(made[epochs], epochs).ended() == 0
        return made[epochs]

    return of


@pytest.mark.slow
def test_twenty_kills_lose_only_the_current_update(
    tmp_path: Path, tiny_folder: str, uninterrupted: Callable[[int], Path]
) -> None:
    epochs = 40
    folder, rng = prepared(tmp_path / "run", tiny_folder), random.Random(0)
    assert Attempt(folder, 1).ended() == 0
    size = (folder / RUN / "checkpoints" / "last.ckpt").stat().st_size
    before = 1
    while_saving = [0.0, 0.02, 0.3, 0.7, 0.999, "fsync", "replace", "end"]
    kills = while_saving + [None] * (20 - len(while_saving))
    rng.shuffle(kills)
    for point in kills:
        if point is None:
            attempt = Attempt(folder, epochs)
            status = attempt.kill(rng.uniform(0, 0.1))
        else:
            attempt = Attempt(folder, epochs, Dying(rng.randrange(3), point, size))
            status = attempt.ended()
        assert status == -signal.SIGKILL, attempt.log.read_text()
        found = updates(attempt.last)
        assert max(attempt.saved.value, before) <= found <= max(attempt.begun.value, before)
        if point == "end":
            assert found == attempt.begun.value == max(attempt.saved.value, before) + 1
        elif point is not None:
            assert found == max(attempt.saved.value, before)
        before = found
    assert before < epochs
    assert Attempt(folder, epochs).ended() == 0
    assert_same_end(folder, uninterrupted(epochs))


@pytest.mark.slow
def test_a_full_disk_ends_in_one_message_and_keeps_the_last_checkpoint(
    tmp_path: Path, tiny_folder: str, uninterrupted: Callable[[int], Path]
) -> None:
    folder = prepared(tmp_path / "run", tiny_folder)
    assert Attempt(folder, 2).ended() == 0
    last = folder / RUN / "checkpoints" / "last.ckpt"
    content = last.read_bytes()
    for share in (0.02, 0.3, 0.6, 0.9, 0.9999):
        limit = int(share * len(content))
        attempt = Attempt(folder, 4, lambda limit=limit: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
        assert attempt.ended() == 1
        told = attempt.log.read_text()
        assert told.count("error: ") == 1, told
        assert "Traceback" not in told
        causes = ("File too large", "only part of it was written, probably because the disk is full")
        assert any(f"could not be written: {cause}. The previous file, if any," in told for cause in causes)
        assert "--ckpt_path continues a training run from its last checkpoint" in told
        assert last.read_bytes() == content
        assert [path for path in leftovers(folder) if path.suffix == ".tmp"] == []
    assert Attempt(folder, 4).ended() == 0
    assert_same_end(folder, uninterrupted(4))
    assert json.loads((folder / RUN / "finished.json").read_text())["epochs"] == 4
