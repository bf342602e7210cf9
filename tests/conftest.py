"""What the tests share: a language model of a few thousand weights and runs through the command line."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml

from collm import cli
from collm.models.tiny import build_tiny
from toy import REPOSITORY, toy_config


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # models this small only lose by more


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random weights, 2 layers of 32, with the tokenizer of the embedded model."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    build_tiny(folder, hidden_size=32, num_layers=2, num_heads=2, context=1024)
    return str(folder)


@pytest.fixture
def fit(tmp_path: Path, tiny_folder: str, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run the command line in a folder of its own on the toy game, with further arguments; returns the exit status."""
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "toy.yaml"
    config.write_text(yaml.safe_dump(toy_config(tiny_folder)))

    def run(*args: str, command: str = "fit", base: Path = REPOSITORY / "configs" / "base.yaml") -> int:
        # `print_config` leaves through SystemExit as argparse does
        return cli.main(base, [command, "--config", str(config), *args])

    return run


@pytest.fixture(scope="module")
def finish(tmp_path_factory: pytest.TempPathFactory, tiny_folder: str) -> Iterator[Callable[..., Path]]:
    """Run `fit` on the toy game with further arguments; returns the folder of the run, which is kept for a module."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "toy.yaml").write_text(yaml.safe_dump(toy_config(tiny_folder)))

    def run(*args: str) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            assert cli.main(REPOSITORY / "configs" / "base.yaml", ["fit", "--config=toy.yaml", *args]) == 0
        return folder / "logs" / "collm" / "version_0"

    yield run
    shutil.rmtree(folder)


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """For mistakes that have to be found before any weights load."""

    def load(*args: object, **kwargs: object) -> None:
        pytest.fail("weights were loaded before the mistake was found")

    monkeypatch.setattr("collm.models.backbone.load_model", load)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """Where the first run of `fit` leaves its logs."""
    return tmp_path / "logs" / "collm" / "version_0"
