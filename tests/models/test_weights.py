"""Weights that are cut off, pickled, missing or of another shape: one message, and nothing in them runs."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from collm.errors import ConfigurationError
from collm.models.loading import load_model, load_tokenizer
from collm.models.policy_spec import PolicySpec
from collm.models.specs import ModelSpec

SAFE, PICKLED, INDEX = "model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"
GATE = "model.layers.0.mlp.gate_proj.weight"


@pytest.fixture
def copy(tiny_folder: str, tmp_path: Path) -> Path:
    """The random model's folder, to be spoiled."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


class Evil:
    """Makes a folder when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, ("unpickled",)


def configure(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def cut(folder: Path, name: str = SAFE) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])


def pickled(folder: Path, content: object = None) -> None:
    torch.save(load_file(folder / SAFE) if content is None else content, folder / PICKLED)
    (folder / SAFE).unlink()


def changed(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / SAFE)
    change(weights)
    save_file(weights, folder / SAFE, metadata={"format": "pt"})


def indexed(folder: Path, content: object) -> None:
    (folder / SAFE).unlink()
    (folder / INDEX).write_text(json.dumps(content))


# Before any weights load


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (cut, r"model\.safetensors: .*header"),
        (lambda folder: (folder / SAFE).write_bytes(b""), r"model\.safetensors: .*(?i:header ?too ?small)"),
        (lambda folder: (folder / SAFE).write_bytes(b"\xff" * 999), r"model\.safetensors: .*(?i:header ?too ?large)"),
        (lambda folder: (folder / SAFE).unlink(), "neither model.safetensors nor pytorch_model.bin"),
        (lambda folder: indexed(folder, {"weight_map": {"a": "model-00001-of-00002.safetensors"}}), "model-00001-of"),
        (lambda folder: indexed(folder, [1]), "index.json is no index of weights"),
    ],
    ids=["cut", "empty", "garbage", "none", "shard", "index"],
)
@pytest.mark.parametrize("kind", [PolicySpec, ModelSpec])
def test_files_that_are_missing_or_cut_off(copy: Path, kind: type, spoil: Callable[[Path], None], named: str) -> None:
    kind(str(copy)).check("agent")
    spoiled = Path(shutil.copytree(copy, copy.with_name("spoiled")))
    spoil(spoiled)
    with pytest.raises(
        ConfigurationError, match=rf"no weights could be read from '.*spoiled'.*{named}.*again"
    ) as error:
        kind(str(spoiled)).check("agent")
    assert "\n" not in str(error.value)
    kind(str(spoiled), random_weights=True).check("agent")  # which needs none of them


@pytest.mark.parametrize("vocab_size", [100, 445])
def test_a_tokenizer_that_is_larger_than_the_embeddings(copy: Path, vocab_size: int) -> None:
    configure(copy, vocab_size=vocab_size)
    named = f"tokens up to number 445, but its model has embeddings for {vocab_size}.*resize_token_embeddings"
    with pytest.raises(ConfigurationError, match=named):
        PolicySpec(str(copy), random_weights=True).check("policy")
    with pytest.raises(ConfigurationError, match=named):
        ModelSpec(str(copy)).check("critic")


@pytest.mark.parametrize("vocab_size", [446, 512])
def test_a_tokenizer_that_fits(copy: Path, vocab_size: int) -> None:
    configure(copy, vocab_size=vocab_size)
    assert max(load_tokenizer(str(copy)).get_vocab().values()) == 445


# While they load


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (cut, r"no weights could be read from .*\(model\.safetensors\): .*header"),
        (
            lambda folder: (pickled(folder), cut(folder, PICKLED)),
            r"no weights could be read from .*\(pytorch_model\.bin\)",
        ),
        (
            lambda folder: configure(folder, intermediate_size=77),
            r"has shape \[\d+, \d+\] instead of .*5 more are wrong",
        ),
        (lambda folder: configure(folder, num_hidden_layers=3), r"'model\.layers\.2\..*' is missing, and 8 more"),
        (lambda folder: changed(folder, lambda weights: weights.pop(GATE)), rf"'{GATE}' is missing\. Save"),
        (
            lambda folder: changed(folder, lambda weights: weights.update({GATE: torch.zeros(5, 32)})),
            rf"'{GATE}' has shape \[5, 32\] instead of \[80, 32\]\. Save",
        ),
    ],
    ids=["cut", "pickle_cut", "width", "depth", "lost", "shape"],
)
def test_weights_that_are_not_those_of_the_model(copy: Path, spoil: Callable[[Path], None], named: str) -> None:
    spoil(copy)
    with pytest.raises(ConfigurationError, match=named) as error:
        load_model(str(copy), "float32")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("whole", [True, False], ids=["in_torch_file", "bare"])
def test_nothing_in_pickled_weights_runs(copy: Path, monkeypatch: pytest.MonkeyPatch, whole: bool) -> None:
    monkeypatch.chdir(copy.parent)
    pickled(copy, {"model.norm.weight": Evil()})
    if not whole:
        (copy / PICKLED).write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ConfigurationError, match=r"pytorch_model\.bin.* might run code and are not loaded"):
        load_model(str(copy), "float32")
    assert not Path("unpickled").exists()
    pickle.loads(pickle.dumps(Evil()))  # it would have
    assert Path("unpickled").exists()


def test_tensors_alone_may_be_pickled(copy: Path) -> None:
    expected = load_file(copy / SAFE)[GATE]
    pickled(copy)
    assert load_model(str(copy), "float32").state_dict()[GATE].equal(expected)
