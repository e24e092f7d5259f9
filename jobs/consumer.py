"""The loop that every job shares: events in, events out, at least once.

Partitions are assigned by hand, and for each in turn a step does:

    1 read    the next events from the position (at the start: the group's committed offset)
    2 handle  each of them; one that is bad (``Skip``, ``Reject``) becomes a dead letter; then what was put aside is
              finished together, for jobs that work in batches
    3 write   what the handlers gave, then the dead letters
    4 commit  the offset, last

A crash before 4 does 1 to 3 again, so what is written needs an id that is the same each time, and readers drop repeats.
``Retry`` anywhere waits and does the same thing again: lag, never loss. Any other error ends the loop.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from operators.errors import Reject, Retry, RuvError, Skip, Stop
from operators.records import SCHEMA_VERSION, decode, version_of
from operators.stores.ports import Event, EventLog
from operators.stores.topics import dlq

T = TypeVar("T")
_MAX_MESSAGE = 500
_TOO_LARGE = 413


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Out:
    """An event to write."""

    topic: str
    key: str
    value: bytes
    headers: Mapping[str, str]


Handle = Callable[[Event], Awaitable[Sequence[Out]]]
"""What a job does with an event. It is called again for the same event after ``Retry``, and after a crash."""
Finish = Callable[[], Awaitable[Sequence[Out]]]
"""What a job does with the events it put aside in ``Handle``; called again after ``Retry``."""


async def nothing() -> Sequence[Out]:
    """The ``Finish`` of a job that puts nothing aside."""
    return []


@dataclasses.dataclass(slots=True)
class Counts:
    """Since the start: events dealt with, of these dead letters, retries, and events that retention took unread."""

    events: int = 0
    dead: int = 0
    retries: int = 0
    missed: int = 0


async def wait(stop: asyncio.Event, seconds: float) -> bool:
    """Wait at most ``seconds``; ``True`` at once when ``stop`` is set."""
    try:
        async with asyncio.timeout(seconds):
            return await stop.wait()
    except TimeoutError:
        return False


def always() -> bool:
    """The ``may_work`` of a job that need not yield."""
    return True


class Consumer:
    """Feeds the events of ``topic`` to ``handle``, for ``group``.

    Args:
        partitions: those that are this process' own; ``None`` takes all.
        batch: most events a step; they share one transaction and one commit.
        may_work: asked before each event; while it says no, the job leaves the machine to others.
        idle_s: seconds between two looks when there is nothing to do.
        before_commit: called between steps 3 and 4; fault tests end the process in it.
        finish: called once a step, after all its events were handled.
    """

    def __init__(
        self,
        log: EventLog,
        topic: str,
        group: str,
        handle: Handle,
        *,
        partitions: Sequence[int] | None = None,
        batch: int = 64,
        may_work: Callable[[], bool] = always,
        idle_s: float = 1.0,
        before_commit: Callable[[], None] = lambda: None,
        finish: Finish = nothing,
    ) -> None:
        self.counts = Counts()
        self._log = log
        self._topic = topic
        self._group = group
        self._handle = handle
        self._own = partitions
        self._batch = batch
        self._may_work = may_work
        self._idle_s = idle_s
        self._before_commit = before_commit
        self._finish = finish
        self._positions: dict[int, int] = {}

    async def run(self, stop: asyncio.Event) -> None:
        """Consume until ``stop`` is set; what was begun is finished and committed first."""
        while not stop.is_set():
            dealt_with = 0
            for partition in await self._partitions(stop):
                dealt_with += await self._step(partition, stop)
            if not dealt_with:
                await wait(stop, self._idle_s)

    def lag(self) -> int:
        """Events that wait to be dealt with, as of the last step. Blocks: it asks the log."""
        return sum(self._log.end(self._topic, p) - at for p, at in self._positions.items())

    async def _partitions(self, stop: asyncio.Event) -> Sequence[int]:
        if not self._positions:
            topics = await self._patiently(stop, self._log.topics)
            if topics is None:
                return []
            if self._topic not in topics:
                raise Stop(
                    f"consumer {self._group}", f"no topic {self._topic}", "create the topics before the jobs start"
                )
            for partition in range(topics[self._topic]) if self._own is None else self._own:
                at = await self._patiently(stop, self._log.committed, self._group, self._topic, partition)
                if at is None:
                    return []
                self._positions[partition] = at
        return list(self._positions)

    async def _step(self, partition: int, stop: asyncio.Event) -> int:
        position = begun = self._positions[partition]
        results: list[Out] = []
        dead: list[Out] = []
        # 1 read
        events = await self._patiently(stop, self._log.read, self._topic, partition, position, self._batch) or []
        # 2 handle
        for event in events:
            out = await self._attempt(event, stop, dead)
            if out is None:
                break  # stopped: this event is for the next start
            results += out
            self.counts.missed += event.offset - position
            position = event.offset + 1
        if position == begun:
            return 0
        finished = await self._finished(stop)
        if finished is None:
            return 0
        results += finished
        # 3 write
        for topic in dict.fromkeys(out.topic for out in (*results, *dead)):
            outs = [out for out in (*results, *dead) if out.topic == topic]
            if await self._patiently(stop, self._append, topic, outs) is None:
                return 0
        self._before_commit()
        # 4 commit
        await self._patiently(stop, self._log.commit, self._group, self._topic, partition, position)
        self._positions[partition] = position
        dealt_with = sum(event.offset < position for event in events)
        self.counts.events += dealt_with
        self.counts.dead += len(dead)
        return dealt_with

    def _append(self, topic: str, outs: Sequence[Out]) -> bool:
        """Durable when it returns. A dead letter that the log finds too large goes without what makes it so."""
        try:
            self._log.append_many(topic, [(out.key, out.value, out.headers) for out in outs])
        except Reject as error:
            if error.status != _TOO_LARGE or topic != dlq(self._topic):
                raise
            for out in outs if len(outs) > 1 else map(bare, outs):
                self._append(topic, [out])
        return True

    async def _attempt(self, event: Event, stop: asyncio.Event, dead: list[Out]) -> Sequence[Out] | None:
        """What ``handle`` gives, nothing for a dead letter, ``None`` when stopped before it was done."""
        attempt = 0
        while not stop.is_set():
            if not self._may_work():
                await wait(stop, self._idle_s)
                continue
            attempt += 1
            try:
                return await self._handle(event)
            except Retry as e:
                self.counts.retries += 1
                await wait(stop, e.retry_after_s)
            except (Skip, Reject) as e:
                dead.append(dead_letter(event, e, attempt))
                return []
        return None

    async def _finished(self, stop: asyncio.Event) -> Sequence[Out] | None:
        while True:
            try:
                return await self._finish()
            except Retry as e:
                self.counts.retries += 1
                if await wait(stop, e.retry_after_s):
                    return None

    async def _patiently(self, stop: asyncio.Event, call: Callable[..., T], *args: object) -> T | None:
        """``call`` off the event loop, again after every ``Retry``; ``None`` when stopped before it could be done."""
        while True:
            try:
                return await asyncio.to_thread(call, *args)
            except Retry as e:
                self.counts.retries += 1
                if await wait(stop, e.retry_after_s):
                    return None


def dead_letter(event: Event, error: RuvError, attempt: int) -> Out:
    """The original bytes and headers, and what was wrong with them, for ``<topic>.dlq``."""
    why = {
        "error.class": type(error).__name__,
        "error.message": str(error)[:_MAX_MESSAGE],
        "src.topic": event.topic,
        "src.partition": str(event.partition),
        "src.offset": str(event.offset),
        "attempt": str(attempt),
    }
    return Out(topic=dlq(event.topic), key=event.key, value=event.value, headers={**event.headers, **why})


WHY = ("error.class", "error.message", "src.topic", "src.partition", "src.offset", "attempt")
"""The headers that a dead letter has besides the original's."""


def bare(letter: Out) -> Out:
    """``letter`` without the original's bytes and headers, with their size: they stand at ``src.offset`` for as long as
    the topic keeps them."""
    ours = {name: text for name, text in letter.headers.items() if name in WHY}
    return Out(topic=letter.topic, key="", value=b"", headers={**ours, "src.bytes": str(len(letter.value))})


def read_record(cls: type[T], event: Event) -> T:
    """The record in ``event``; one that does not say when it was made was made when the event was.

    Raises ``Skip`` when it is no such record, or of a newer schema than ours.
    """
    where = f"{event.topic}/{event.partition} offset {event.offset}"
    try:
        value: Any = decode(cls, event.value)
        version = getattr(value, "schema_version", SCHEMA_VERSION)
    except ValidationError as e:
        version = version_of(event.value)
        if version == SCHEMA_VERSION:
            first = e.errors(include_url=False, include_context=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"])) or "the value"
            got = f"{e.error_count()} errors, first at {place}: {first['msg']}"
            raise Skip(where, got, f"send a {cls.__name__} as its JSON Schema says") from None  # e holds the value
    if version != SCHEMA_VERSION:
        got = f"schema_version {version}, this is {SCHEMA_VERSION}"
        raise Skip(where, got, "replay it with a release that knows it")
    if getattr(value, "created_at", None) == 0.0:
        value = dataclasses.replace(value, created_at=event.timestamp)
    return value  # type: ignore[no-any-return]


class Seen:
    """The last ``capacity`` event ids. A repeat from longer ago is not noticed here: ids of results must be stable."""

    def __init__(self, capacity: int = 10_000) -> None:
        self._ids: OrderedDict[str, None] = OrderedDict()
        self._capacity = capacity

    def __contains__(self, event_id: object) -> bool:
        return event_id in self._ids

    def __iter__(self) -> Iterator[str]:
        """The ids, the oldest first."""
        return iter(self._ids)

    def add(self, event_id: str) -> None:
        """Remember ``event_id``; the oldest is forgotten."""
        self._ids[event_id] = None
        self._ids.move_to_end(event_id)
        if len(self._ids) > self._capacity:
            self._ids.popitem(last=False)
