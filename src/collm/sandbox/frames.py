"""Messages over a stream socket: four bytes with the length, then the content.

The functions take descriptors instead of socket objects, because seccomp allows a confined process to read and write a
socket but refuses the other system calls of sockets.
"""

from __future__ import annotations

import os
import select
import struct
import time

_HEADER = struct.Struct("!I")


class Closed(Exception):
    """The other end is closed."""


class Late(Exception):
    """The deadline passed."""


class TooLarge(Exception):
    """A message longer than allowed."""


class Abandoned(Exception):
    """The process that waits for the result has ended."""


def send(channel: int, message: bytes, deadline: float | None = None) -> None:
    """Send a message before `deadline` (of time.monotonic)."""
    data = memoryview(_HEADER.pack(len(message)) + message)
    while data:
        _wait(channel, select.POLLOUT, deadline, None)
        try:
            data = data[os.write(channel, data[:65536]) :]
        except BlockingIOError:
            continue
        except OSError as error:
            raise Closed(str(error)) from None


def receive(channel: int, limit: int, deadline: float | None = None, watched: int | None = None) -> bytes:
    """The next message of at most `limit` bytes.

    Args:
        channel: Descriptor to read from.
        limit: Size of the longest message that is accepted.
        deadline: When to give up, by time.monotonic.
        watched: Another descriptor; give up when its other end is closed.
    """
    (length,) = _HEADER.unpack(_exactly(channel, _HEADER.size, deadline, watched))
    if length > limit:
        raise TooLarge(f"{length} bytes")
    return _exactly(channel, length, deadline, watched)


def _exactly(channel: int, size: int, deadline: float | None, watched: int | None) -> bytes:
    parts = []
    while size:
        _wait(channel, select.POLLIN, deadline, watched)
        try:
            part = os.read(channel, min(size, 65536))
        except BlockingIOError:
            continue
        except OSError as error:
            raise Closed(str(error)) from None
        if not part:
            raise Closed("end of stream")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _wait(channel: int, event: int, deadline: float | None, watched: int | None) -> None:
    poll = select.poll()
    poll.register(channel, event)
    if watched is not None:
        poll.register(watched, select.POLLRDHUP)
    while True:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            raise Late
        ready = dict(poll.poll(None if left is None else max(1, int(left * 1000))))
        if channel in ready:
            return
        if ready:
            raise Abandoned
