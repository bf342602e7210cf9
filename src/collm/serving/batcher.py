"""Batching across requests: those that arrive while a batch is written form the next one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

from collm.models.policy import Response
from collm.serving.decoding import Job, Respond

_GATHER_SECONDS = 0.002  # so that requests that are sent together are answered together


class Busy(Exception):
    """More requests wait than the server takes."""


class Batcher:
    """Answers jobs in batches, in one thread, while the event loop goes on.

    Args:
        respond: What writes the responses to a batch.
        max_batch: Most jobs in one batch.
        max_waiting: Most jobs that may wait.
    """

    def __init__(self, respond: Respond, max_batch: int = 64, max_waiting: int = 1024):
        self.respond = respond
        self.max_batch = max_batch
        self.max_waiting = max_waiting
        self._jobs: asyncio.Queue[tuple[Job, asyncio.Future[Response]]] = asyncio.Queue()

    async def answer(self, job: Job) -> Response:
        """The response to a job.

        Raises:
            Busy: Too many jobs wait already.
        """
        if self._jobs.qsize() >= self.max_waiting:
            raise Busy
        future: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self._jobs.put_nowait((job, future))
        return await future

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The context in which jobs are answered."""
        with ThreadPoolExecutor(1) as thread:
            worker = asyncio.create_task(self._work(thread))
            try:
                yield
            finally:
                worker.cancel()

    async def _work(self, thread: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        while True:
            taken = [await self._jobs.get()]
            await asyncio.sleep(_GATHER_SECONDS)
            while len(taken) < self.max_batch and not self._jobs.empty():
                taken.append(self._jobs.get_nowait())
            taken = [(job, future) for job, future in taken if not future.done()]  # whose clients are still there
            if not taken:
                continue
            try:
                responses = await loop.run_in_executor(thread, self.respond, [job for job, _ in taken])
            except Exception as error:  # of this batch; the server lives on
                for _, future in taken:
                    if not future.done():
                        future.set_exception(RuntimeError(f"{type(error).__name__}: {error}"))
            else:
                for (_, future), response in zip(taken, responses, strict=True):
                    if not future.done():
                        future.set_result(response)
