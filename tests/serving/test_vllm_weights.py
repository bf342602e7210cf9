"""What vLLM's server is given beside its own code, against a stand-in for its engine: see test_vllm_training.py."""

from __future__ import annotations

import asyncio
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch
from fastapi import FastAPI
from safetensors.torch import load_file, save

from collm.inference.endpoint.weights import weights_of
from collm.models.backbone import Backbone
from collm.serving import vllm_weights
from collm.serving.folders import AGENT_VARIABLE
from collm.serving.vllm_weights import TakesWeights, adapter_shapes, model_shapes
from served import listening, team


class Stub:
    """The parts of vLLM's server that the middleware touches; it answers a completion when it is told to."""

    def __init__(self) -> None:
        self.app = FastAPI()
        self.loaded: list[dict[str, torch.Tensor]] = []
        self.fails = False
        self.may_answer = asyncio.Event()
        state = self.app.state
        state.engine_client = SimpleNamespace(collective_rpc=self.collective_rpc, reset_prefix_cache=self.reset)
        state.openai_serving_completion, state.openai_serving_chat = SimpleNamespace(), SimpleNamespace()
        self.resets = 0
        self.asked = 0

        @self.app.post("/v1/completions")
        async def complete() -> dict[str, Any]:
            self.asked += 1
            await self.may_answer.wait()
            return {"system_fingerprint": getattr(state.openai_serving_completion, "system_fingerprint", None)}

    async def collective_rpc(self, method: str, args: tuple[str, ...]) -> None:
        assert method == "take_weights"
        if self.fails:
            raise RuntimeError("a worker died")
        self.loaded.append(load_file(args[0]))

    async def reset(self) -> None:
        self.resets += 1


def push(address: str, weights: dict[str, torch.Tensor], version: str, **headers: str) -> httpx.Response:
    given = {"x-collm-version": version, **headers}
    return httpx.post(f"{address}/weights", content=save(weights), headers=given, timeout=60)


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stub:
    team("tiny")["a1"].save(tmp_path / "a1")
    monkeypatch.setenv(AGENT_VARIABLE, str(tmp_path / "a1"))
    monkeypatch.setattr(vllm_weights, "check_installed", lambda what: None)
    stub = Stub()
    stub.app.add_middleware(TakesWeights)
    return stub


def test_weights_wait_for_answers_and_answers_for_weights(stub: Stub) -> None:
    weights = weights_of(team("tiny")["a1"])
    with listening(stub.app) as address:
        stub.may_answer.set()
        assert push(address, weights, "run:1").json() == {"version": "run:1"}
        stub.may_answer.clear()
        answers: list[str] = []

        def ask() -> None:
            answers.append(httpx.post(f"{address}/v1/completions", timeout=60).json()["system_fingerprint"])

        early = Thread(target=ask)
        early.start()
        while stub.asked < 1:
            pass
        pushing = Thread(target=push, args=(address, {name: value + 1 for name, value in weights.items()}, "run:2"))
        pushing.start()
        pushing.join(0.5)
        assert pushing.is_alive()  # the first answer is on its way
        assert len(stub.loaded) == 1
        stub.may_answer.set()
        early.join()
        pushing.join()
        ask()
        assert answers == ["run:1", "run:2"]
    first, second = stub.loaded
    assert stub.resets == 2
    assert first.keys() == second.keys() == {*weights, "lm_head.weight"}
    assert all(torch.equal(first[name], weights[name]) for name in weights)
    assert torch.equal(second["lm_head.weight"], weights["model.embed_tokens.weight"] + 1)


def test_weights_come_between_clients_that_always_ask(stub: Stub) -> None:
    """Two clients, one of which is being answered at any time."""
    weights, answered = save(weights_of(team("tiny")["a1"])), []

    async def answer() -> dict[str, Any]:
        await asyncio.sleep(0.2)
        return {}

    stub.app.router.routes[:] = [one for one in stub.app.router.routes if one.path != "/v1/completions"]
    stub.app.post("/v1/completions")(answer)

    async def together() -> int:
        ended = asyncio.Event()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(stub.app), base_url="http://server") as client:

            async def ask_always(first: float) -> None:
                await asyncio.sleep(first)
                while not ended.is_set():
                    answered.append((await client.post("/v1/completions")).status_code)

            asking = [asyncio.create_task(ask_always(first)) for first in (0.0, 0.1)]
            await asyncio.sleep(0.3)
            try:
                headers = {"x-collm-version": "run:1"}
                given = client.post("/weights", content=weights, headers=headers)
                return (await asyncio.wait_for(given, 10)).status_code
            finally:
                ended.set()
                await asyncio.gather(*asking)

    assert asyncio.run(together()) == 200
    assert len(stub.loaded) == 1
    assert set(answered) == {200}


def test_weights_that_are_refused_and_a_server_that_breaks(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = weights_of(team("tiny")["a1"])
    fewer = dict(list(weights.items())[1:])
    stub.may_answer.set()
    with listening(stub.app) as address:
        for given, version, says in (
            (fewer, "run:1", "1 differ in name or shape"),
            (weights, "run", "names no run and no number of updates"),
        ):
            answer = push(address, given, version)
            assert (answer.status_code, stub.loaded) == (409, [])
            assert says in answer.json()["error"]["message"]
        assert push(address, weights, "run:1").status_code == 200
        assert "another run pushes" in push(address, weights, "other:1").json()["error"]["message"]
        stub.fails = True
        assert push(address, weights, "run:2").status_code == 500
        # nobody knows what such a server holds, so it does not say
        assert httpx.post(f"{address}/v1/completions").json()["system_fingerprint"] == "none"


def test_the_key_of_the_server_is_asked_for(stub: Stub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret of 16 letters")
    weights = weights_of(team("tiny")["a1"])
    with listening(stub.app) as address:
        assert push(address, weights, "run:1").status_code == 401
        assert push(address, weights, "run:1", authorization="Bearer secret of 16 letters").status_code == 200


@pytest.mark.parametrize("parameters", ["separate", "lora"])
def test_names_and_shapes_are_those_that_learners_push(tmp_path: Path, parameters: str) -> None:
    policy = team("tiny", parameters)["a1"]
    policy.save(tmp_path / "a1")
    shapes, tied = (model_shapes if parameters == "separate" else adapter_shapes)(tmp_path / "a1")
    assert shapes == {name: list(weight.shape) for name, weight in weights_of(policy).items()}
    assert tied == ({"lm_head.weight": "model.embed_tokens.weight"} if parameters == "separate" else {})


def test_a_head_of_its_own_is_tied_to_nothing(tmp_path: Path) -> None:
    backbone = Backbone("tiny", "float32")
    backbone.lm.config.tie_word_embeddings = False
    backbone.lm.config.save_pretrained(tmp_path)
    shapes, tied = model_shapes(tmp_path)
    assert tied == {}
    assert shapes["lm_head.weight"] == shapes["model.embed_tokens.weight"]
