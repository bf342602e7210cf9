"""A proxy in front of a server, for tests of what becomes of broken answers."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx

JSON = {"content-type": "application/json"}


class Faulty:
    """A proxy in front of a server that breaks some of its answers.

    Args:
        url: The server.
        kinds: What happens to one answer after the other, `""` for nothing; repeated when it ends.
    """

    def __init__(self, url: str, kinds: list[str]):
        self.url = url.removesuffix("/v1")
        self.kinds = kinds
        self.asked = 0
        self.num_bytes = 0  # of the bodies of requests for answers, and of those answers

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            for kind in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{kind}.complete"})
            return
        body = (await receive())["body"]
        kind, counted = "", scope["path"].endswith("completions") and json.loads(body)["max_tokens"] > 1  # no trial
        if counted:
            kind = self.kinds[self.asked % len(self.kinds)]
            self.asked += 1
        async with httpx.AsyncClient(timeout=60) as client:
            answer = await client.request(scope["method"], self.url + scope["path"], content=body, headers=JSON)
        status, content = self.broken(kind, answer.status_code, answer.content)
        if kind in ("slow", "hang"):
            await asyncio.sleep({"slow": 0.3, "hang": 30}[kind])
        self.num_bytes += (len(body) + len(content)) * counted
        length = len(content) + (100 if kind == "cut" else 0)
        headers = [(b"content-length", str(length).encode()), (b"retry-after", b"0")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content, "more_body": kind == "cut"})

    @staticmethod
    def broken(kind: str, status: int, content: bytes) -> tuple[int, bytes]:
        if kind in ("500", "429", "400"):
            return int(kind), b'{"error": "broken"}'
        replaced = {
            "html": b"<html>Bad gateway</html>",
            "schema": b'{"choices": [{"token_ids": ["a"], "message": {"content": 7}}]}',
            "null": b"null",
            "nothing": b"",
            "huge": b'{"choices": "' + b"x" * 1_000_000 + b'"}',
            "deep": b"[" * 60_000,
        }
        if kind in replaced:
            return status, replaced[kind]
        if kind in ("empty", "no ids", "long", "foreign"):
            parsed = json.loads(content)
            choice = parsed["choices"][0]
            ids = choice.get("token_ids")
            changed = {"empty": [], "no ids": None, "long": [5] * 100, "foreign": [10**6]}[kind]
            choice["token_ids"] = changed if ids is not None else None
            if "message" in choice:
                choice["message"]["content"] = ""
            return status, json.dumps(parsed).encode()
        return status, content
