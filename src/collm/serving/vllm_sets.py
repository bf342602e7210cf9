"""The sets that tokens were drawn from, in the answers of vLLM's own server.

vLLM's interface does not give them. Where a request asks for them, this project's logits processor cuts the
distribution instead of vLLM and records them in the worker, from where the answer gets them.
"""

from __future__ import annotations

import json
import os
from typing import Any
from uuid import uuid4

from collm.inference.endpoint.masks import packed
from collm.serving.guard import App, Guard, Message, Receive, Send, refuse, replay


class GivesSets:
    """Middleware of vLLM's server that follows `return_sampling_mask` in completions, as this project's servers do.

    What clients themselves tell logits processors, `vllm_xargs`, is left out of completions and chats.

    Args:
        app: The server.
    """

    def __init__(self, app: App):
        self.app = app
        self.guarded = Guard(self.answer, os.environ.get("VLLM_API_KEY"))

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].endswith("/completions"):
            await self.guarded(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def answer(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a completion, whose body is read already."""
        body = (await receive()).get("body", b"")
        try:
            given = json.loads(body)
        except (ValueError, RecursionError):  # which is for the server to say
            given = None
        if isinstance(given, dict) and "vllm_xargs" in given:
            del given["vllm_xargs"]
            body = json.dumps(given).encode()
        completes = scope["path"] == "/v1/completions"
        asked = completes and isinstance(given, dict) and given.get("return_sampling_mask") is True
        if not asked or given.get("temperature") == 0:  # greedy tokens are drawn from no set
            await self.app(scope, replay(body, receive), send)
        elif given.get("stream") or given.get("n", 1) != 1 or not _is_one(given.get("prompt")):
            await refuse(send, 400, "return_sampling_mask is for one response to one prompt, as a whole")
        else:
            await self.with_sets(scope, given, receive, send)

    async def with_sets(self, scope: Message, given: dict[str, Any], receive: Receive, send: Send) -> None:
        """Answer a completion with the sets of its tokens."""
        workers, request, length = scope["app"].state.engine_client, uuid4().hex, 0
        cut = {"request": request, "top_p": given.pop("top_p", 1.0), "top_k": given.pop("top_k", 0)}
        del given["return_sampling_mask"]
        given |= {"top_p": 1.0, "top_k": 0, "return_token_ids": True, "vllm_xargs": cut}
        messages: list[Message] = []

        async def keep(message: Message) -> None:
            messages.append(message)

        answer: dict[str, Any] | None = None
        try:
            await self.app(scope, replay(json.dumps(given).encode(), receive), keep)
            if messages and messages[0]["status"] == 200:
                answer = json.loads(b"".join(message.get("body", b"") for message in messages[1:]))
                length = len(answer["choices"][0]["token_ids"])
        finally:  # nothing is kept of a request whose client has left
            sets = await workers.collective_rpc("take_sets", args=(request, length))
        if answer is None:
            for message in messages:
                await send(message)
            return
        answer["choices"][0]["sampling_mask"] = sets[0]
        content = json.dumps(answer).encode()
        headers = [(name, value) for name, value in messages[0]["headers"] if name.lower() != b"content-length"]
        headers.append((b"content-length", str(len(content)).encode()))
        await send({**messages[0], "headers": headers})
        await send({"type": "http.response.body", "body": content})


def _is_one(prompt: Any) -> bool:
    return isinstance(prompt, str) or (isinstance(prompt, list) and all(type(token) is int for token in prompt))


def take_sets(request: str, length: int) -> dict[str, Any]:
    """The sets of a response as JSON, in the process of a worker; they are then forgotten."""
    from collm.inference.vllm_masks import CutRecorder

    return packed(CutRecorder.take(request, length))
