"""Checkpoints that are foreign, damaged, misshapen or missing: nothing in them is run, and one message says why."""

from __future__ import annotations

import io
import json
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint import FileSystemReader, save
from torch.distributed.checkpoint.metadata import Metadata

from collm.errors import ConfigurationError
from collm.models.loading import load_model
from collm.runtime.files import read_file
from collm.strategies.checkpoints import FileOrFolder, read_folder
from collm.strategies.folder_metadata import read_metadata
from collm.studies.gradients import load
from collm.studies.record_gradients import take_policies
from toy import REPOSITORY

Fit = Callable[..., int]


class Hostile:
    """Leaves a file when it is unpickled."""

    def __init__(self, trace: Path):
        self.trace = str(trace)

    def __reduce__(self) -> tuple:
        return open, (self.trace, "w")


@pytest.fixture(scope="module")
def finished(finish: Callable[..., Path]) -> Path:
    """The folder of a finished run of two updates."""
    return finish("--trainer.limit_val_batches=0", "--model.critic.replay=2")


@pytest.fixture
def checkpoint(finished: Path) -> dict[str, Any]:
    return torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)


def message(capsys: pytest.CaptureFixture[str]) -> str:
    """The one message of a run that could not begin."""
    written = capsys.readouterr().err
    assert "Traceback" not in written
    assert written.count("error: ") == 1
    return written.partition("error: ")[2].partition("\n(COLLM_TRACEBACK")[0]


def as_folder(checkpoint: dict[str, Any], path: Path) -> Path:
    """`checkpoint` as several processes would have written it."""
    optimizers = {f"optimizer_{index}": state for index, state in enumerate(checkpoint["optimizer_states"])}
    save({"state_dict": checkpoint["state_dict"], **optimizers}, checkpoint_id=path, no_dist=True)
    rest = {name: value for name, value in checkpoint.items() if name not in ("state_dict", "optimizer_states")}
    torch.save(rest, path / "meta.pt")
    return path


# Nothing is run


def hostile_file(path: Path, trace: Path) -> None:
    torch.save({"state_dict": Hostile(trace)}, path)


def hostile_pickle(path: Path, trace: Path) -> None:
    path.write_bytes(pickle.dumps(Hostile(trace)))


def hostile_old_format(path: Path, trace: Path) -> None:
    torch.save({"state_dict": Hostile(trace)}, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("write", [hostile_file, hostile_pickle, hostile_old_format])
def test_code_in_a_file_is_not_run(
    tmp_path: Path, fit: Fit, capsys: pytest.CaptureFixture[str], write: Callable[[Path, Path], None]
) -> None:
    path, trace = tmp_path / "foreign.ckpt", tmp_path / "trace"
    write(path, trace)
    assert fit(f"--ckpt_path={path}") == 2
    assert "foreign.ckpt' could not be read: " in message(capsys)
    for read in (read_file, FileOrFolder().load_checkpoint, load, lambda path: take_policies(_Nothing(), str(path))):
        with pytest.raises(ConfigurationError, match=r"foreign.ckpt' could not be read: UnpicklingError"):
            read(path)
    assert not trace.exists()


class _Nothing(torch.nn.Module):
    policy_learners: tuple = ()
    learners: dict = {}


def hostile_metadata(folder: Path, trace: Path) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps(Metadata({}, {"a": Hostile(trace)}, {})))


def hostile_meta(folder: Path, trace: Path) -> None:
    torch.save({"collm": Hostile(trace)}, folder / "meta.pt")


def hostile_number(folder: Path, trace: Path) -> None:
    """Put code where a learning rate is stored, and leave everything else at its offset."""
    metadata = FileSystemReader(folder).read_metadata()
    part = io.BytesIO()
    torch.save(Hostile(trace), part)
    file = folder / "__0_0.distcp"
    key = next(key for key in metadata.storage_data if key.fqn == "optimizer_0.param_groups.0.lr")
    metadata.storage_data[key].offset = file.stat().st_size
    metadata.storage_data[key].length = len(part.getvalue())
    file.write_bytes(file.read_bytes() + part.getvalue())
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


@pytest.mark.parametrize("write", [hostile_metadata, hostile_meta, hostile_number])
def test_code_in_a_folder_is_not_run(
    tmp_path: Path,
    checkpoint: dict[str, Any],
    fit: Fit,
    capsys: pytest.CaptureFixture[str],
    write: Callable[[Path, Path], None],
) -> None:
    folder, trace = as_folder(checkpoint, tmp_path / "foreign.ckpt"), tmp_path / "trace"
    write(folder, trace)
    assert fit(f"--ckpt_path={folder}", "--model.critic.replay=2") == 2
    assert "could not be read: UnpicklingError: " in message(capsys)
    assert not trace.exists()


def test_code_in_weights_is_not_run(tmp_path: Path, tiny_folder: str) -> None:
    folder, trace = Path(shutil.copytree(tiny_folder, tmp_path / "model")), tmp_path / "trace"
    (folder / "model.safetensors").unlink()
    torch.save({"a": Hostile(trace)}, folder / "pytorch_model.bin")
    with pytest.raises(Exception, match=r"(?i)weights.only|could not be read|damaged|might run code"):
        load_model(str(folder), "float32")
    assert not trace.exists()


UNSAFE = r"\bpickle\.loads?\(|joblib|allow_pickle|shelve|marshal\.load|yaml\.(load|unsafe_load|full_load)\(|hub\.load"


@pytest.mark.parametrize("folder", ["src", "tools"])
def test_no_code_uses_unsafe_loading(folder: str) -> None:
    for path in sorted((REPOSITORY / folder).rglob("*.py")):
        text = path.read_text()
        assert re.findall(UNSAFE, text) == [], path
        loads = re.findall(r"torch\.load\([^\n]*", text)
        assert [call for call in loads if "weights_only=True" not in call] == [], path


def test_metadata_is_read_as_torch_reads_it(tmp_path: Path, checkpoint: dict[str, Any]) -> None:
    folder = as_folder(checkpoint, tmp_path / "checkpoint")
    expected, found = FileSystemReader(folder).read_metadata(), read_metadata(folder)
    assert len(found.state_dict_metadata) > 100
    for name in ("state_dict_metadata", "planner_data", "storage_data"):
        assert getattr(found, name) == getattr(expected, name), name
    read = read_folder(folder, lambda where, size, dtype: torch.empty(size, dtype=dtype), alone=True)
    for name in ("state_dict", "optimizer_states"):
        torch.testing.assert_close(read[name], checkpoint[name], rtol=0, atol=0)


def test_metadata_cannot_change_classes(tmp_path: Path) -> None:
    """A pickle may assign to what it names: here `Metadata.version` and `torch.Size.version`."""
    for module, name in (("torch.distributed.checkpoint.metadata", "Metadata"), ("torch", "Size")):
        pickled = b"c" + f"{module}\n{name}\n".encode() + b"(N}Vversion\nVhostile\nstb."
        (tmp_path / ".metadata").write_bytes(pickled)
        with pytest.raises(TypeError):
            read_metadata(tmp_path)
    assert Metadata.version is None
    assert not hasattr(torch.Size, "version")


def test_metadata_names_no_file_outside_its_folder(tmp_path: Path, checkpoint: dict[str, Any]) -> None:
    folder = as_folder(checkpoint, tmp_path / "checkpoint")
    metadata = FileSystemReader(folder).read_metadata()
    next(iter(metadata.storage_data.values())).relative_path = "../secret"
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(ConfigurationError, match=r"names a file outside its folder, '\.\./secret'"):
        FileOrFolder().load_checkpoint(folder)


# Damaged, keyless, misshapen


def cut_off(content: bytes) -> bytes:
    return content[: len(content) // 2]


def one_bit(content: bytes) -> bytes:
    """One bit of the largest tensor differs."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
    middle = largest.header_offset + largest.file_size // 2 + 500
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (cut_off, "PytorchStreamReader failed"),
        (one_bit, "the checksum of 'archive/data/"),
        (lambda content: b"", "EOFError"),
        (lambda content: b"PK" + bytes(100), "could not be read"),
    ],
)
def test_a_damaged_file(
    finished: Path,
    tmp_path: Path,
    fit: Fit,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[bytes], bytes],
    cause: str,
) -> None:
    path = tmp_path / "damaged.ckpt"
    path.write_bytes(change((finished / "checkpoints" / "last.ckpt").read_bytes()))
    assert fit(f"--ckpt_path={path}") == 2
    told = message(capsys)
    assert "damaged.ckpt' could not be read" in told
    assert cause in told
    assert "Give the path of another one" in told


def without(*keys: str) -> Callable[[dict], None]:
    def change(checkpoint: dict) -> None:
        for key in keys[:-1]:
            checkpoint = checkpoint[key]
        del checkpoint[keys[-1]]

    return change


def setting(value: Any, *keys: Any) -> Callable[[dict], None]:
    def change(checkpoint: dict) -> None:
        for key in keys[:-1]:
            checkpoint = checkpoint[key]
        checkpoint[keys[-1]] = value

    return change


WEIGHT = "backbones.<a1>.lm.model.norm.weight"
LOOP = ("loops", "fit_loop", "epoch_progress", "current", "processed")
MISFITS = {
    "keyless": (without("collm"), "there is no 'collm' in it"),
    "no_weights": (without("state_dict"), "there is no 'state_dict' in it"),
    "no_loops": (without("loops"), "there is no 'loops' in it"),
    "no_version": (without("pytorch-lightning_version"), "there is no 'pytorch-lightning_version' in it"),
    "weights_of_no_kind": (setting([1], "state_dict"), "there is no 'state_dict' in it"),
    "algorithm": (setting("MAGRPO", "collm", "algorithm"), "has algorithm MAGRPO, this run has CoLLMCC"),
    "a_weight_less": (without("state_dict", WEIGHT), f"it lacks 1 weights that this run needs, '{WEIGHT}' among them"),
    "shape": (setting(torch.ones(3), "state_dict", WEIGHT), f"'{WEIGHT}' is of shape [3] there and [32] here"),
    "kind": (setting("x", "state_dict", WEIGHT), f"'{WEIGHT}' is a str there, a tensor here"),
    "type": (setting(torch.ones(32).int(), "state_dict", WEIGHT), "is of type torch.int32 there and torch.float32"),
    "samples": (setting("many", "collm", "joint_samples"), "its joint_samples is 'many', not a count"),
    "no_samples": (without("collm", "joint_samples"), "its joint_samples is None, not a count"),
    "rollouts": (setting(-1, "collm", "num_rollouts"), "its num_rollouts is -1, not a count"),
    "rate": (setting({"a1": 0.0}, "collm", "learning_rates"), "not positive numbers"),
    "optimizer_less": (lambda one: one["optimizer_states"].pop(), "it has 2 optimizers, this run has 3"),
    "no_optimizers": (without("optimizer_states"), "it has no optimizers, this run has 3"),
    "no_optimizer": (setting(7, "optimizer_states", 1), "the state of the optimizer of 'a2' is not one"),
    "moment": (
        setting(torch.ones(2), "optimizer_states", 0, "state", 0, "exp_avg"),
        "'exp_avg' of weight 0 of 'a1' is of shape [2] there and",
    ),
    "step": (setting(torch.ones(2), "optimizer_states", 0, "state", 0, "step"), "is of shape [2] there and [] here"),
    "weights_of_an_optimizer": (
        lambda one: one["optimizer_states"][0]["param_groups"][0]["params"].pop(),
        "the optimizer of 'a1' has",
    ),
    "loop": (
        setting("far", "loops", "fit_loop", "epoch_progress", "current", "processed"),
        "loops.fit_loop.epoch_progress.current.processed is a str, not a int",
    ),
    "loop_lost": (without("loops", "fit_loop", "epoch_progress"), "loops.fit_loop.epoch_progress is missing"),
    "schedules": (without("lr_schedulers"), "does not fit this run, or is damaged (KeyError"),
    "callbacks": (setting({"LogSamples": 3}, "callbacks"), "does not fit this run, or is damaged (TypeError"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_a_misshapen_checkpoint(
    tmp_path: Path, checkpoint: dict[str, Any], fit: Fit, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    change, cause = MISFITS[case]
    change(checkpoint)
    path = tmp_path / "misfit.ckpt"
    torch.save(checkpoint, path)
    assert fit(f"--ckpt_path={path}", "--trainer.max_epochs=3", "--model.critic.replay=2") == 2
    told = message(capsys)
    assert f"checkpoint {str(path)!r}" in told
    assert cause in told


# Which one, and by whom


@pytest.mark.parametrize("name", ["last", "best", "hpc"])
def test_a_missing_named_checkpoint(fit: Fit, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert fit(f"--ckpt_path={name}") == 2
    assert f"'{name}'" in message(capsys)


def test_ckpt_path_last_resumes_in_the_same_folder_and_finishes_a_complete_run(
    fit: Fit, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    same = ["--trainer.logger.init_args.version=0", "--trainer.limit_val_batches=0", "--trainer.max_epochs=1"]
    same.append("--trainer.callbacks+=collm.callbacks.finished.MarkFinished")
    assert fit(*same) == 0
    agent = (run_folder / "agents" / "a1" / "model.safetensors").read_bytes()
    told = (run_folder / "finished.json").read_text()
    assert json.loads(told) == {"epochs": 1, "joint_samples": 4}
    shutil.rmtree(run_folder / "agents")
    (run_folder / "finished.json").unlink()
    (run_folder / "checkpoints" / ".last.ckpt.123.tmp").write_text("what a killed run left")
    assert "trained on 4 joint samples" in capsys.readouterr().out
    assert fit(*same, "--ckpt_path=last") == 0
    shown = capsys.readouterr().out
    assert "the run of 4 joint samples was at its end, so nothing was trained" in shown
    assert "trained on" not in shown
    assert (run_folder / "agents" / "a1" / "model.safetensors").read_bytes() == agent
    assert (run_folder / "finished.json").read_text() == told
    assert not (run_folder / "checkpoints" / ".last.ckpt.123.tmp").exists()
