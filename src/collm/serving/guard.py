"""What stands in front of a server: a key, limits on the bytes and the time of a request."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class Guard:
    """An ASGI application in front of another: refuses requests before they are read as a whole.

    `/health` needs no key.

    Args:
        app: The application behind it.
        key: What clients send as `Authorization: Bearer KEY`; None for no key.
        max_bytes: Longest body of a request.
        body_seconds: Longest time in which a body has to arrive.
        max_weights: Longest body at `/weights`, which may take 20 times as long; by default no other than elsewhere.
    """

    def __init__(
        self,
        app: App,
        key: str | None,
        max_bytes: int = 2_000_000,
        body_seconds: float = 30.0,
        max_weights: int | None = None,
    ):
        self.app = app
        self.key = key
        self.max_bytes = max_bytes
        self.body_seconds = body_seconds
        self.max_weights = max_weights

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        if self.key is not None and scope["path"] != "/health":
            given = headers.get(b"authorization", b"")
            if not hmac.compare_digest(given, f"Bearer {self.key}".encode()):
                await refuse(send, 401, "the API key is missing or wrong")
                return
        most, seconds = self.max_bytes, self.body_seconds
        if scope["path"] == "/weights" and self.max_weights is not None:
            most, seconds = self.max_weights, 20 * seconds
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > most:
            await refuse(send, 413, f"the body has {length[:20].decode('latin1')} bytes, more than {most}")
            return
        try:
            body = await asyncio.wait_for(self._body(receive, most), seconds)
        except (TimeoutError, asyncio.TimeoutError):
            await refuse(send, 408, f"the body did not arrive within {seconds:g} seconds")
            return
        if body is None:
            await refuse(send, 413, f"the body has more than {most} bytes")
            return
        await self.app(scope, replay(body, receive), send)

    @staticmethod
    async def _body(receive: Receive, most: int) -> bytes | None:
        """The body of a request, None where it is too long."""
        body = bytearray()
        while True:
            message = await receive()
            body += message.get("body", b"")
            if len(body) > most:
                return None
            if not message.get("more_body"):
                return bytes(body)


def replay(body: bytes, receive: Receive) -> Receive:
    """What gives a whole body that was read before, and then what `receive` gives."""
    whole: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return whole.pop() if whole else await receive()

    return again


async def refuse(send: Send, status: int, message: str) -> None:
    """Answer a request with an error."""
    body = json.dumps({"error": {"message": message, "type": "refused", "code": status}}).encode()
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Impatient(H11Protocol):
    """Connections are closed if the headers of a request, the first or a later one, do not arrive in time.

    One on which nothing of a later request has arrived is closed by uvicorn's `timeout_keep_alive`.
    """

    header_seconds = 10.0
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._deadline = self.loop.call_later(self.header_seconds, transport.close)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        begun = self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])
        if self._deadline is None and begun:
            self._deadline = self.loop.call_later(self.header_seconds, self.transport.close)
        elif self._deadline is not None and self.conn.their_state is not h11.IDLE:
            self._deadline.cancel()
            self._deadline = None

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._deadline is not None:
            self._deadline.cancel()
