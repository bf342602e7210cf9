"""What a server answers cannot fill the memory, write to the terminal or end a run by its number of faults."""

from __future__ import annotations

import asyncio
import gzip
import io
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch

from collm.errors import ConfigurationError, TrainingError
from collm.inference.actors import check_engines
from collm.inference.endpoint.client import Fault, connection, request
from collm.inference.endpoint.latency import Latency
from collm.inference.endpoint.mate import _Failed
from collm.inference.endpoint.weights import push
from collm.inference.human import HumanEngine
from collm.models.endpoint_spec import EndpointSpec
from collm.models.policy_spec import PolicySpec
from collm.runtime.command import exit_status
from served import listening, served, team

TITLE = "\x1b]0;x\x07"  # sets the title of a terminal


class Answering:
    """A server with the same answer to everything."""

    def __init__(self, content: bytes, status: int = 200, **headers: str):
        self.content, self.status = content, status
        self.headers = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        self.accepted: set[bytes] = set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for kind in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{kind}.complete"})
            return
        while (await receive()).get("more_body"):
            pass
        self.accepted.add(dict(scope["headers"]).get(b"accept-encoding", b""))
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": self.content})


async def asked(url: str, most: int) -> dict[str, Any]:
    async with connection([url], None, 1) as client:
        return await request(client, "GET", f"{url}/models", None, most)


@pytest.mark.parametrize("what", ["answer", "weights"])
def test_short_answers_do_not_become_long_ones(what: str) -> None:
    bomb = gzip.compress(gzip.compress(bytes(100_000_000), 1), 9)  # 100 MB
    assert len(bomb) < 5000
    server = Answering(bomb, content_encoding="gzip, gzip")
    with listening(server) as address:
        tracemalloc.start()
        try:
            if what == "answer":
                with pytest.raises(Fault, match="encoded: content-encoding is gzip, gzip"):
                    asyncio.run(asked(address, 1_000_000))
            else:
                weights = {"w": torch.zeros(2)}
                with pytest.raises(TrainingError, match="encoded: content-encoding is gzip, gzip"):
                    asyncio.run(push([f"{address}/v1"], None, "a1", weights, "run:1"))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 20_000_000
    assert server.accepted == {b"identity"}


def test_an_answer_to_weights_is_read_up_to_a_limit() -> None:
    said = pytest.raises(TrainingError, match="too_long: more than 100000 bytes")
    with listening(Answering(b"x" * 1_000_000, 409)) as address, said:
        asyncio.run(push([f"{address}/v1"], None, "a1", {"w": torch.zeros(2)}, "run:1"))


def test_any_number_of_retries_is_waited_for() -> None:
    latency = Latency(patience=100.0)
    for _ in range(8):
        latency.record(0.5, load=1)
    assert latency.limit(1, 5000) == 100
    assert 2.5 <= _Failed("cut", "", True, None).pause(5000) <= 5.0  # half of the longest pause, or more


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://[::1", "give an address such as"),
        ("http://x:port/v1", "give an address such as"),
        ([None], r"url is \[None\]; give the address of a server"),
        (None, "url is None; give the address of a server"),
    ],
)
def test_addresses_that_are_none(url: Any, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        EndpointSpec(url).check("endpoint")


def test_an_agent_may_be_called_anything() -> None:
    policy = team("tiny")["a1"]
    policy.agent_id = "the cook's 'mate'"
    with served(policy) as url:
        spec = PolicySpec(path="tiny", engine="endpoint", endpoint=EndpointSpec(url))
        check_engines({policy.agent_id: spec})
        with pytest.raises(ConfigurationError, match="has no model 'a1'"):
            check_engines({"a1": spec})


@pytest.mark.parametrize("status", [200, 500])
def test_what_a_server_writes_does_not_reach_the_terminal_raw(
    status: int, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    content = '{"data": [{"id": "\\u001b]0;x\\u0007"}]}' if status == 200 else TITLE
    with listening(Answering(content.encode(), status)) as address:
        spec = PolicySpec(path="tiny", engine="endpoint", endpoint=EndpointSpec(f"{address}/v1"))
        assert exit_status(lambda: check_engines({"a1": spec})) == 2
    said = capsys.readouterr().err
    assert "\ufffd]0;x\ufffd" in said
    assert not {"\x1b", "\x07"} & set(said)


def test_what_a_model_writes_does_not_reach_a_player_raw(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("yes\n\n"))
    assert HumanEngine({}).ask("a1", [{"content": f"your mate says\n\t{TITLE}é"}]).text == "yes"
    assert "--- a1\nyour mate says\n\t\ufffd]0;x\ufffdé\n--- your answer" in capsys.readouterr().out
