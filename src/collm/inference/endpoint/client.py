"""Requests to one server: what is sent, and what of the answer is believed.

Whatever a server answers is read up to a limit of bytes and checked before it is used.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

_CONNECT_SECONDS = 10.0
_TRIAL_SECONDS = 180.0  # of a server that was just started
_IDLE_SECONDS = 2.0  # connections are not used again after this time: servers close theirs after 5 or more
_AGAIN = {408, 409, 425, 429}


class Fault(Exception):
    """No usable answer came.

    Args:
        cause: Its kind, a short name for counts.
        detail: What happened, in words.
        again: Whether asking again may help.
        after: Seconds to wait before that, if the server said so.
    """

    def __init__(self, cause: str, detail: str = "", again: bool = True, after: float | None = None):
        super().__init__(f"{cause}: {detail}" if detail else cause)
        self.cause = cause
        self.again = again
        self.after = after


@dataclass(frozen=True)
class Answer:
    """A response that was checked.

    Args:
        text: Its text.
        token_ids: Its tokens; None in a chat.
        log_probs: Their log-probabilities; None if the server gave none.
        truncated: Whether the limit of its length cut it.
        version: What the server calls the weights that wrote it.
        sampling_mask: The sets its tokens were drawn from, as the server gave them; not checked.
    """

    text: str
    token_ids: list[int] | None
    log_probs: list[float] | None
    truncated: bool
    version: str | None
    sampling_mask: Any = None


@dataclass
class Traffic:
    """What went over the wire for one answer, failed attempts included.

    Args:
        num_bytes: Bytes of the bodies of requests and answers, as they were sent: without headers.
    """

    num_bytes: int = 0


def connection(urls: Sequence[str], key: str | None, concurrency: int) -> httpx.AsyncClient:
    """A client for many requests at once; closing it is for the caller.

    Args:
        urls: Addresses of the servers.
        key: Key of the servers, if they want one.
        concurrency: Most connections.
    """
    return httpx.AsyncClient(
        verify=any(url.startswith("https:") for url in urls),  # reading certificates takes longer than a request
        # compressed, a short answer may be of any length
        headers={"accept-encoding": "identity", **({"authorization": f"Bearer {key}"} if key else {})},
        timeout=httpx.Timeout(None, connect=_CONNECT_SECONDS),  # deadlines are set for whole answers
        limits=httpx.Limits(max_connections=concurrency, keepalive_expiry=_IDLE_SECONDS),
        trust_env=False,
        follow_redirects=False,
    )


async def read(answer: httpx.Response, most: int) -> bytes:
    """The body of an answer, as it was sent.

    Args:
        answer: From `send` with `stream=True`; closing it is for the caller.
        most: Most bytes.

    Raises:
        Fault: It has more, or is compressed.
    """
    encoding = answer.headers.get("content-encoding", "identity")
    if encoding.strip().lower() not in ("", "identity"):
        raise Fault("encoded", f"content-encoding is {encoding:.50}, which was not asked for", again=False)
    content = bytearray()
    async for part in answer.aiter_raw():
        content += part
        if len(content) > most:
            raise Fault("too_long", f"more than {most} bytes")
    return bytes(content)


async def request(
    client: httpx.AsyncClient, method: str, url: str, body: Any, most: int, traffic: Traffic | None = None
) -> dict[str, Any]:
    """The JSON object that a server answers.

    Args:
        client: From `connection`.
        method: GET or POST.
        url: Address.
        body: What is sent as JSON; None for nothing.
        most: Most bytes of the answer.
        traffic: Where to count bytes.

    Raises:
        Fault: There was none.
    """
    traffic = traffic or Traffic()
    asked = client.build_request(method, url, json=body)
    try:
        traffic.num_bytes += len(asked.content)
        answer = await client.send(asked, stream=True)
        try:
            content = await read(answer, most)
        finally:
            traffic.num_bytes += answer.num_bytes_downloaded
            await answer.aclose()
    except (httpx.ConnectError, httpx.ConnectTimeout) as error:
        traffic.num_bytes -= len(asked.content)  # which stayed here
        raise Fault("unreachable", str(error)) from error
    except httpx.HTTPError as error:
        raise Fault("cut", f"{type(error).__name__} {error}") from error
    if answer.status_code != 200:
        again = answer.status_code in _AGAIN or answer.status_code >= 500
        detail = content[:200].decode("utf-8", "replace")
        raise Fault(f"status_{answer.status_code}", detail, again, _seconds(answer.headers.get("retry-after")))
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Fault("not_json", content[:100].decode("utf-8", "replace")) from error
    if not isinstance(parsed, dict):
        raise Fault("schema", f"a {type(parsed).__name__}, not an object")
    return parsed


async def ask(
    client: httpx.AsyncClient,
    url: str,
    body: dict[str, Any],
    vocabulary: int | None,
    most: int,
    traffic: Traffic | None = None,
) -> Answer:
    """The answer to a completion or a chat.

    Args:
        client: From `connection`.
        url: Address of the interface, which ends in /v1.
        body: The request: one with `messages` is a chat.
        vocabulary: Number of tokens there are; None in a chat.
        most: Most bytes of the answer.
        traffic: Where to count bytes.

    Raises:
        Fault: None came that can be used.
    """
    chats = "messages" in body
    parsed = await request(client, "POST", f"{url}/{'chat/' if chats else ''}completions", body, most, traffic)
    choices = parsed.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise Fault("schema", "no choices")
    choice, version = choices[0], parsed.get("system_fingerprint")
    version = version if isinstance(version, str) else None
    truncated = choice.get("finish_reason") == "length"
    if chats:
        return Answer(_content(choice, parsed), None, None, truncated, version)
    ids = choice.get("token_ids")
    if ids is None:
        raise Fault("no_ids", "it gives no token_ids; use protocol: chat", again=False)
    if not isinstance(ids, list) or not all(type(one) is int and 0 <= one < (vocabulary or 0) for one in ids):
        raise Fault("schema", "token_ids are not tokens of this model")
    if not ids or len(ids) > body["max_tokens"]:
        raise Fault("schema", f"{len(ids)} tokens, not 1 to {body['max_tokens']}")
    kept = choice.get("sampling_mask")
    if kept is None and body.get("return_sampling_mask"):
        raise Fault("no_sampling_mask", "it does not say which tokens top_p, top_k or min_new_tokens kept", again=False)
    return Answer("", ids, _log_probs(choice, len(ids)), truncated, version, kept)


def _content(choice: dict[str, Any], parsed: dict[str, Any]) -> str:
    """The text of a chat's answer."""
    message = choice.get("message")
    text = message.get("content") if isinstance(message, dict) else None
    if not isinstance(text, str):
        raise Fault("schema", "no content")
    usage = parsed.get("usage")
    written = usage.get("completion_tokens") if isinstance(usage, dict) else None
    if not text and (type(written) is not int or written > 1):
        raise Fault("empty", "an answer without text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise Fault("schema", "text with half of a surrogate pair") from error
    return text


def _log_probs(choice: dict[str, Any], size: int) -> list[float] | None:
    """Log-probabilities of the tokens, None if there are none."""
    given = choice.get("logprobs")
    values = given.get("token_logprobs") if isinstance(given, dict) else None
    if values is None:
        return None
    numbers = isinstance(values, list) and all(type(one) in (int, float) and math.isfinite(one) for one in values)
    if not numbers or len(values) != size:
        raise Fault("schema", "token_logprobs are not one number for each token")
    return [float(one) for one in values]


def _seconds(text: str | None) -> float | None:
    try:
        seconds = float(text or "")
    except ValueError:
        return None
    return min(seconds, 60.0) if seconds >= 0 else None


async def described(url: str, key: str | None, model: str) -> dict[str, Any]:
    """What a server of this project says of an agent; empty where another one has the model.

    Raises:
        Fault: The server cannot be used.
    """
    async with connection([url], key, 1) as client:
        listed = (await asyncio.wait_for(request(client, "GET", f"{url}/models", None, 4_000_000), 60.0)).get("data")
    models = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    records = [one["agent"] for one in models if one.get("id") == model and isinstance(one.get("agent"), dict)]
    return records[0] if records else {}


async def introduced(urls: Sequence[str], key: str | None, model: str, chats: bool, probe: dict[str, Any]) -> None:
    """Check that servers have a model, its tokenizer, and what is needed of its interface.

    Args:
        urls: Addresses.
        key: Their key.
        model: What the model is called there.
        chats: Whether it will be asked by chat.
        probe: `text` and its `ids` in the tokenizer of this side, to compare with theirs, and `more` to ask for; not
            looked at in a chat.

    Raises:
        Fault: Says what is wrong, for people to read.
    """
    async with connection(urls, key, len(urls)) as client:
        for url in urls:
            try:
                await asyncio.wait_for(_introduced(client, url, model, chats, probe), _TRIAL_SECONDS)
            except (TimeoutError, asyncio.TimeoutError) as error:
                raise Fault(f"{url} does not answer within {_TRIAL_SECONDS:g} seconds") from error


async def _introduced(client: httpx.AsyncClient, url: str, model: str, chats: bool, probe: dict[str, Any]) -> None:
    try:
        listed = (await request(client, "GET", f"{url}/models", None, 4_000_000)).get("data")
    except Fault as fault:
        raise Fault(f"{url} cannot be used ({fault}); start it, or give another url") from fault
    names = [one.get("id") for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    if model not in names:
        known = ", ".join(map(str, names))[:300] or "none"
        raise Fault(f"{url} has no model {model!r} (it has {known}); name one of its with endpoint.model")
    if chats:
        return
    body = {"model": model, "prompt": probe["text"], "add_special_tokens": False}
    try:
        ids = (await request(client, "POST", f"{url.removesuffix('/v1')}/tokenize", body, 1_000_000)).get("tokens")
    except Fault:  # not every server has it
        ids = probe["ids"]
    if ids != probe["ids"]:
        raise Fault(
            f"{url} has another tokenizer for {model!r} than the policy's path; give the path of its model, or use "
            "endpoint.protocol chat"
        )
    body = {"model": model, "prompt": probe["ids"], "max_tokens": 1, "return_token_ids": True, "logprobs": 1}
    body |= probe["more"]
    try:
        await ask(client, url, body, probe["vocabulary"], 1_000_000)
    except Fault as fault:
        raise Fault(f"{url} does not answer as it should: {fault}") from fault
