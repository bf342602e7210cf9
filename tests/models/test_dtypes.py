"""`dtype: auto` is bfloat16 where a device has instructions for it, and float32 elsewhere, said in one line."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from collm.algorithms.collm_cc import CoLLMCC
from collm.critics.language_model import LanguageModelCritic
from collm.models import dtypes
from collm.models.backbone import Backbone
from collm.models.policy_spec import PolicySpec
from collm.models.specs import ModelSpec
from collm.serving.agents import load_agent


@pytest.fixture(params=[True, False], ids=["with instructions", "without"])
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the processor is one with instructions for bfloat16."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: request.param)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)  # with AVX-512 it says so anyway
    monkeypatch.setattr(dtypes.platform, "machine", lambda: "x86_64")
    return request.param


@pytest.fixture
def said() -> Iterator[Callable[[str], int]]:
    """How many warnings begin with a text, under Python's own filter: one line for the same warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        yield lambda text: sum(str(one.message).startswith(text) for one in caught)


def algorithm(folder: str, dtype: str) -> CoLLMCC:
    return CoLLMCC(
        agent_ids=["a", "b"],
        policy=PolicySpec(folder, dtype=dtype),
        critic=LanguageModelCritic(ModelSpec(folder, dtype=dtype)),
    )


def test_auto_is_what_the_processor_computes_with_and_is_said_once(tiny_folder, instructions, said, tmp_path: Path):
    module = algorithm(tiny_folder, "auto")
    module.configure_model()
    expected = torch.bfloat16 if instructions else torch.float32
    assert [one.lm.dtype for one in module.backbones.values()] == [expected] * 3
    assert said("dtype auto is float32 here: the cpu has no") == (not instructions)
    module.policies["a"].save(tmp_path / "a")
    assert json.loads((tmp_path / "a" / "collm_agent.json").read_text())["dtype"] == "auto"  # also where it is served
    assert load_agent(tmp_path / "a").backbone.lm.dtype == expected


def test_bfloat16_stays_bfloat16_and_is_said_to_be_slow(tiny_folder, instructions, said):
    module = algorithm(tiny_folder, "bfloat16")
    module.configure_model()
    assert {one.lm.dtype for one in module.backbones.values()} == {torch.bfloat16}
    assert said("dtype bfloat16 is slow here (auto would be float32): ") == (not instructions)


def test_memory_is_planned_for_bfloat16_and_a_gpu_is_asked_about_itself(tiny_folder, instructions, monkeypatch):
    with torch.device("meta"):
        assert Backbone(tiny_folder, "auto", random_weights=True).dtype == "bfloat16"
    module = algorithm(tiny_folder, "auto")
    module._trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cuda:0")))
    assert module.computes_on() == torch.device("cuda:0")
    for supported, name in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, answer=supported: answer)
        assert dtypes.dtype_on("auto", module.computes_on()) == name
