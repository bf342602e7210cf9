"""Recipes of the paper run with vLLM unchanged but for the model, top-p included."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import yaml

from collm import cli
from collm.models.tiny import build_tiny
from curves import scalars
from toy import REPOSITORY

CONFIGS = REPOSITORY / "configs"
SHORT = {
    "str_build": [],
    "coop_humaneval": [f"--data.environment.{option}" for option in ("dataset=samples", "num_train=2", "num_eval=1")],
}


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: docs/engines.md")
@pytest.mark.parametrize("name", SHORT)
def test_a_recipe_of_the_paper_trains_what_it_samples(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    build_tiny("model", hidden_size=64, num_layers=1, num_heads=2, context=8192)
    recipe = CONFIGS / "paper" / f"{name}.yaml"
    agents = yaml.safe_load(recipe.read_text())["model"]["init_args"]["policies"]
    args = ["fit", "--config", str(recipe), "--model.critic.model.path=model", "--model.critic.model.dtype=float32"]
    for agent_id in agents:
        given = {"path": str(tmp_path / "model"), "dtype": "float32", "engine": "vllm"}
        args += [f"--model.policies.{agent_id}.{option}={value}" for option, value in given.items()]
    args += [*SHORT[name], "--data.rollouts_per_epoch=2", "--data.eval_episodes_per_task=1", "--trainer.max_epochs=1"]
    assert cli.main(CONFIGS / "base.yaml", [*args, "--trainer.accelerator=cpu"]) == 0
    curves = scalars(tmp_path / "logs" / "collm" / "version_0")
    for agent_id in agents:
        for metric, expected in (("log_prob_drift", 0.0), ("sampler_weight", 1.0)):
            values = curves[f"policy/{metric}/{agent_id}"]
            assert len(values) == 2
            assert values == pytest.approx([expected] * 2, abs=1e-3)
