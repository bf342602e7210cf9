"""Completions of vLLM's server with the sets of their tokens, against a stand-in for it: see test_vllm_training.py."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import torch
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from collm.inference.endpoint.masks import packed, unpacked
from collm.sampling_mask import SamplingMask
from collm.serving.vllm_sets import GivesSets
from served import listening

SETS = SamplingMask(torch.tensor([2, 5, 9, 1], dtype=torch.int32), torch.tensor([3, 0, -1]))


class Stub:
    """What the middleware touches of vLLM's server: it answers each completion with three tokens."""

    def __init__(self) -> None:
        self.app = FastAPI()
        self.asked: list[dict[str, Any]] = []
        self.taken: list[tuple[str, int]] = []
        self.status = 200
        self.app.state.engine_client = SimpleNamespace(collective_rpc=self.collective_rpc)

        @self.app.post("/v1/completions")
        async def complete(request: Request) -> JSONResponse:
            self.asked.append(await request.json())
            if self.status != 200:
                return JSONResponse({"error": "no"}, self.status)
            return JSONResponse({"id": "1", "choices": [{"token_ids": [5, 7, 0], "text": "é"}]})

        @self.app.post("/v1/chat/completions")
        async def chat(request: Request) -> JSONResponse:
            self.asked.append(await request.json())
            return JSONResponse({"id": "2"})

        self.app.add_middleware(GivesSets)

    async def collective_rpc(self, method: str, args: tuple[str, int]) -> list[Any]:
        assert method == "take_sets"
        self.taken.append(args)
        return [packed(SETS)]


def ask(address: str, **more: Any) -> httpx.Response:
    body = {"prompt": [1, 2], "top_p": 0.9, "top_k": 4, "return_sampling_mask": True, **more}
    return httpx.post(f"{address}/v1/completions", json=body)


def test_sets_are_added_to_what_the_server_answers() -> None:
    stub = Stub()
    with listening(stub.app) as address:
        (choice,) = ask(address).json()["choices"]
        assert (choice["token_ids"], choice["text"]) == ([5, 7, 0], "é")
        mask = unpacked(choice["sampling_mask"], [5, 7, 0], 10)
        assert mask.counts.tolist() == SETS.counts.tolist()
        ask(address)
    first, second = stub.asked
    # the distribution is cut once, by what records the sets
    assert first["vllm_xargs"] == {"request": stub.taken[0][0], "top_p": 0.9, "top_k": 4}
    assert (first["prompt"], first["top_p"], first["top_k"], first["return_token_ids"]) == ([1, 2], 1.0, 0, True)
    assert "return_sampling_mask" not in first
    assert [length for _, length in stub.taken] == [3, 3]
    assert stub.taken[0][0] != stub.taken[1][0]


def test_other_completions_and_errors_go_through_as_they_are() -> None:
    stub = Stub()
    with listening(stub.app) as address:
        assert "sampling_mask" not in ask(address, return_sampling_mask=False).json()["choices"][0]
        assert "sampling_mask" not in ask(address, temperature=0).json()["choices"][0]
        assert stub.asked[0]["top_p"] == 0.9
        assert stub.taken == []
        stub.status = 400
        answer = ask(address)
        assert (answer.status_code, answer.json()) == (400, {"error": "no"})
        assert [length for _, length in stub.taken] == [0]  # nothing is kept of it


def test_clients_tell_logits_processors_nothing() -> None:
    stub, cut = Stub(), {"request": ["a"], "top_p": 1.0, "top_k": 0}
    with listening(stub.app) as address:
        assert ask(address, return_sampling_mask=False, vllm_xargs=cut).status_code == 200
        assert ask(address, vllm_xargs=cut).status_code == 200
        chat = {"messages": [], "vllm_xargs": cut, "return_sampling_mask": True}
        assert httpx.post(f"{address}/v1/chat/completions", json=chat).json() == {"id": "2"}
    plain, with_sets, chatted = stub.asked
    assert "vllm_xargs" not in plain
    assert with_sets["vllm_xargs"]["request"] == stub.taken[0][0]  # its own
    assert chatted == {"messages": [], "return_sampling_mask": True}


@pytest.mark.parametrize("more", [{"stream": True}, {"n": 2}, {"prompt": [[1], [2]]}, {"prompt": ["a", "b"]}])
def test_sets_are_of_one_response(more: dict) -> None:
    stub = Stub()
    with listening(stub.app) as address:
        answer = ask(address, **more)
    assert answer.status_code == 400
    assert "for one response to one prompt" in answer.json()["error"]["message"]
    assert stub.asked == []


def test_the_key_of_the_server_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "secret of 16 letters")
    stub = Stub()
    with listening(stub.app) as address:
        assert ask(address).status_code == 401
    assert stub.asked == []
