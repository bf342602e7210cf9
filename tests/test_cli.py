"""Runs through the command line: mistakes end in one clear message, and a run leaves what it promises."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from transformers import AutoModelForCausalLM, AutoTokenizer

from capture import Capture
from collm import cli
from collm.environments.base import Step
from toy import REPOSITORY, Toy, toy_config

Fit = Callable[..., int]

# Mistakes, before any weights load


def the_message(capsys: pytest.CaptureFixture[str]) -> str:
    """What a failed run had to say: one message, no traceback."""
    written = capsys.readouterr().err
    assert "Traceback" not in written
    assert written.count("error: ") == 1
    return written.partition("error: ")[2].partition("\n(COLLM_TRACEBACK")[0]


PLACED = "collm.strategies.placed.Placed"
MISTAKES = {
    "environment": (["--data.environment=StrBuidl"], ["data.environment", "'StrBuidl'", "did you mean 'StrBuild'"]),
    "environment_module": (
        ["--data.environment=collm.environments.str_buil.StrBuild"],
        ["data.environment", "str_buil", "did you mean 'StrBuild'"],
    ),
    "environment_far_off": (["--data.environment=Chess"], ["'Chess'", "there are", "StrBuild", "TLDR"]),
    "environment_of_wrong_kind": (["--data.environment=CoLLMCC"], ["data.environment", "CoLLMCC", "StrBuild"]),
    "algorithm": (["--model=CoLLMC"], ["model", "'CoLLMC'", "'CoLLMCC'"]),
    "algorithm_class": (["--model=collm.algorithms.collm_cc.CoLLMX"], ["collm_cc.CoLLMX", "'CoLLMCC'"]),
    "trainer_key": (["--trainer.max_epoch=1"], ["'trainer.max_epoch'", "did you mean 'trainer.max_epochs'"]),
    "group_key": (["--trainr.max_epochs=1"], ["'trainr.max_epochs'", "did you mean 'trainer.max_epochs'"]),
    "data_key": (["--data.task_per_rollout=1"], ["did you mean 'data.tasks_per_rollout'"]),
    "model_key": (["--model.gae_lamda=1"], ["model: ", "'gae_lamda'", "did you mean 'gae_lambda'"]),
    "policy_key": (["--model.policy.max_token=1"], ["'policy.max_token'", "did you mean 'policy.max_new_tokens'"]),
    "agent_key": (["--model.policies={a1: {pth: tiny}}"], ["model.policies", "'pth'", "did you mean 'path'"]),
    "environment_key": (["--data.environment.horizn=1"], ["data.environment", "did you mean 'horizon'"]),
    "stray": (["--nonsense=1"], ["unknown setting 'nonsense'", "--help"]),
    "agents": (["--model.policies={b1: {path: tiny}}"], ["model.policies", "b1", "a1, a2", "rename or remove"]),
    "type": (["--model.policy.temperature=warm"], ["model.policy.temperature", "float", "warm"]),
    "type_of_count": (["--data.tasks_per_rollout=two"], ["data.tasks_per_rollout", "int", "two"]),
    "choice": (["--model.parameters=both"], ["model.parameters", "both", "'separate', 'lora', 'shared'"]),
    "config_missing": (["--config=nowhere.yaml"], ["nowhere.yaml", "does not exist"]),
    "dataset_missing": (
        ["--data.environment=collm.environments.writing.tldr.TLDR", "--data.environment.dataset=nowhere.jsonl"],
        ["TLDR", "nowhere.jsonl", "no such file", "give 'samples'"],
    ),
    "dataset_empty": (
        ["--data.environment=collm.environments.writing.tldr.TLDR", "--data.environment.dataset=empty.jsonl"],
        ["TLDR", "empty.jsonl' holds no rows", "'prompt'"],
    ),
    "dataset_without_field": (
        ["--data.environment=collm.environments.writing.tldr.TLDR", "--data.environment.dataset=other.jsonl"],
        ["other.jsonl", "line 2", "'prompt'"],
    ),
    "no_tasks": (["--data.environment.num_eval=0"], ["eval split has no tasks"]),
    "overlap": (
        ["--data.environment=collm.environments.building.str_build.StrBuild"]
        + ["--data.environment.words=[I, C]", "--data.environment.eval_words=[C]"],
        ["StrBuild", "word_C", "remove"],
    ),
    "model_folder": (["--model.policy.path=/nowhere"], ["'/nowhere'", "does not exist", "'tiny'"]),
    "critic_folder": (["--model.critic.model.path=/nowhere"], ["'/nowhere'", "does not exist", "'tiny'"]),
    "not_causal": (["--model.policy.path=./bert"], ["./bert", "'bert'", "not a causal language model"]),
    "prompt": (["--model.policy.max_new_tokens=1020"], ["train_0", "'a1'", "11 tokens", "lower max_new_tokens"]),
    "no_room": (["--model.policy.max_new_tokens=1024"], ["max_new_tokens is 1024", "1024 tokens", "lower it"]),
    "no_tokens": (["--model.policy.max_new_tokens=0"], ["max_new_tokens is 0", "at least 1"]),
    "temperature": (["--model.policy.temperature=0"], ["temperature is 0", "at least 0.001"]),
    "negative_temperature": (["--model.policy.temperature=-1"], ["temperature is -1", "at least 0.001"]),
    "learning_rate": (["--model.policy.learning_rate=0"], ["learning_rate is 0", "above 0"]),
    "critic_learning_rate": (
        ["--model.critic.model.learning_rate=-1"],
        ["critic.model.learning_rate is -1", "above 0"],
    ),
    "top_p": (["--model.policy.top_p=1.5"], ["top_p is 1.5", "(0, 1]"]),
    "dtype": (["--model.policy.dtype=int8"], ["dtype is 'int8'", "float32"]),
    "tasks_per_rollout": (["--data.tasks_per_rollout=0"], ["data.tasks_per_rollout is 0", "at least 1"]),
    "num_generations": (["--data.num_generations=-1"], ["data.num_generations is -1", "at least 1"]),
    "num_epochs": (["--model.num_epochs=0"], ["model.num_epochs is 0", "at least 1"]),
    "max_epochs": (["--trainer.max_epochs=0"], ["trainer.max_epochs is 0", "at least 1"]),
    "discount": (["--model.discount=1.5"], ["model.discount is 1.5", "[0, 1]"]),
    "lora_without_rank": (["--model.parameters=lora"], ["lora_rank is 0", "rank"]),
    "shared_but_different": (
        ["--model.parameters=shared", "--model.policies={a1: {path: tiny}}"],
        ["'shared'", "policies differ"],
    ),
    "group_of_one": (["--model=MARLOO"], ["data.num_generations is 1", "MARLOO", "set it to 2 or more", "MAREINFORCE"]),
    "tree": (
        ["--data.sampler=Tree", "--data.num_generations=4", "--data.environment.horizon=6"],
        [
            "4 aligned joint actions per node",
            "6 turns",
            "5,460 joint samples",
            "10,920 in a rollout",
            "is 4,096",
            "Lower",
        ],
    ),
    "eval_tree": (
        ["--data.eval_sampler=Tree", "--data.eval_episodes_per_task=8", "--data.environment.horizon=5"],
        ["37,448 joint samples", "74,896 in a rollout of 2 tasks"],
    ),
    "a_network_that_is_not_there": (
        [f"--trainer.strategy={PLACED}", '--trainer.strategy.devices={"a1": "cpu", "a2": "cpu", "judge": "cpu"}'],
        ["a1, a2, judge", "each network of this run", "a1, a2, critic"],
    ),
    "a_device_that_is_not_there": (
        [f"--trainer.strategy={PLACED}", '--trainer.strategy.devices={"a1": "cuda:77", "a2": "cpu", "critic": "cpu"}'],
        ["devices.a1 is 'cuda:77'", "not available", "there is cpu"],
    ),
    "a_precision_that_is_not_there": (
        [
            f"--config={REPOSITORY / 'configs' / 'strategies' / 'fsdp.yaml'}",
            "--trainer.strategy.mixed_precision=bf8",
        ],
        ["trainer.strategy", "bfloat16", "bf8"],
    ),
    "adapters_apart": (
        [
            f"--config={REPOSITORY / 'configs' / 'strategies' / 'placed.yaml'}",
            "--model.parameters=lora",
            "--model.policy.lora_rank=2",
            "--model.critic.model.lora_rank=2",
        ],
        ["'lora'", "one model", "separate"],
    ),
    "nobody_to_talk_to": (
        ["--data.sampler=Discussion", "--data.environment.num_agents=1"],
        ["Discussion", "Toy has only the agent 'a1'", "Parallel"],
    ),
    "order_of_others": (
        ["--data.eval_sampler=Pipeline", "--data.eval_sampler.order=[a1, b1]"],
        ["b1", "a1, a2", "once"],
    ),
    "no_demonstrations": (["--data.sampler=Demonstrations"], ["Toy has no scripted demonstrations", "another sampler"]),
    "max_steps": (["--trainer.max_steps=10"], ["trainer.max_steps is 10", "trainer.max_epochs"]),
    "clip": (["--trainer.gradient_clip_val=1"], ["trainer.gradient_clip_val", "model.gradient_clip_norm"]),
    "accumulate": (
        ["--trainer.accumulate_grad_batches=2"],
        ["trainer.accumulate_grad_batches is 2", "model.tokens_per_micro_batch"],
    ),
    "half": (["--trainer.precision=16-mixed"], ["trainer.precision is 16-mixed", "bf16-mixed"]),
    "accelerator": (["--trainer.devices=0"], ["devices='0'", "not a valid input"]),
    "checkpoint_missing": (["--ckpt_path=nowhere.ckpt"], ["nowhere.ckpt", "does not exist"]),
    "checkpoint_garbage": (["--ckpt_path=empty.jsonl"], ["empty.jsonl", "could not be read"]),
}


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(("args", "fragments"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_ends_in_one_clear_message(
    fit: Fit, capsys: pytest.CaptureFixture[str], args: list[str], fragments: list[str]
) -> None:
    Path("empty.jsonl").touch()
    Path("other.jsonl").write_text('{"prompt": "I have a cat."}\n{"text": "And a dog."}\n')
    Path("bert").mkdir()
    Path("bert/config.json").write_text('{"model_type": "bert"}')
    assert fit(*args) == 2
    message = the_message(capsys)
    assert [fragment for fragment in fragments if fragment not in message] == [], message
    assert len(message) < 600


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
@pytest.mark.parametrize(
    "args",
    [
        ["--model.parameters=lora", "--model.policy.lora_rank=4", "--model.policy.quantization=nf4"],
        ["--model.optimizer=bitsandbytes.optim.AdamW8bit"],
    ],
)
def test_without_bitsandbytes_messages_name_the_extra(
    fit: Fit, capsys: pytest.CaptureFixture[str], args: list[str]
) -> None:
    assert fit(*args) == 2
    message = the_message(capsys)
    assert "bitsandbytes" in message
    assert "collm[lowbit]" in message


MISTAKES_IN_FILES = {
    "model": ("model: {init_args: {gae_lamda: 1}}", ["model: ", "'gae_lamda'", "did you mean 'gae_lambda'"]),
    "environment": ("data: {environment: {init_args: {horizn: 1}}}", ["data.environment", "did you mean 'horizon'"]),
    "data": ("data: {task_per_rollout: 1}", ["did you mean 'data.tasks_per_rollout'"]),
    "section": ("trainr: {max_epochs: 1}", ["trainr"]),
    "class_path": (
        "data: {environment: {class_path: collm.environments.writing.tldr.TDLR}}",
        ["data.environment", "did you mean 'TLDR'"],
    ),
    "yaml": ("model: [", ["mistake.yaml line 2"]),
}


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(("text", "fragments"), MISTAKES_IN_FILES.values(), ids=MISTAKES_IN_FILES)
def test_a_mistake_in_a_file_ends_in_one_clear_message(
    fit: Fit, capsys: pytest.CaptureFixture[str], text: str, fragments: list[str]
) -> None:
    Path("mistake.yaml").write_text(text + "\n")
    assert fit("--config=mistake.yaml") == 2
    message = the_message(capsys)
    assert [fragment for fragment in fragments if fragment not in message] == [], message


@pytest.mark.parametrize(
    ("args", "fragments"),
    [
        ([], ["subcommand", "fit"]),
        (["fitt"], ["fitt", "'fit'"]),
        (["fit"], ["data.environment", "model", "missing", "--config"]),
    ],
)
def test_an_incomplete_command_line_says_what_is_missing(
    capsys: pytest.CaptureFixture[str], args: list[str], fragments: list[str]
) -> None:
    assert cli.main(REPOSITORY / "configs" / "base.yaml", args) == 2
    message = the_message(capsys)
    assert [fragment for fragment in fragments if fragment not in message] == [], message


@pytest.mark.usefixtures("no_weights")
def test_an_unwritable_log_folder(
    fit: Fit, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    can = os.access  # as root any folder can be written
    monkeypatch.setattr(os, "access", lambda path, mode, **options: mode != os.W_OK and can(path, mode, **options))
    assert fit() == 2
    assert "the log folder 'logs' cannot be written" in the_message(capsys)


@pytest.mark.usefixtures("no_weights")
def test_a_log_folder_that_is_a_file(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    Path("logs").write_text("not a folder")
    assert fit() == 2
    assert "the log folder 'logs' cannot be written" in the_message(capsys)


def test_tracebacks_are_shown_on_request(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLLM_TRACEBACK", "1")
    with pytest.raises(ValueError, match="temperature is 0"):
        fit("--model.policy.temperature=0")


# What happens during a run


def test_a_reward_that_is_not_finite_stops_the_run(
    fit: Fit, run_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit("--data.environment.bad_reward=nan") == 1
    message = the_message(capsys)
    assert "a reward of task 'train_" in message
    assert "offending_episodes.jsonl" in message
    (line,) = (run_folder / "offending_episodes.jsonl").read_text().splitlines()
    episode = json.loads(line)
    assert episode["task_id"] in message
    assert math.isnan(episode["turns"][0]["reward"])
    assert set(episode["turns"][0]["actions"]) == {"a1", "a2"}


def test_a_loss_that_is_not_finite_stops_the_run(
    fit: Fit, run_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("collm.critics.language_model.value_loss", lambda values, *_: values.sum() * float("inf"))
    assert fit() == 1
    message = the_message(capsys)
    assert "loss/critic is" in message
    lines = (run_folder / "offending_episodes.jsonl").read_text().splitlines()
    assert len(lines) == 2  # the whole rollout
    assert json.loads(lines[0])["task_id"].startswith("train_")


def test_weights_that_blow_up_stop_the_run(fit: Fit, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit("--model.policy.learning_rate=1e8", "--trainer.max_epochs=4") == 1
    assert "training stopped: loss/policy/a1 is" in the_message(capsys)


GARBAGE = "\u0e17\u0e14 \u05d0\u05d1\u05d2 \U0001f9f1 \x00\x1b[31m <|end|><|user|> {{ messages }} " * 2000
QUICK = ["--data.tasks_per_rollout=1", "--trainer.max_epochs=1", "--data.environment.num_eval=1"]


@pytest.mark.parametrize(
    "args",
    [
        ["--data.sampler=toy.Scripted"],
        ["--data.sampler=toy.Scripted", "--data.sampler.text=3"],
        ["--data.sampler=toy.Scripted", f"--data.sampler.text={GARBAGE[:50]!r}", "--data.sampler.times=2000", *QUICK],
        ["--data.environment.later=" + json.dumps(GARBAGE), *QUICK],
        ["--model.policy.max_new_tokens=1"],
        ["--data.environment.stop_at=0", "--data.environment.horizon=3"],
    ],
    ids=["empty", "digit", "long_actions", "long_observations", "one_token", "early_end"],
)
def test_garbage_from_models_is_handled_as_data(fit: Fit, run_folder: Path, args: list[str]) -> None:
    assert len(GARBAGE.encode()) > 100_000
    assert fit(*args) == 0
    assert (run_folder / "agents" / "a2" / "model.safetensors").exists()
    assert math.isfinite(scalars(run_folder)["rollout/return"][-1].value)


def test_failed_episodes_are_counted(fit: Fit, run_folder: Path) -> None:
    # both tasks in one rollout, one of them fails in its second turn; so do the held-out ones
    args = ["--data.environment.num_tasks=2", "--data.environment.fail_turn=1", "--trainer.max_epochs=1"]
    assert fit(*args) == 0
    logged = scalars(run_folder)
    assert [event.value for event in logged["rollout/failed"]] == [0.5]
    assert [event.value for event in logged["rollout/failed/environment"]] == [2.0]  # and once more when it was retried
    assert [event.value for event in logged["rollout/turns"]] == [2.0]  # of the episode that is left
    assert [event.value for event in logged["rollout/joint_samples"]] == [3.0]  # and the first turn of the other
    assert [event.value for event in logged["eval/failed"]] == [0.5, 0.5]
    assert [event.value for event in logged["eval/failed/environment"]] == [2.0, 2.0]
    lines = (run_folder / "transcripts" / "validate-00000000.jsonl").read_text().splitlines()
    finished, failed = map(json.loads, lines)
    assert (finished["task_id"], finished["error"], finished["failures"]) == ("eval_1", None, [])
    assert (failed["task_id"], failed["error"]) == ("eval_0", "the toy broke")
    assert failed["failures"] == [{"cause": "environment", "message": "the toy broke"}] * 2
    assert len(failed["turns"]) == 1


ALL_FAIL = ["--data.environment.fail_turn=0", "--data.environment.fail_every=1"]


@pytest.mark.parametrize("failed", ["drop", "zero"])
def test_a_rollout_without_successful_episodes_changes_no_weights(fit: Fit, run_folder: Path, failed: str) -> None:
    # with momentum, a step without a gradient would move the weights too
    with pytest.warns(UserWarning, match=r"every episode failed \(environment: 4\): nothing is learned from this"):
        assert fit(*ALL_FAIL, f"--data.failed_episodes={failed}", "--trainer.callbacks+=capture.Capture") == 0
    assert not Capture.moved()
    logged = scalars(run_folder)
    assert [event.value for event in logged["rollout/failed/environment"]] == [4.0, 4.0]
    assert ("rollout/return" in logged) == (failed == "zero")
    assert not {"loss/critic", "loss/policy/a1", "critic/value"} & set(logged)


def test_turns_before_a_failure_are_joint_samples_though_nothing_is_learned(fit: Fit, run_folder: Path) -> None:
    late = ["--data.environment.fail_turn=1", "--data.environment.fail_every=1", "--trainer.callbacks+=capture.Capture"]
    with pytest.warns(UserWarning, match=r"every episode failed \(environment: 4\): nothing is learned from this"):
        assert fit(*late) == 0
    assert not Capture.moved()
    # two episodes a rollout with one turn each
    assert [event.value for event in scalars(run_folder)["rollout/joint_samples"]] == [2.0, 4.0]


def test_a_run_in_which_all_episodes_fail_stops(fit: Fit, capsys: pytest.CaptureFixture[str], run_folder: Path) -> None:
    assert fit(*ALL_FAIL, "--trainer.max_epochs=9") == 1
    assert "every episode failed (environment: 4), as in the 2 rollouts before" in the_message(capsys)
    lines = (run_folder / "offending_episodes.jsonl").read_text().splitlines()
    assert [json.loads(line)["error"] for line in lines] == ["the toy broke"] * 2


# What a run leaves


@pytest.fixture(scope="module")
def finished(finish: Callable[..., Path]) -> Path:
    """The folder of a finished run of two epochs of two rollouts."""
    return finish("--data.rollouts_per_epoch=2", "--model.kl_weight=0.1")


def scalars(folder: Path) -> dict[str, list]:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0}).Reload()
    return {name: events.Scalars(name) for name in events.Tags()["scalars"]}


def test_scalars_have_the_names_of_the_design_over_joint_samples(finished: Path) -> None:
    logged = scalars(finished)
    per_rollout = {
        *("rollout/return", "rollout/turns", "rollout/failed", "rollout/reward/digits", "rollout/last"),
        *("rollout/joint_samples", "rollout/action_tokens/a1", "rollout/truncated/a2"),
        *("loss/policy/a1", "loss/policy/a2", "loss/critic", "critic/explained_variance", "critic/value"),
        *("policy/entropy/a1", "policy/entropy/a2", "policy/kl/a1", "policy/kl/a2"),
        *("optim/grad_norm/a1", "optim/grad_norm/a2", "optim/grad_norm/critic", "time/rollout", "time/update"),
    }
    per_evaluation = {"eval/return", "eval/return_low", "eval/return_high", "eval/last", "eval/turns"}
    assert per_rollout | per_evaluation <= set(logged)
    # 2 tasks of 2 turns make 4 joint samples a rollout; an evaluation comes first and after both of an epoch
    for name in per_rollout:
        assert [event.step for event in logged[name]] == [4, 8, 12, 16], name
    for name in per_evaluation:
        assert [event.step for event in logged[name]] == [0, 8, 16], name
    assert [event.value for event in logged["rollout/joint_samples"]] == [4, 8, 12, 16]
    for low, mean, high in zip(*(logged[f"eval/return{end}"] for end in ("_low", "", "_high")), strict=True):
        assert low.value <= mean.value <= high.value


def test_no_metric_is_logged_twice(finished: Path) -> None:
    logged = scalars(finished)
    for name, events in logged.items():
        steps = [event.step for event in events]
        assert len(set(steps)) == len(steps), name
    curves: dict[tuple, list[str]] = {}
    for name, events in logged.items():
        values = tuple((event.step, event.value) for event in events)
        if len({value for _, value in values}) > 1:  # constants may agree
            curves.setdefault(values, []).append(name)
    # the reward of the toy has one term
    expected = [["rollout/return", "rollout/reward/digits"], ["eval/return", "eval/reward/digits"]]
    assert [names for names in map(sorted, curves.values()) if len(names) > 1 and names not in expected] == []


def test_transcripts_and_pictures_are_in_tensorboard(finished: Path) -> None:
    events = EventAccumulator(str(finished), size_guidance={"images": 0, "tensors": 0}).Reload()
    tags = events.Tags()
    assert [image.step for image in events.Images("eval/final_states")] == [0, 8, 16]
    texts = [tag for tag in tags["tensors"] if tag.startswith("eval/transcript_")]
    assert sorted(texts) == ["eval/transcript_0/text_summary", "eval/transcript_1/text_summary"]
    (text,) = events.Tensors(texts[0])[0].tensor_proto.string_val
    assert [part in text for part in (b"task 0 a1", b"### turn 1", b"### turn 2", b"reward 0.")] == [True] * 4


def test_returns_stand_on_top_of_tensorboard_and_compare_runs(finished: Path) -> None:
    events = EventAccumulator(str(finished), size_guidance={"tensors": 0}).Reload()
    (layout,) = events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val
    positions = [
        layout.index(name) for name in (b"eval/return_low", b"rollout/return", b"explained_variance", b"entropy")
    ]
    assert positions == sorted(positions)
    hparams = events.SummaryMetadata("_hparams_/experiment").plugin_data.content
    assert b"eval/return" in hparams
    session = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    names = sorted(plugin_data_pb2.HParamsPluginData.FromString(session).session_start_info.hparams)  # as it shows them
    rates = ["learning_rate/a1", "learning_rate/a2", "learning_rate/critic"]
    assert names[:6] == ["algorithm", "data.seed", "environment", *rates]
    assert names[-2:] == ["rollout.num_generations", "rollout.num_tasks"]
    assert all(name.startswith("model.") for name in names[6:-2])
    assert "model.discount" in names


def test_files_of_a_run(finished: Path) -> None:
    assert (finished / "before_after.png").read_bytes().startswith(b"\x89PNG")
    assert (finished / "config.yaml").exists()
    assert (finished / "checkpoints" / "last.ckpt").exists()
    assert len(list((finished / "checkpoints").glob("best-*.ckpt"))) == 1
    names = sorted(path.name for path in (finished / "transcripts").iterdir())
    assert names == [f"validate-{samples:08d}.jsonl" for samples in (0, 8, 16)]
    lines = [json.loads(line) for line in (finished / "transcripts" / names[0]).read_text().splitlines()]
    assert [line["task_id"] for line in lines] == ["eval_0", "eval_1"]
    assert set(lines[0]["turns"][0]) >= {"observations", "actions", "truncated", "reward", "terms", "info"}


def test_exported_agents_need_nothing_of_this_package(finished: Path) -> None:
    saved = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for agent_id in ("a1", "a2"):
        folder = finished / "agents" / agent_id
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert AutoTokenizer.from_pretrained(folder).eos_token == "<|end|>"
        weights = model.state_dict()
        trained = {name.split(".lm.")[1]: w for name, w in saved.items() if name.startswith(f"backbones.<{agent_id}>.")}
        assert trained
        for name, weight in trained.items():
            torch.testing.assert_close(weights[name], weight, rtol=0, atol=0)
    assert not any("critic" in path.name for path in (finished / "agents").rglob("*"))


@pytest.mark.parametrize("command", ["validate", "test"])
def test_evaluating_a_checkpoint(finished: Path, fit: Fit, run_folder: Path, command: str) -> None:
    checkpoint = f"--ckpt_path={finished / 'checkpoints' / 'last.ckpt'}"
    assert fit(checkpoint, "--model.kl_weight=0.1", command=command) == 0
    again, before = scalars(run_folder)["eval/return"], scalars(finished)["eval/return"]
    # the same tasks and seeds as at the end of the run
    assert [(event.step, event.value) for event in again] == [(before[-1].step, before[-1].value)]


@pytest.mark.parametrize(
    ("command", "file"), [("validate", "transcripts/validate-00000000.jsonl"), ("predict", "predictions.jsonl")]
)
def test_an_interrupted_evaluation_keeps_its_transcripts(
    fit: Fit,
    run_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    file: str,
) -> None:
    step = Toy.step

    def break_off(self: Toy, state: tuple, joint_action: Mapping[str, str]) -> Step:
        if state[0].data["index"] == 2:
            raise RuntimeError("the machine broke")
        return step(self, state, joint_action)

    monkeypatch.setattr(Toy, "step", break_off)
    assert fit("--data.environment.num_eval=4", "--data.eval_batch_size=1", command=command) == 1
    lines = (run_folder / file).read_text().splitlines()
    assert [json.loads(line)["task_id"] for line in lines] == ["eval_0", "eval_1"]
    written = "".join(capsys.readouterr())
    assert "[turn 2, 1 episodes]" in written
    assert "error: RuntimeError: the machine broke" in written


def test_predict_writes_transcripts(finished: Path, fit: Fit, run_folder: Path) -> None:
    checkpoint = f"--ckpt_path={finished / 'checkpoints' / 'last.ckpt'}"
    assert fit(checkpoint, "--data.predict_split=train", command="predict") == 0
    lines = [json.loads(line) for line in (run_folder / "predictions.jsonl").read_text().splitlines()]
    assert [line["task_id"] for line in lines] == ["train_0", "train_1", "train_2", "train_3"]
    turn = lines[0]["turns"][0]
    assert turn["observations"]["a1"] == "task 0 a1"
    assert set(turn["actions"]) == {"a1", "a2"}
    assert turn["terms"] == {"digits": turn["reward"]}
    assert turn["info"] == {"lines": 2}


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize(
    ("args", "fragments"),
    [
        (["--data.environment.num_agents=3"], ["agent_ids ['a1', 'a2']", "['a1', 'a2', 'a3']"]),
        (["--model=BehaviorCloning"], ["algorithm CoLLMCC", "BehaviorCloning"]),
        (["--model.parameters=shared"], ["parameters separate", "shared"]),
    ],
)
def test_a_checkpoint_of_another_team(
    finished: Path, fit: Fit, capsys: pytest.CaptureFixture[str], args: list[str], fragments: list[str]
) -> None:
    assert fit(f"--ckpt_path={finished / 'checkpoints' / 'last.ckpt'}", *args) == 2
    message = the_message(capsys)
    assert [fragment for fragment in fragments if fragment not in message] == [], message
    assert "use the configuration" in message


@pytest.mark.parametrize(
    "args",
    [["--trainer.enable_progress_bar=false"], ["--trainer.logger=false"], ["--trainer.enable_checkpointing=false"]],
)
def test_features_can_be_switched_off(fit: Fit, args: list[str]) -> None:
    assert fit(*args, "--trainer.max_epochs=1") == 0


@pytest.mark.slow
def test_the_command_from_another_folder(tmp_path: Path, tiny_folder: str) -> None:
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(toy_config(tiny_folder)))
    command = [sys.executable, REPOSITORY / "tools" / "fit.py", "fit", "--config=toy.yaml", "--trainer.max_epochs=1"]
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY / 'src'}:{REPOSITORY / 'tests'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "logs" / "collm" / "version_0" / "agents" / "a1").is_dir()
