"""Dynamic batching: whatever arrives while a batch runs becomes the next batch.

No timer: an idle stage starts at once, so batching never adds latency, and a busy one batches by itself. (Serve's own
``@serve.batch`` waits for its timeout, and it would tie the stage to Ray.)
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

A = TypeVar("A")
B = TypeVar("B")


class Batcher(Generic[A, B]):
    """Calls ``run`` with one batch at a time, at most ``max_batch`` long. Used from one event loop only."""

    def __init__(self, run: Callable[[Sequence[A]], Awaitable[list[B]]], max_batch: int) -> None:
        self._run = run
        self._max_batch = max_batch
        self._waiting: deque[tuple[A, asyncio.Future[B]]] = deque()
        self._worker: asyncio.Task[None] | None = None

    async def __call__(self, item: A) -> B:
        """The answer for ``item``. Cancelling the caller takes the item out of line if it hasn't begun."""
        future: asyncio.Future[B] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._worker is None:
            self._worker = asyncio.create_task(self._drain())
        return await future

    async def _drain(self) -> None:
        try:
            while self._waiting:
                batch: list[tuple[A, asyncio.Future[B]]] = []
                while self._waiting and len(batch) < self._max_batch:
                    entry = self._waiting.popleft()
                    if not entry[1].cancelled():
                        batch.append(entry)
                await self._serve(batch)
        finally:
            self._worker = None

    async def _serve(self, batch: list[tuple[A, asyncio.Future[B]]]) -> None:
        if not batch:
            return
        try:
            answers = await self._run([item for item, _ in batch])
        except Exception as error:
            if len(batch) == 1:
                _settle(batch[0][1], error=error)
                return
            # One bad item must not fail those that happened to arrive with it.
            for entry in batch:
                await self._serve([entry])
            return
        for (_, future), answer in zip(batch, answers, strict=True):
            _settle(future, answer)


def _settle(future: asyncio.Future[B], answer: B | None = None, error: Exception | None = None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(answer)  # type: ignore[arg-type]
