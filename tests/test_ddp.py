"""Two processes give the numbers of one: the same tasks and the same actions, played and learned from in two places."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from toy import REPOSITORY, toy_config

LORA = {"lora_rank": 2, "lora_alpha": 4.0}


def run(folder: Path, config: dict, *args: str) -> tuple[dict[str, torch.Tensor], dict[str, list[float]]]:
    """Weights and curves at the end of a run in a process of its own."""
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, str(REPOSITORY / "tools" / "fit.py"), "fit", "--config", "config.yaml", *args]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "tests"), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    logs = folder / "logs" / "collm" / "version_0"
    weights = torch.load(logs / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    events = EventAccumulator(str(logs)).Reload()
    curves = {name: [event.value for event in events.Scalars(name)] for name in events.Tags()["scalars"]}
    # what depends on how the work is shared out
    measured = ("time/", "memory/", "throughput/", "rollout/padding_share", "update/padding_share")
    return weights, {name: values for name, values in curves.items() if not name.startswith(measured)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "parameters"),
    [("collm_cc.CoLLMCC", "separate"), ("collm_dc.CoLLMDC", "lora"), ("magrpo.MAGRPO", "separate")],
)
def test_two_processes_learn_what_one_does(tmp_path, tiny_folder, algorithm, parameters):
    config = toy_config(tiny_folder)
    arguments = config["model"]["init_args"]
    config["model"]["class_path"] = f"collm.algorithms.{algorithm}"
    arguments |= {"parameters": parameters, "normalize_advantage": True, "entropy_weight": 0.01}
    # Adam takes the sign of a gradient that is nearly 0, and with it rounding noise
    arguments["optimizer"] = "torch.optim.SGD"
    arguments["policy"]["learning_rate"] = arguments["critic"]["learning_rate"] = 0.05
    if parameters == "lora":
        arguments["policy"] |= LORA
        arguments["critic"] |= LORA
    if algorithm == "magrpo.MAGRPO":
        del arguments["critic"]
    config["data"] |= {
        "environment": {"class_path": "toy.Toy", "init_args": {"horizon": 2, "num_tasks": 5}},
        "sampler": {"class_path": "toy.Replayed"},
        "eval_sampler": {"class_path": "toy.Replayed"},
        "tasks_per_rollout": 3,  # two for one process, one for the other
        "num_generations": 2,
    }
    config["trainer"] |= {"max_epochs": 3}
    weights, curves = run(tmp_path / "one", config)
    both_weights, both_curves = run(tmp_path / "two", config, "--trainer.strategy=ddp", "--trainer.devices=2")

    assert weights.keys() == both_weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(both_weights[name], weight, msg=name)
    assert curves.keys() == both_curves.keys()
    for name, values in curves.items():
        assert both_curves[name] == pytest.approx(values, rel=1e-4, abs=1e-5, nan_ok=True), name
    assert len(set(curves["rollout/return"])) > 1  # the batches do differ
