"""Admission: so many requests at once, so many in line, the rest is told at once when to come back.

Without this a burst would be queued without end in front of the engines: memory grows and every request is late.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from operators.errors import Retry


class Admission:
    """A gate with a bounded queue, first come first served. Used from one event loop only."""

    def __init__(self, max_concurrent: int, max_queued: int, retry_after_s: float = 1.0) -> None:
        self._max_queued = max_queued
        self._retry_after_s = retry_after_s
        self._free = asyncio.Semaphore(max_concurrent)
        self.active = 0
        self.waiting = 0
        self._ended = -math.inf

    def quiet_s(self) -> float:
        """Seconds since a request was at work or waited; 0 while one does."""
        return 0.0 if self.active or self.waiting else time.monotonic() - self._ended

    @asynccontextmanager
    async def admit(self) -> AsyncIterator[None]:
        """Hold a place while the body runs. Raises ``Retry`` (429) when the line is full."""
        if self._free.locked() and self.waiting >= self._max_queued:
            raise Retry(
                "limits",
                f"{self.active} requests running and {self.waiting} waiting",
                "try again later",
                self._retry_after_s,
                429,
            )
        self.waiting += 1
        try:
            await self._free.acquire()
        finally:
            self.waiting -= 1
        self.active += 1
        try:
            yield
        finally:
            self.active -= 1
            self._ended = time.monotonic()
            self._free.release()
