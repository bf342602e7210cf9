"""What clients of vLLM's server may tell the logits processor in its worker, which is loaded without vLLM here."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from collm.inference import sampling

GIVEN = {"request": "a", "top_p": 0.5, "top_k": 2}


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name, has in (("builtin", ["process_dict_updates"]), ("interface", ["BatchUpdate", "LogitsProcessor"])):
        module = ModuleType(name)
        for attribute in has:
            setattr(module, attribute, type(attribute, (), {}))
        monkeypatch.setitem(sys.modules, f"vllm.v1.sample.logits_processor.{name}", module)
    for name in ("vllm", "vllm.v1", "vllm.v1.sample", "vllm.v1.sample.logits_processor"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    path = Path(sampling.__file__).with_name("vllm_masks.py")
    spec = importlib.util.spec_from_file_location("masks_without_vllm", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module.CutRecorder


def test_settings_that_would_end_the_server_are_refused(recorder: Any) -> None:
    for given in ({}, None, GIVEN, {**GIVEN, "request": 7}):
        recorder.validate_params(SimpleNamespace(extra_args=given))
    for request in (["a"], {"a": 1}, None, 1.5):
        with pytest.raises(ValueError, match="give a name or a number"):
            recorder.validate_params(SimpleNamespace(extra_args={**GIVEN, "request": request}))


def test_sets_that_nobody_asks_for_do_not_pile_up(recorder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "most", 3)
    keeper, own = recorder(None, torch.device("cpu"), False), recorder.for_engine()
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    cut = sampling.Sampling(1, top_k=2)
    request = sys.modules["masks_without_vllm"]._Request
    for name in "abcdb":  # b goes on
        keeper.requests = {0: request(name, cut, [1] * (name == "b" and len(recorder.masks) == 3))}
        keeper.apply(logits.clone())
    assert list(recorder.masks) == ["c", "d", "b"]
    assert recorder.take("b", 2).dense(4).tolist() == [[False, False, True, True]] * 2
    for name in range(9):  # all of an engine in this process are asked for
        own.keep(name, 0, None)
    assert len(own.masks) == 9
