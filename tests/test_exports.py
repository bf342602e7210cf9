"""Exported agents in a process without this package: they load, and answer as they did in the run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import load_file

from actors import sampled
from collm.algorithms.rollout_hooks import RolloutHooks
from collm.models.agent_files import generation_config
from collm.models.backbone import Backbone
from collm.models.loading import load_tokenizer
from collm.models.policy import Policy
from collm.models.policy_spec import PolicySpec
from collm.runtime.resuming import find_named
from pair import Run
from toy import Toy, toy_config

PROMPT = "task 0 a1"

ELSEWHERE = """
import json, os, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "collm":
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
chat = [{"role": "user", "content": PROMPT}]
said = {}
for kind in ("whole", "adapter", "merged"):
    os.chdir(os.path.join(ROOT, kind, "a1"))
    tokenizer = AutoTokenizer.from_pretrained(".")
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    for loader in (AutoModelForCausalLM, AutoPeftModelForCausalLM) if kind == "adapter" else (AutoModelForCausalLM,):
        out = loader.from_pretrained(".").generate(**ids, do_sample=False)
        text = tokenizer.decode(out[0, ids["input_ids"].shape[1]:], skip_special_tokens=True)
        said[f"{kind} {loader.__name__}"] = text
    answer = pipeline("text-generation", model=".")(chat, do_sample=False)
    said[f"{kind} pipeline"] = answer[0]["generated_text"][-1]["content"]
print(json.dumps(said))
"""


def make(path: str, lora: bool) -> Policy:
    """An agent whose weights are not those it started from."""
    spec = PolicySpec(path=path, lora_rank=4 * lora, max_new_tokens=12, temperature=0.7, top_p=0.9)
    backbone = Backbone(path, "float32")
    torch.manual_seed(1)
    if lora:
        backbone.add_adapter("a1", 4, 32.0, 0.0)
    policy = Policy("a1", spec, backbone, "a1" if lora else None)
    for weight in policy.parameters():
        weight.data += 0.02 * torch.randn_like(weight)
    return policy


@pytest.mark.slow
def test_exports_answer_the_same_without_this_package(tmp_path: Path) -> None:
    expected = {}
    for kind in ("whole", "adapter", "merged"):
        policy = make("tiny", lora=kind != "whole")
        base = policy.copy_base(tmp_path / kind, {}) if kind == "adapter" else None
        policy.save(tmp_path / kind / "a1", merged=kind == "merged", base=base)
        policy.backbone.eval()
        prompt = policy.prompt([PROMPT], [])
        expected[kind] = sampled(policy, [prompt], torch.Generator(), greedy=True)[0].text
    assert expected["whole"] != expected["adapter"] == expected["merged"] != ""
    script = ELSEWHERE.replace("PROMPT", repr(PROMPT)).replace("ROOT", repr(str(tmp_path)))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run(
        [sys.executable, "-c", script],
        env={**environment, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    said = json.loads(run.stdout.splitlines()[-1])
    assert len(said) == 7
    assert {name: text for name, text in said.items() if text != expected[name.split()[0]]} == {}
    assert (tmp_path / "adapter" / "a1" / "adapter_config.json").exists()
    assert not (tmp_path / "merged" / "a1" / "adapter_config.json").exists()


def test_an_export_says_how_it_was_trained_to_sample(tmp_path: Path) -> None:
    policy = make("relay", lora=False)
    policy.spec.allowed_words = None
    policy.save(tmp_path)
    written = json.loads((tmp_path / "generation_config.json").read_text())
    sampling = {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 0, "max_new_tokens": 12}
    assert sampling.items() <= written.items()
    record = json.loads((tmp_path / "collm_agent.json").read_text())
    assert record["agent_id"] == "a1"
    assert record["end_ids"] == sorted(policy.eos_ids)
    assert (record["temperature"], record["top_p"], record["top_k"]) == (0.7, 0.9, 0)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}


def test_words_that_were_not_allowed_are_suppressed(tmp_path: Path) -> None:
    spec = PolicySpec(path="relay", max_new_tokens=1, allowed_words=["x0", "x1"])
    policy = Policy("a1", spec, Backbone("relay", "float32"), None)
    policy.save(tmp_path)
    written = json.loads((tmp_path / "generation_config.json").read_text())
    vocabulary = policy.tokenizer.get_vocab()
    assert set(vocabulary.values()) - set(written["suppress_tokens"]) == {vocabulary["x0"], vocabulary["x1"]}


def test_rows_of_a_model_that_its_tokenizer_does_not_know_are_suppressed_too(tiny_folder: str) -> None:
    policy = PolicySpec(tiny_folder)
    record = {name: getattr(policy, name) for name in ("temperature", "top_p", "top_k", "max_new_tokens")}
    record |= {"min_new_tokens": 0, "end_ids": [1]}
    config = generation_config(record, load_tokenizer(tiny_folder), vocabulary_size=5000, allowed_ids=[7, 9])
    assert config.suppress_tokens == [number for number in range(5000) if number not in (7, 9)]


@pytest.mark.slow
@pytest.mark.parametrize("parameters", ["separate", "lora"])
def test_a_run_leaves_cards_and_one_copy_of_a_local_base(parameters: str, tiny_folder: str, tmp_path: Path) -> None:
    config = toy_config(tiny_folder)
    given = config["model"]["init_args"]
    if parameters == "lora":
        given["parameters"] = "lora"
        given["policy"]["lora_rank"] = given["critic"]["init_args"]["model"]["lora_rank"] = 4
    Run(str(tmp_path), config).fit()
    agents = next(tmp_path.rglob("agents"))
    lora = parameters == "lora"
    assert sorted(path.name for path in agents.iterdir()) == ["a1", "a2", *(["base.tiny"] if lora else [])]
    card = (agents / "a1" / "README.md").read_text()
    assert "a1 of a team for Toy" in card
    assert "CoLLMCC" in card
    assert "together with a2" in card
    if lora:
        adapter = json.loads((agents / "a2" / "adapter_config.json").read_text())
        assert (adapter["base_model_name_or_path"], adapter["task_type"]) == ("../base.tiny", "CAUSAL_LM")


@pytest.fixture
def middle_is_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations return 9 before the first update, then 1, 5 and 2."""

    def evaluate(self: Any, batch: Any, batch_idx: int) -> None:
        self._evaluation = {"return": [[9.0, 1.0, 5.0, 2.0][self.num_rollouts]]}

    monkeypatch.setattr(RolloutHooks, "validation_step", evaluate)


@pytest.mark.slow
def test_the_best_agents_are_exported_on_request(fit, run_folder, middle_is_best) -> None:
    given = ["--trainer.max_epochs=3", "--data.rollouts_per_epoch=1"]
    assert fit(*given, "--export=best") == 0
    (kept,) = (run_folder / "checkpoints").glob("best-*.ckpt")
    best, last = (torch.load(path, weights_only=True)["state_dict"] for path in (kept, kept.parent / "last.ckpt"))

    def agents(run: Path = run_folder) -> dict[str, torch.Tensor]:
        """All exported weights, by their names in a checkpoint."""
        folders = {agent_id: run / "agents" / agent_id / "model.safetensors" for agent_id in ("a1", "a2")}
        return {
            f"backbones.<{agent_id}>.lm.{name}": weight
            for agent_id, path in folders.items()
            for name, weight in load_file(path).items()
        }

    assert all(torch.equal(weight, best[name]) for name, weight in agents().items())
    assert not all(torch.equal(weight, last[name]) for name, weight in agents().items())
    card = (run_folder / "agents" / "a1" / "README.md").read_text()
    assert "8 joint samples" in card
    assert "Team return on held-out tasks: 5.000, the best of all evaluations of its run" in card
    # a finished run exports again, without another update
    same = "--trainer.logger.init_args.version=0"
    assert fit(*given, same, "--ckpt_path=last") == 0
    assert all(torch.equal(weight, last[name]) for name, weight in agents().items())
    assert fit(*given, f"--ckpt_path={kept.parent / 'last.ckpt'}", "--export=best") == 0  # in a new folder
    other = run_folder.with_name("version_1")
    assert all(torch.equal(weight, best[name]) for name, weight in agents(other).items())
    assert "Team return on held-out tasks: 5.000" in (other / "agents" / "a1" / "README.md").read_text()
    assert find_named("best", SimpleNamespace(checkpoint_callbacks=[ModelCheckpoint(kept.parent)])) == kept


def test_the_best_cannot_be_exported_where_no_checkpoint_is_the_best(fit, no_weights, capsys) -> None:
    assert fit("--export=best", "--trainer.enable_checkpointing=false") == 2
    assert "no ModelCheckpoint among the callbacks monitors eval/return" in capsys.readouterr().err


def test_a_push_without_access_is_refused(fit, capsys: pytest.CaptureFixture[str], monkeypatch, no_weights) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_TOKEN", "")
    assert fit("--push_to_hub", "me/team") == 2
    assert "push_to_hub is 'me/team', but the hub cannot be used" in capsys.readouterr().err
    assert fit("--push_to_hub", "team") == 2
    assert "give an owner and a name" in capsys.readouterr().err


def test_a_card_shows_a_task_where_the_tasks_come_from_a_generator(fit, run_folder, monkeypatch) -> None:
    listed = Toy.tasks
    monkeypatch.setattr(Toy, "tasks", lambda game, split: (task for task in listed(game, split)))
    assert fit("--trainer.max_epochs=1", "--data.rollouts_per_epoch=1") == 0
    assert "It was shown, for example:\n\n    task 0 a1\n" in (run_folder / "agents" / "a1" / "README.md").read_text()


@pytest.mark.parametrize("callbacks", ["PrintSamples", "null", "[]"])
@pytest.mark.parametrize("setting", ["export='best'", "push_to_hub='me/team'"])
def test_nothing_is_exported_in_silence(fit, no_weights, capsys, callbacks: str, setting: str) -> None:
    name, value = setting.replace("'", "").split("=")
    assert fit(f"--{name}={value}", f"--trainer.callbacks={callbacks}") == 2
    words = f"{name} is {value!r}, but ExportAgents is not among trainer.callbacks, so no agent would be exported"
    assert words in capsys.readouterr().err


def test_a_single_callback_is_told_what_to_export(fit, no_weights, capsys) -> None:
    assert fit("--export=best", "--trainer.callbacks=ExportAgents") == 2
    assert "no ModelCheckpoint among the callbacks monitors eval/return" in capsys.readouterr().err
