"""Weights of low precision that were drawn at random, on two devices: checkpoints and exports have all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from pair import Run, fit_in_pair
from toy import toy_config

LAST = Path("logs", "collm", "version_0", "checkpoints", "last.ckpt")
FOLDER = {"save_distributed_checkpoint": True}


def config(tiny_folder: str, **given: Any) -> dict[str, Any]:
    made = toy_config(tiny_folder)
    made["model"]["class_path"] = "collm.algorithms.magrpo.MAGRPO"
    arguments = made["model"]["init_args"]
    del arguments["critic"]
    arguments["policy"] |= {"dtype": "bfloat16", "random_weights": True, "lora_rank": given.pop("lora_rank", 0)}
    arguments["policy"]["learning_rate"] = 1e-3 if arguments["policy"]["lora_rank"] else 5e-6
    arguments |= {"kl_weight": 0.1, **given}
    made["data"] |= {"sampler": {"class_path": "toy.Replayed"}, "num_generations": 2}
    made["trainer"] |= {"max_epochs": 3, "limit_val_batches": 0, "enable_progress_bar": False}
    return made


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_folder: str) -> Path:
    root = tmp_path_factory.mktemp("runs")
    made = config(tiny_folder)
    halves = {"ddp": "ddp", "fsdp": {}, "folder": FOLDER}
    every = [Run(str(root / "whole_ddp"), made, "ddp"), Run(str(root / "whole_fsdp"), made, {})]
    every += [Run(str(root / name), made, how, trainer={"max_epochs": 2}) for name, how in halves.items()]
    goes_on = [("ddp", "ddp"), ("fsdp", {}), ("folder", {}), ("fsdp", "ddp")]
    for name, how in goes_on:
        then = how or "fsdp"
        every.append(Run(str(root / f"{name}_to_{then}"), made, how, str(root / name / LAST)))
    every.append(Run(str(root / "adapters"), config(tiny_folder, lora_rank=2, parameters="lora"), {}))
    fit_in_pair(root, every)
    return root


def saved(folder: Path) -> dict[str, Any]:
    return torch.load(folder / LAST, weights_only=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("whole", "resumed"),
    [("whole_ddp", "ddp_to_ddp"), ("whole_fsdp", "fsdp_to_fsdp"), ("whole_fsdp", "folder_to_fsdp")],
)
def test_a_resumed_run_is_bit_equal(runs: Path, whole: str, resumed: str) -> None:
    expected, found = saved(runs / whole), saved(runs / resumed)
    for part in ("state_dict", "optimizer_states"):
        assert_close(found[part], expected[part], rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["whole_ddp", "whole_fsdp", "fsdp_to_ddp"])
def test_weights_are_their_rounded_float32_copies(runs: Path, name: str) -> None:
    checkpoint = saved(runs / name)
    policies = {name: weight for name, weight in checkpoint["state_dict"].items() if name.startswith("backbones.<a1>.")}
    copies = [entries["float32_weight"] for entries in checkpoint["optimizer_states"][0]["state"].values()]
    trained = [policies[key] for key in policies if "lm_head" not in key]  # which is the embedding
    assert len(copies) == len(trained)
    for weight, copy in zip(trained, copies, strict=True):
        assert weight.equal(copy.bfloat16())
    rounded_away = [copy.ne(weight.float()).float().mean() for weight, copy in zip(trained, copies, strict=True)]
    assert max(rounded_away) > 0.5


@pytest.mark.slow
def test_references_are_in_the_checkpoint(runs: Path) -> None:
    for name in ("whole_ddp", "whole_fsdp", "fsdp_to_ddp", "folder_to_fsdp"):
        state = saved(runs / name)["state_dict"]
        for key in [key for key in state if key.startswith("backbones.")]:
            assert f"reference_{key}" in state
        assert state.keys() == saved(runs / "whole_ddp")["state_dict"].keys()


@pytest.mark.slow
def test_an_adapter_is_exported_from_sharded_weights(runs: Path) -> None:
    state = saved(runs / "adapters")["state_dict"]
    base = {name.removeprefix("backbones.<base%200>.lm."): weight.float() for name, weight in state.items()}
    layer = "model.layers.1.self_attn.q_proj"
    for agent_id in ("a1", "a2"):
        down, up = (base[f"{layer}.{part}.<{agent_id}>.weight"] for part in ("lora_A", "lora_B"))
        found = load_file(runs / "adapters" / LAST.parents[1] / "agents" / agent_id / "model.safetensors")
        assert up.any()
        assert_close(found[f"{layer}.weight"], base[f"{layer}.base_layer.weight"] + up @ down * 32 / 2)
