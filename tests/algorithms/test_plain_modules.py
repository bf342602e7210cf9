"""With `engine: transformers` and `fast_updates: false`, runs need no embedded decoder and no update kernels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
import yaml

from toy import REPOSITORY, toy_config

# In a process of its own, because here both packages have been imported already. Prints the exit status of every run.
PROGRAM = """
import json, os, sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("collm.inference.embedded", "collm.kernels")):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Block())
from collm import cli

statuses = {}
for name, args in json.loads(sys.argv[1]).items():
    os.mkdir(name)
    os.chdir(name)
    statuses[name] = cli.main(sys.argv[2], ["fit", "--config", "../toy.yaml", *args])
    os.chdir("..")
print(json.dumps(statuses))
"""
PLAIN = ["--model.policy.engine=transformers", "--model.policy.fast_updates=false"]
CRITIC = ["--model.critic.model.fast_updates=false"]
LORA = ["--model.parameters=lora", "--model.policy.lora_rank=2", "--model.critic.model.lora_rank=2"]
# three repetitions of one task, whose common beginnings fast updates would compute once
GROUP = ["--data.tasks_per_rollout=1", "--data.num_generations=3"]
RUNS = {
    "cc": [*PLAIN, *CRITIC, *LORA, *GROUP],
    "magrpo": ["--model=MAGRPO", *PLAIN, *GROUP],
    "engine": ["--model.policy.fast_updates=false", *CRITIC],  # imports the embedded decoder, so that the block shows
}


def test_cc_and_magrpo_train_with_both_packages_blocked_from_import(tmp_path: Path, tiny_folder: str) -> None:
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(toy_config(tiny_folder)))
    command = [sys.executable, "-c", PROGRAM, json.dumps(RUNS), str(REPOSITORY / "configs" / "base.yaml")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY / "tests"), *sys.path])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {"cc": 0, "magrpo": 0, "engine": 2}, done.stderr
    assert "engine 'collm' cannot be imported: collm.inference.embedded is blocked" in done.stderr
    for name, num_networks in (("cc", 3), ("magrpo", 2)):
        checkpoint = tmp_path / name / "logs" / "collm" / "version_0" / "checkpoints" / "last.ckpt"
        optimizers = torch.load(checkpoint, weights_only=True)["optimizer_states"]
        assert len(optimizers) == num_networks
        for optimizer in optimizers:
            assert {state["step"].item() for state in optimizer["state"].values()} == {2.0}
