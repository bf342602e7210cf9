"""Two processes give the numbers of one, with replicas and with shards: the same tasks and actions, on two devices."""

from __future__ import annotations

import copy
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from collm.studies.launch import execute
from curves import scalars
from pair import Run, fit_in_pair
from toy import REPOSITORY, toy_config

STRATEGIES: dict[str, Any] = {"ddp": "ddp", "fsdp": {}}
LOGS = Path("logs", "collm", "version_0")
LORA = {"lora_rank": 2, "lora_alpha": 4.0}
CASES = {
    "cc_separate": ("collm_cc.CoLLMCC", "separate", {"critic": {"normalize": True}}),
    "cc_lora": ("collm_cc.CoLLMCC", "lora", {}),
    "dc_separate": ("collm_dc.CoLLMDC", "separate", {}),
    "dc_lora": ("collm_dc.CoLLMDC", "lora", {}),
    "magrpo_separate": ("magrpo.MAGRPO", "separate", {"kl_weight": 0.1}),
    "magrpo_lora": ("magrpo.MAGRPO", "lora", {"kl_weight": 0.1}),
    "dc_shared": ("collm_dc_shared.CoLLMDCShared", "shared", {}),
}


def config(tiny_folder: str, algorithm: str, parameters: str, given: dict[str, Any]) -> dict[str, Any]:
    """Three updates on actions that follow from the tasks, with the weights and losses that a case is about."""
    made = toy_config(tiny_folder)
    arguments = made["model"]["init_args"]
    made["model"]["class_path"] = f"collm.algorithms.{algorithm}"
    given = dict(given)
    arguments["critic"]["init_args"] |= given.pop("critic", {})
    arguments |= {"parameters": parameters, "normalize_advantage": True, "entropy_weight": 0.01, **given}
    critic_model = arguments["critic"]["init_args"]["model"]
    # Adam takes the sign of a gradient that is nearly 0, and with it rounding noise
    arguments["optimizer"] = "torch.optim.SGD"
    arguments["policy"]["learning_rate"] = critic_model["learning_rate"] = 0.05
    arguments["tokens_per_micro_batch"] = 64  # so that ranks have several, and not as many
    if parameters == "lora":
        arguments["policy"] |= LORA
        critic_model |= LORA
    if algorithm == "magrpo.MAGRPO":
        del arguments["critic"]
    made["data"] |= {
        "environment": {"class_path": "toy.Toy", "init_args": {"horizon": 2, "num_tasks": 5}},
        "sampler": {"class_path": "toy.Replayed"},
        "tasks_per_rollout": 3,  # two for one process, one for the other
        "num_generations": 2,
    }
    made["trainer"] |= {"max_epochs": 3, "limit_val_batches": 0, "enable_progress_bar": False}
    return made


def result(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, list[float]]]:
    """Weights and curves at the end of a run."""
    weights = torch.load(folder / LOGS / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return weights, curves_of(folder)


def curves_of(folder: Path) -> dict[str, list[float]]:
    """Curves of a run."""
    curves = scalars(folder / LOGS)
    # what depends on how the work is shared out
    measured = ("time/", "memory/", "throughput/", "rollout/padding_share", "update/padding_share")
    return {name: values for name, values in curves.items() if not name.startswith(measured)}


# How runs are stopped after two updates, and how they go on to the third
STOPPED = {"one": "one", **STRATEGIES, "folder": {"save_distributed_checkpoint": True}}
RESUMED = {"one": "one", **STRATEGIES}
UNEVEN = {"ddp": "ddp", "gathered": {"sampling": "gathered"}, "synchronized": {"sampling": "synchronized"}}


def adam(tiny_folder: str) -> dict[str, Any]:
    """A case with optimizer states, and all of a replay read; eps keeps rounding noise from becoming a step."""
    given = {"critic": {"replay": 2, "replay_batch": 100}}
    made = config(tiny_folder, "collm_cc.CoLLMCC", "separate", given)
    made["model"]["init_args"] |= {
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"eps": 0.01}},
        "lr_schedule": {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 2}},
    }
    return made


def checkpointing(made: dict[str, Any]) -> dict[str, Any]:
    """A case whose activations are computed again in the backward pass."""
    made = copy.deepcopy(made)
    given = made["model"]["init_args"]
    for spec in (given["policy"], given["critic"]["init_args"]["model"]):
        spec["gradient_checkpointing"] = True
    return made


def uneven(tiny_folder: str) -> dict[str, Any]:
    """Sampled episodes that end at different turns, of one task, so that a process has none; and evaluations."""
    made = config(tiny_folder, "collm_cc.CoLLMCC", "lora", {"kl_weight": 0.1})
    made["data"] |= {
        "environment": {"class_path": "toy.Toy", "init_args": {"horizon": 3, "num_eval": 3, "stop_at": 0.5}},
        "tasks_per_rollout": 1,
        "num_generations": 4,
        "eval_batch_size": 2,
    }
    del made["data"]["sampler"], made["trainer"]["limit_val_batches"]
    made["trainer"]["max_epochs"] = 2
    return made


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory, tiny_folder: str) -> Path:
    """Every case, in one process and in two."""
    root = tmp_path_factory.mktemp("cases")
    configs = {name: config(tiny_folder, *case) for name, case in CASES.items()}
    for name, made in configs.items():
        Run(str(root / f"{name}_one"), made).fit()
    fit_in_pair(
        root,
        [
            Run(str(root / f"{name}_{strategy}"), made, chosen)
            for name, made in configs.items()
            for strategy, chosen in STRATEGIES.items()
        ],
    )
    return root


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_folder: str) -> Path:
    """Runs that are stopped and go on elsewhere, and runs whose ranks differ."""
    root = tmp_path_factory.mktemp("runs")
    made = adam(tiny_folder)
    longer = made | {"data": made["data"] | {"rollouts_per_epoch": 3}}

    def last(name: str) -> str:
        return str(root / name / LOGS / "checkpoints" / "last.ckpt")

    every = [Run(str(root / "uninterrupted"), made), Run(str(root / "long"), longer)]
    every += [Run(str(root / name), made, how, trainer={"max_epochs": 2}) for name, how in STOPPED.items()]
    every += [
        Run(str(root / f"{name}_to_{then}"), made, how, last(name))
        for name in STOPPED
        for then, how in RESUMED.items()
        if then != name  # that is no news
    ]
    every.append(Run(str(root / "told"), longer, "ddp", told_to_stop=True))
    every.append(Run(str(root / "after"), longer, {}, last("told")))
    every += [Run(str(root / f"uneven_{name}"), uneven(tiny_folder), how) for name, how in UNEVEN.items()]
    every.append(Run(str(root / "memory_saving"), checkpointing(made), {"cpu_offload": True}))
    every.append(Run(str(root / "mixed"), made, {"mixed_precision": "bfloat16"}))
    alone = [run for run in every if run.strategy == "one"]
    for run in alone:
        if run.checkpoint is None:
            run.fit()
    fit_in_pair(root, [run for run in every if run.strategy != "one"])
    for run in alone:
        if run.checkpoint is not None:
            run.fit()
    return root


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("case", CASES)
def test_two_processes_learn_what_one_does(cases: Path, case: str, strategy: str) -> None:
    weights, curves = result(cases / f"{case}_one")
    both_weights, both_curves = result(cases / f"{case}_{strategy}")
    assert weights.keys() == both_weights.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(both_weights[name], weight, msg=name)
    assert curves.keys() == both_curves.keys()
    assert any(name.startswith("optim/grad_norm/") for name in curves)
    for name, values in curves.items():
        assert both_curves[name] == pytest.approx(values, rel=1e-4, abs=1e-5, nan_ok=True), name
    assert len(set(curves["rollout/return"])) > 1  # the batches do differ


@pytest.mark.slow
@pytest.mark.parametrize(("stopped", "then"), [(a, b) for a in STOPPED for b in RESUMED if a != b])
def test_any_strategy_resumes_from_checkpoints_of_any_other(runs: Path, stopped: str, then: str) -> None:
    uninterrupted, resumed = (runs / name / LOGS for name in ("uninterrupted", f"{stopped}_to_{then}"))
    expected, found = (
        torch.load(one / "checkpoints" / "last.ckpt", weights_only=True) for one in (uninterrupted, resumed)
    )
    torch.testing.assert_close(found["state_dict"], expected["state_dict"])
    for optimizer, other in zip(found["optimizer_states"], expected["optimizer_states"], strict=True):
        torch.testing.assert_close(optimizer["state"], other["state"])
    # the critic reads every rollout again
    assert [float(optimizer["state"][0]["step"]) for optimizer in found["optimizer_states"]] == [3, 3, 6]
    for agent_id in ("a1", "a2"):
        agent, other = (load_file(one / "agents" / agent_id / "model.safetensors") for one in (resumed, uninterrupted))
        torch.testing.assert_close(agent, other)


@pytest.mark.slow
def test_memory_saving_options_do_not_change_the_result(runs: Path) -> None:
    uninterrupted, memory_saving = (result(runs / name) for name in ("uninterrupted", "memory_saving"))
    torch.testing.assert_close(memory_saving[0], uninterrupted[0])
    assert memory_saving[1] == {
        name: pytest.approx(values, rel=1e-4, abs=1e-5, nan_ok=True) for name, values in uninterrupted[1].items()
    }


@pytest.mark.slow
def test_mixed_precision_computes_in_bfloat16_and_keeps_float32(runs: Path) -> None:
    (_, curves), (mixed, mixed_curves) = (result(runs / name) for name in ("uninterrupted", "mixed"))
    assert {weight.dtype for name, weight in mixed.items() if "backbones" in name} == {torch.float32}
    for name in ("a1", "a2", "critic"):  # of the first update, before they drift apart
        norm, found = (one[f"optim/grad_norm/{name}"][0] for one in (curves, mixed_curves))
        assert found == pytest.approx(norm, rel=0.05)
        assert found != pytest.approx(norm, rel=1e-4)


def without_floats(transcript: str) -> list[dict]:
    """The episodes of a transcript without values and log-probabilities, which sharded weights round otherwise."""
    episodes = [json.loads(line) for line in transcript.splitlines()]
    for turn in (turn for episode in episodes for turn in episode["turns"]):
        assert turn.pop("tokens")
        turn.pop("estimates", None)
    return episodes


@pytest.mark.slow
def test_uneven_ranks_do_not_wait_for_each_other(runs: Path) -> None:
    """That they came to an end is the test; and how sharded weights are gathered changes nothing that is written."""
    written, weights = {}, {}
    for name in UNEVEN:
        folder = runs / f"uneven_{name}" / LOGS
        written[name] = [without_floats(path.read_text()) for path in sorted((folder / "transcripts").iterdir())]
        weights[name], curves = result(runs / f"uneven_{name}")
        assert any(mean % 1 for mean in [*curves["rollout/turns"], *curves["eval/turns"]])  # episodes differ in length
    assert len(written["ddp"]) == 3
    assert written["gathered"] == written["synchronized"] == written["ddp"]
    for name in ("gathered", "synchronized"):
        torch.testing.assert_close(weights[name], weights["ddp"])


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_processes_in_order(runs: Path) -> None:
    told = torch.load(runs / "told" / LOGS / "checkpoints" / "last.ckpt", weights_only=True)
    assert told["collm"]["num_rollouts"] == 5  # three of the first epoch and two of the second
    assert [(runs / "told" / f"status_{rank}").read_text() for rank in range(2)] == ["143", "None"]
    uninterrupted, resumed = (
        torch.load(runs / name / LOGS / "checkpoints" / "last.ckpt", weights_only=True) for name in ("long", "after")
    )
    assert resumed["collm"]["num_rollouts"] == uninterrupted["collm"]["num_rollouts"] == 9
    for part in ("state_dict", "lr_schedulers"):
        torch.testing.assert_close(resumed[part], uninterrupted[part])


@pytest.mark.slow
def test_a_killed_process_ends_the_run_which_resumes_from_its_checkpoint(
    fit: Callable[..., int], tmp_path: Path, run_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a user starts it: the command starts the second process, which `kill -9` ends."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY / "src"), str(REPOSITORY / "tests")]))
    begin = ["fit", "--config=toy.yaml", "--trainer.strategy=ddp", "--trainer.devices=2", "--trainer.max_epochs=3"]
    log = tmp_path / "log.txt"
    script = str(REPOSITORY / "tools" / "fit.py")
    process = multiprocessing.get_context("fork").Process(
        target=execute, args=(script, [*begin, "--trainer.callbacks+=toy.Perish"], log, 1)
    )
    process.start()
    process.join(120)
    ended = time.time()
    process.kill()
    assert process.exitcode == 1
    assert ended - float((tmp_path / "killed").read_text()) < 60
    last = run_folder / "checkpoints" / "last.ckpt"
    assert "another process of this run has ended or does not answer" in log.read_text()
    assert "continues from the last checkpoint" in log.read_text()
    assert torch.load(last, weights_only=True)["collm"]["num_rollouts"] == 1
    assert fit("--trainer.max_epochs=3", f"--ckpt_path={last}") == 0
    resumed = run_folder.with_name("version_1") / "checkpoints" / "last.ckpt"
    assert torch.load(resumed, weights_only=True)["collm"]["num_rollouts"] == 3
