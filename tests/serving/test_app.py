"""The server of an agent: what it answers, what it refuses, and that requests do not disturb each other."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Iterator

import httpx
import pytest
import torch

from actors import sampled
from collm.inference.sampling import Sampling
from collm.models.policy import Policy, Response
from collm.serving.app import Service, make_app
from collm.serving.decoding import Job, responder
from collm.serving.guard import Guard, Impatient
from served import listening, served, team

PROMPT = [5, 6, 7, 8]


@pytest.fixture(scope="module")
def policy() -> Policy:
    return team("tiny")["a1"]


@pytest.fixture(scope="module")
def url(policy: Policy) -> Iterator[str]:
    with served(policy) as address:
        yield address


def completed(url: str, **body: object) -> dict:
    body = {"prompt": PROMPT, "return_token_ids": True, "logprobs": 1, **body}
    answer = httpx.post(f"{url}/completions", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


def test_tokens_and_log_probabilities_are_those_of_the_policy(url: str, policy: Policy) -> None:
    (action,) = sampled(policy, [PROMPT], torch.Generator(), greedy=True)
    choice = completed(url, temperature=0)
    assert choice["token_ids"] == list(action.token_ids)
    assert choice["prompt_token_ids"] == PROMPT
    assert choice["text"] == action.text
    assert choice["logprobs"]["token_logprobs"] == pytest.approx(list(action.log_probs), abs=1e-5)
    assert choice["finish_reason"] == ("length" if action.truncated else "stop")


def test_a_seed_gives_the_same_answer_alone_and_among_others(url: str) -> None:
    alone = [completed(url, seed=seed)["token_ids"] for seed in range(8)]
    assert len(set(map(tuple, alone))) > 4  # sampled, and not one answer

    async def together() -> list[list[int]]:
        async with httpx.AsyncClient(timeout=60) as client:
            body = {"prompt": PROMPT, "return_token_ids": True}
            asked = [client.post(f"{url}/completions", json={**body, "seed": seed}) for seed in range(8)]
            return [answer.json()["choices"][0]["token_ids"] for answer in await asyncio.gather(*asked)]

    assert asyncio.run(together()) == alone


def test_jobs_of_one_batch_have_their_own_settings(policy: Policy) -> None:
    jobs = [
        Job(PROMPT, Sampling(3), 1),
        Job([9], Sampling(9, temperature=0.5), 2),
        Job(PROMPT, Sampling(5, greedy=True), 3),
        Job(PROMPT, Sampling(6, min_new_tokens=6), 4),
    ]
    respond = responder(policy, "collm")
    beside, alone = respond(jobs), [respond([job])[0] for job in jobs]
    assert [one.token_ids for one in beside] == [one.token_ids for one in alone]
    for one, other in zip(beside, alone, strict=True):
        assert one.log_probs == pytest.approx(other.log_probs, abs=1e-4)
    assert len(beside[3].token_ids) == 6
    assert all(len(one.token_ids) <= job.sampling.max_new_tokens for one, job in zip(beside, jobs, strict=True))


def test_the_transformers_backend_draws_by_seed_too(policy: Policy) -> None:
    respond = responder(policy, "transformers")
    first, second, greedy = respond(
        [Job(PROMPT, Sampling(6), 1), Job(PROMPT, Sampling(6), 1), Job(PROMPT, Sampling(6, greedy=True), 1)]
    )
    assert first == second
    (other,) = responder(policy, "collm")([Job(PROMPT, Sampling(6, greedy=True), 1)])
    assert greedy.token_ids == other.token_ids


def test_a_chat_has_the_tokens_of_training_over_four_turns(url: str, policy: Policy) -> None:
    observations, actions, messages = [], [], []
    for turn in range(4):
        observations.append(f"turn {turn}: fill 1 2 3")
        messages.append({"role": "user", "content": observations[-1]})
        prompt = policy.prompt(observations, actions)
        body = {"messages": messages, "seed": turn, "return_token_ids": True}
        choice = httpx.post(f"{url}/chat/completions", json=body, timeout=60).json()["choices"][0]
        assert choice["prompt_token_ids"] == list(prompt)
        response = Response(choice["token_ids"], [0.0] * len(choice["token_ids"]))
        actions += policy.actions([prompt], [response])
        assert choice["message"]["content"] == actions[-1].text
        messages.append(choice["message"])


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"prompt": [-1]}, "the prompt must be tokens from 0 to 445"),
        ({"prompt": []}, "the prompt must be tokens"),
        ({"prompt": [10**9]}, "the prompt must be tokens"),
        ({"prompt": [5] * 2040}, "do not fit the context of 2048"),
        ({"prompt": [5], "max_tokens": 10**12}, "do not fit the context"),
        ({"prompt": "x" * 100_000}, "has 100000 characters"),
        ({"prompt": [5], "n": 2}, "n is 2"),
        ({"prompt": [5], "stream": True}, "stream is True"),
        ({"prompt": [5], "stop": ["a"]}, "stop is"),
        ({"prompt": [5], "temperature": -1}, "body.temperature"),
        ({"prompt": [5], "temperature": 1e-40}, "temperature is 1e-40; give 0"),
        ({"prompt": [5], "temperature": 9e-4}, "temperature is 0.0009; give 0"),
        ({"prompt": {"a": 1}}, "body.prompt"),
        ({}, "body.prompt"),
    ],
)
def test_requests_that_cannot_be_followed(url: str, body: dict, says: str) -> None:
    answer = httpx.post(f"{url}/completions", json=body)
    assert answer.status_code == 400
    assert says in answer.json()["error"]["message"]


def test_a_request_that_cannot_be_followed_does_not_disturb_others(url: str) -> None:
    alone = completed(url, seed=3)["token_ids"]

    async def together() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=60) as client:
            body = {"prompt": PROMPT, "return_token_ids": True, "seed": 3}
            both = [client.post(f"{url}/completions", json={**body, **own}) for own in ({}, {"temperature": 1e-40})]
            return list(await asyncio.gather(*both))

    good, bad = asyncio.run(together())
    assert (good.status_code, bad.status_code) == (200, 400)
    assert good.json()["choices"][0]["token_ids"] == alone
    assert len(completed(url, temperature=1e-3)["token_ids"]) >= 1


def test_another_model_is_not_here(url: str) -> None:
    answer = httpx.post(f"{url}/completions", json={"prompt": [5], "model": "a2"})
    assert (answer.status_code, answer.json()["error"]["message"]) == (404, "there is no model 'a2' here, only 'a1'")


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "assistant", "content": "x"}],
        [{"role": "user", "content": "x"}, {"role": "user", "content": "y"}],
        [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}],
        [{"role": "system", "content": "x"}],
        [],
    ],
)
def test_messages_in_another_order(url: str, messages: list) -> None:
    assert httpx.post(f"{url}/chat/completions", json={"messages": messages}).status_code == 400


# What clients do who mean no good


def test_a_key_is_asked_for_everything_but_health(policy: Policy) -> None:
    with served(policy, key="right") as url:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "right"}):
            assert httpx.get(f"{url}/models", headers=headers).status_code == 401
        assert httpx.get(f"{url}/models", headers={"authorization": "Bearer right"}).status_code == 200
        assert httpx.get(f"{url.removesuffix('/v1')}/health").json() == {"status": "ok"}


def test_a_body_of_100_megabytes_is_refused(url: str) -> None:
    def parts() -> Iterator[bytes]:  # without a length beforehand
        for _ in range(100):
            yield b" " * 1_000_000

    for content in (b" " * 100_000_000, parts()):
        with contextlib.suppress(httpx.TransportError):  # refused before all was sent
            assert httpx.post(f"{url}/completions", content=content, timeout=60).status_code == 413
        assert completed(url, max_tokens=1)


def connect(url: str, sent: bytes = b"") -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", int(url.split(":")[2].split("/")[0])), timeout=60)
    connection.sendall(sent)
    return connection


def test_many_connections_at_once(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that say nothing, or half of something, are closed; the server answers meanwhile and afterwards."""
    monkeypatch.setattr(Impatient, "header_seconds", 2.0)
    number = int(os.environ.get("COLLM_CONNECTIONS", "200"))
    beginnings = (b"", b"POST /v1/comple", b"GET /health HTTP/1.1\r\nx-a: b\r\n")
    silent = [connect(url, beginnings[index % 3]) for index in range(number)]
    assert httpx.get(f"{url.removesuffix('/v1')}/health", timeout=60).json() == {"status": "ok"}
    assert completed(url, max_tokens=1)
    assert {connection.recv(1) for connection in silent} == {b""}
    for connection in silent:
        connection.close()

    monkeypatch.setattr(Impatient, "header_seconds", 60.0)  # many clients in one thread are slow themselves

    async def together() -> list[int]:
        limits = httpx.Limits(max_connections=number)
        async with httpx.AsyncClient(timeout=300, limits=limits) as client:
            body = {"prompt": PROMPT, "max_tokens": 1}
            asked = [client.post(f"{url}/completions", json=body) for _ in range(number)]
            return [answer.status_code for answer in await asyncio.gather(*asked)]

    assert asyncio.run(together()) == [200] * number
    assert completed(url, max_tokens=1)


@pytest.mark.parametrize("before", [b"", b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n"])
def test_headers_that_never_end(url: str, monkeypatch: pytest.MonkeyPatch, before: bytes) -> None:
    """Neither of the first request on a connection nor of a later one."""
    monkeypatch.setattr(Impatient, "header_seconds", 0.3)
    slow = connect(url, before)
    if before:
        assert slow.recv(12) == b"HTTP/1.1 200"
    slow.sendall(b"POST /v1/completions HTTP/1.1\r\n")
    began = time.monotonic()
    with contextlib.suppress(ConnectionError):
        while time.monotonic() < began + 10:
            slow.sendall(b"x-a: b\r\n")
            time.sleep(0.02)
    assert time.monotonic() < began + 10
    slow.close()
    assert completed(url, max_tokens=1)


def test_a_request_may_follow_later_on_its_connection(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Impatient, "header_seconds", 0.3)
    connections = set()
    with httpx.Client() as client:
        for pause in (0.5, 0.0):
            answer = client.get(f"{url}/models")
            assert answer.status_code == 200
            connections.add(answer.extensions["network_stream"].get_extra_info("client_addr"))
            time.sleep(pause)
    assert len(connections) == 1


def test_a_body_that_does_not_arrive(policy: Policy) -> None:
    app = Guard(make_app(Service(policy, "collm", "test")), None, body_seconds=0.2)
    with listening(app) as address:
        slow = connect(f"{address}/v1", b"POST /v1/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n{")
        assert slow.recv(12) == b"HTTP/1.1 408"
        slow.close()
        assert httpx.get(f"{address}/health").status_code == 200
