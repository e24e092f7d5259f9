"""Between asyncio and native code: threads that never block the event loop and stop when nobody listens any more."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from operators.errors import Retry

T = TypeVar("T")


def cores() -> int:
    """Processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def spare_threads(wanted: int) -> int:
    """``wanted``; for 0 the process's cores less one, at least 1: threads that share a core and spin collapse."""
    return wanted or max(1, cores() - 1)


class Workers:
    """``n`` threads for native calls; what is more waits in line. ``running`` counts calls and streams not over."""

    def __init__(self, name: str, n: int) -> None:
        self.name = name
        self.running = 0
        self._closed = False
        self._stops: dict[threading.Event, Callable[[], object]] = {}
        self._pool = ThreadPoolExecutor(n, thread_name_prefix=name)

    async def call(self, work: Callable[[], T]) -> T:
        """The result of ``work``, run in a thread. Raises ``Retry`` when closed."""
        self.check()
        self.running += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            self.running -= 1

    async def stream(self, work: Callable[[Callable[[T], None], Callable[[], bool]], None]) -> AsyncGenerator[T, None]:
        """What ``work(put, stopped)`` puts, as it comes. Raises ``Retry`` when closed, also in the middle.

        ``work`` runs in a thread and must end soon after ``stopped()`` is true: once the iterator is closed, it is.
        """
        self.check()
        loop = asyncio.get_running_loop()
        stop = threading.Event()
        # An item is a value in a tuple, the error that ended the work, or None at its end.
        items: asyncio.Queue[tuple[T] | BaseException | None] = asyncio.Queue()

        def tell(item: tuple[T] | BaseException | None) -> None:
            if not stop.is_set():
                loop.call_soon_threadsafe(items.put_nowait, item)

        def body() -> None:
            if stop.is_set():
                return
            try:
                work(lambda value: tell((value,)), stop.is_set)
                tell(None)
            except BaseException as e:
                tell(e)

        self.running += 1
        self._stops[stop] = lambda: loop.call_soon_threadsafe(items.put_nowait, self._gone())
        try:
            self._pool.submit(body)
            while (item := await items.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item[0]
        finally:
            stop.set()
            self._stops.pop(stop, None)
            self.running -= 1

    async def close(self) -> None:
        """End the streams with ``Retry`` and wait for the threads, a few tokens at most. Safe to call twice."""
        self._closed = True
        for stop, fail in list(self._stops.items()):
            stop.set()
            fail()
        await asyncio.to_thread(self._pool.shutdown)

    def check(self) -> None:
        """Raise ``Retry`` when closed."""
        if self._closed:
            raise self._gone()

    def _gone(self) -> Retry:
        return Retry(self.name, "the model is closed", "ask another replica")
