"""Whole runs on CUDA: they learn what those on a processor learn, with every strategy, and can be resumed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from gpu_device import ACCELERATOR, DEVICE, skip_without_cuda

from collm import cli
from pair import Run
from test_devices import CASES, LOGS, config, result, uneven
from toy import REPOSITORY

skip_without_cuda()
pytestmark = pytest.mark.gpu

HERE = {"accelerator": ACCELERATOR, "devices": 1}
OTHER = "cpu"  # two devices without a second card
PLACES = {"a1": str(DEVICE), "a2": OTHER, "critic": str(DEVICE)}
STRATEGIES: dict[str, Any] = {
    "fsdp": {},
    "fsdp_offload": {"cpu_offload": True},
    "fsdp_offload_synchronized": {"cpu_offload": True, "sampling": "synchronized"},
    "fsdp_synchronized": {"sampling": "synchronized"},
    "placed": {"devices": PLACES},
}


@pytest.fixture(autouse=True)
def _no_group_is_left() -> Iterator[None]:
    """Process groups of one strategy lack what another needs."""
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def curves_agree(found: dict[str, list[float]], expected: dict[str, list[float]], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, values in found.items():
        assert values == pytest.approx(expected[name], rel=tolerance, abs=tolerance / 10, nan_ok=True), name


@pytest.fixture(scope="module")
def on_processor(tmp_path_factory: pytest.TempPathFactory, tiny_folder: str) -> dict[str, tuple[Any, Any]]:
    """What a processor makes of each case: weights and curves."""
    root = tmp_path_factory.mktemp("processor")
    found = {}
    for name, case in CASES.items():
        Run(str(root / name), config(tiny_folder, *case)).fit()
        found[name] = result(root / name)
    return found


def model_specs(made: dict[str, Any]) -> list[dict[str, Any]]:
    """The language models of a configuration: that of the policies and that of the critic."""
    given = made["model"]["init_args"]
    return [given["policy"], given["critic"]["init_args"]["model"]]


@pytest.mark.parametrize("case", CASES)
def test_a_run_learns_what_it_learns_on_the_processor(
    tmp_path: Path, tiny_folder: str, on_processor: dict[str, tuple[Any, Any]], case: str
) -> None:
    Run(str(tmp_path), config(tiny_folder, *CASES[case]), trainer=HERE).fit()
    weights, curves = result(tmp_path)
    expected, expected_curves = on_processor[case]
    torch.testing.assert_close({n: w.cpu() for n, w in weights.items()}, expected, rtol=1e-3, atol=1e-4)
    curves_agree(curves, expected_curves, 1e-2)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("case", ["cc_separate", "cc_lora"])
def test_every_strategy_learns_the_same(
    tmp_path: Path, tiny_folder: str, on_processor: dict[str, tuple[Any, Any]], case: str, strategy: str
) -> None:
    if strategy == "placed" and case == "cc_lora":
        pytest.skip("adapters stand on one model, which has one place")
    made = config(tiny_folder, *CASES[case])
    trainer = Run(str(tmp_path), made, STRATEGIES[strategy], trainer=HERE).fit()
    weights, curves = result(tmp_path)
    expected, expected_curves = on_processor[case]
    torch.testing.assert_close({n: w.cpu() for n, w in weights.items()}, expected, rtol=1e-3, atol=1e-4)
    curves_agree(curves, expected_curves, 1e-2)
    assert trainer.lightning_module.joint_samples == 36  # 3 rollouts of 3 tasks, 2 episodes and 2 turns


@pytest.mark.parametrize("strategy", ["one", *STRATEGIES])
def test_sampled_episodes_have_the_probabilities_of_the_update(tmp_path: Path, tiny_folder: str, strategy: str) -> None:
    made = uneven(tiny_folder)
    if strategy == "placed":
        made["model"]["init_args"] |= {"parameters": "separate"}
        for spec in model_specs(made):
            spec |= {"lora_rank": 0}
    Run(str(tmp_path), made, STRATEGIES.get(strategy, "one"), trainer=HERE).fit()
    _, curves = result(tmp_path)
    for agent_id in ("a1", "a2"):
        assert all(entropy > 1 for entropy in curves[f"policy/entropy/{agent_id}"])
        assert max(curves[f"policy/log_prob_drift/{agent_id}"]) < 1e-4
    assert len(curves["eval/return"]) == 3


@pytest.mark.parametrize("how", ["weights", "autocast", "gathered", "weights_lora"])
def test_runs_in_bfloat16(tmp_path: Path, tiny_folder: str, how: str) -> None:
    """Weights in bfloat16; products alone; parts in float32 that are gathered in bfloat16."""
    made = uneven(tiny_folder)
    given = made["model"]["init_args"]
    if how != "weights_lora":
        given |= {"parameters": "separate"}
    for spec in model_specs(made):
        spec |= {} if how == "weights_lora" else {"lora_rank": 0}
        spec |= {"dtype": "bfloat16"} if how.startswith("weights") else {}
    strategy = {"mixed_precision": "bfloat16"} if how == "gathered" else "one"
    trainer = HERE | ({"precision": "bf16-mixed"} if how == "autocast" else {})
    Run(str(tmp_path), made, strategy, trainer=trainer).fit()
    _, curves = result(tmp_path)
    for agent_id in ("a1", "a2"):
        assert max(curves[f"policy/log_prob_drift/{agent_id}"]) < 0.05
        assert all(entropy > 1 for entropy in curves[f"policy/entropy/{agent_id}"])
    names = [name for name in curves if name.startswith("optim/grad_norm")]
    assert len(names) == 3
    for name in names:
        for norm, team_return in zip(curves[name], curves["rollout/return"], strict=True):
            assert norm < float("inf"), name
            assert norm > 0 or team_return == 0, name  # with no reward in any turn, values of 0 are right


@pytest.mark.parametrize("engine", ["collm", "transformers"])
@pytest.mark.parametrize("strategy", ["one", "fsdp", "fsdp_offload"])
def test_a_run_goes_on_where_it_stopped(tmp_path: Path, tiny_folder: str, strategy: str, engine: str) -> None:
    """With optimizer states and replay buffers, from sampled episodes."""
    if engine == "transformers" and strategy != "one":
        pytest.skip("one of the engines is enough for how states are loaded")
    given = {"critic": {"replay": 2, "replay_batch": 100}}
    made = config(tiny_folder, "collm_cc.CoLLMCC", "separate", given)
    made["model"]["init_args"] |= {"optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"eps": 0.01}}}
    made["model"]["init_args"]["policy"]["engine"] = engine
    del made["data"]["sampler"]
    how = STRATEGIES.get(strategy, "one")
    Run(str(tmp_path / "whole"), made, how, trainer=HERE).fit()
    Run(str(tmp_path / "begun"), made, how, trainer=HERE | {"max_epochs": 2}).fit()
    last = str(tmp_path / "begun" / LOGS / "checkpoints" / "last.ckpt")
    Run(str(tmp_path / "rest"), made, how, last, trainer=HERE).fit()
    (expected, curves), (found, rest) = (result(tmp_path / name) for name in ("whole", "rest"))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert rest["rollout/return"] == pytest.approx(curves["rollout/return"][-1:])


def test_the_quickstart_in_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two epochs of two rollouts of StrBuild with the embedded model through the command line, then a third one."""
    monkeypatch.chdir(tmp_path)
    base = REPOSITORY / "configs" / "base.yaml"
    arguments = [
        "fit",
        f"--config={REPOSITORY / 'configs' / 'experiments' / 'str_build_tiny.yaml'}",
        f"--trainer.accelerator={ACCELERATOR}",
        "--trainer.enable_progress_bar=false",
        "--trainer.limit_val_batches=1",
        "--data.rollouts_per_epoch=2",
        "--data.tasks_per_rollout=8",
        "--data.eval_episodes_per_task=2",
        "--model.critic_warmup=1",
    ]
    assert cli.main(base, [*arguments, "--trainer.max_epochs=2"]) == 0
    folder = tmp_path / "logs" / "collm" / "version_0"
    last = folder / "checkpoints" / "last.ckpt"
    assert cli.main(base, [*arguments, "--trainer.max_epochs=3", f"--ckpt_path={last}"]) == 0
    resumed = torch.load(tmp_path / "logs" / "collm" / "version_1" / "checkpoints" / "last.ckpt", weights_only=True)
    assert resumed["epoch"] == 2
    _, curves = result(tmp_path)
    for agent_id in ("builder_1", "builder_2"):
        assert max(curves[f"policy/log_prob_drift/{agent_id}"]) < 1e-4
    assert (folder / "agents" / "builder_1" / "model.safetensors").is_file()
