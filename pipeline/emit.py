"""From the answer path to the event log, without ever making a request wait for a disk.

    emit (event loop, returns at once) → bounded queue → one thread → EventLog.append_many

The queue keeps the order, so each session's events stay in order. When the log fails the thread keeps its batch and
tries again; meanwhile the queue fills, and what finds it full is lost: counted, reported, and seen in ``healthy()``.
The thread also masks personal data, before anything is written; a text that it can't mask is left out of its event.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping

from operators.errors import Retry, Stop
from operators.privacy.masker import FAILED
from operators.records import Feedback, Interaction, encode
from operators.stores.ports import EventLog
from operators.stores.topics import FEEDBACK, INTERACTIONS, event_headers, session_key

SOURCE = "/ruvllm/ingress"
_AGAIN_S = 1.0
_LOG = logging.getLogger("ruvllm.emit")
Emitted = Interaction | Feedback
_TOPIC: dict[type[Emitted], str] = {Interaction: INTERACTIONS, Feedback: FEEDBACK}
_Item = tuple[str, tuple[str, bytes, Mapping[str, str]]]
"""A topic, and what is appended to it."""


@dataclasses.dataclass(slots=True)
class Counts:
    """Since the start: events taken, durable in the log, lost, failed attempts to write, texts left out unmasked."""

    taken: int = 0
    written: int = 0
    lost: int = 0
    failures: int = 0
    unmasked: int = 0


class Emitter:
    """Writes interactions and feedback to their topics. ``emit`` may be called from any thread.

    Args:
        log: an open log; only this emitter's thread calls it.
        mask: a text without personal data; what it fails on is not written.
        capacity: events that may wait in memory.
        batch: most events in one transaction.
        report: is told, in words, when events are lost and when the log starts to fail or works again.
    """

    def __init__(
        self,
        log: EventLog,
        *,
        mask: Callable[[str], str],
        capacity: int = 1000,
        batch: int = 100,
        clock: Callable[[], float] = time.time,
        report: Callable[[str], None] = _LOG.error,
    ) -> None:
        self.counts = Counts()
        self._log = log
        self._mask = mask
        self._capacity = capacity
        self._batch = batch
        self._clock = clock
        self._report = report
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Emitted, str]] = deque()
        self._writing = 0
        self._closing = self._abandoned = self._overflowing = self._failing = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread; a second call, or one after ``close``, raises ``Stop``."""
        if self._thread is not None or self._closing:
            raise Stop("emit", "started twice or after close", "make a new emitter")
        self._thread = threading.Thread(target=self._run, name="emit", daemon=True)
        self._thread.start()

    def emit(self, record: Emitted, traceparent: str = "") -> bool:
        """Hand ``record`` over and return at once; ``False`` when it was lost: the queue is full or closed."""
        with self._changed:
            self.counts.taken += 1
            lost = self._closing or len(self._waiting) + self._writing >= self._capacity
            if lost:
                self.counts.lost += 1
                first, self._overflowing = not self._overflowing, True
            else:
                self._waiting.append((record, traceparent))
                self._overflowing = False
                self._changed.notify_all()
        if lost and first:  # once an episode; the counter has the rest
            why = "the emitter is closed" if self._closing else f"{self._capacity} events wait for the event log"
            self._report(f"emit: losing events, first {record.event_id}: {why}")
        return not lost

    def healthy(self) -> bool:
        """Whether the next event will be written: the thread lives, the log works and there is room."""
        alive = self._thread is not None and self._thread.is_alive()
        return alive and not (self._failing or self._closing) and self.waiting() < self._capacity

    @property
    def log(self) -> EventLog:
        """The log that it writes to."""
        return self._log

    def waiting(self) -> int:
        """Events that are not yet durable."""
        with self._changed:
            return len(self._waiting) + self._writing

    async def flush(self, deadline_s: float) -> bool:
        """Wait until everything emitted so far is durable; ``False`` if that was not so within ``deadline_s``."""
        return await asyncio.to_thread(self._drain, deadline_s)

    async def close(self, deadline_s: float) -> int:
        """Take no more, write what waits for at most ``deadline_s``; returns how many events were given up.

        Safe to call twice. A batch that is being written at the deadline counts as given up though it may yet arrive.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        await asyncio.to_thread(self._drain, deadline_s)
        with self._changed:
            given_up = 0 if self._abandoned else len(self._waiting) + self._writing
            self._abandoned = True
            self._waiting.clear()
            self.counts.lost += given_up
            self._changed.notify_all()
        if given_up:
            self._report(f"emit: gave up {given_up} events at close, the event log did not take them in {deadline_s} s")
        return given_up

    # ------------------------------------------------------------------------------------------------ the thread

    def _drain(self, deadline_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: not self._waiting and not self._writing, deadline_s)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if self._abandoned or not self._waiting:
                    return
                batch = [self._waiting.popleft() for _ in range(min(self._batch, len(self._waiting)))]
                self._writing = len(batch)
            items = [item for entry in batch if (item := self._encoded(*entry)) is not None]
            written = self._write(items)
            with self._changed:
                self.counts.written += written
                self._writing = 0
                self._changed.notify_all()

    def _encoded(self, record: Emitted, traceparent: str) -> _Item | None:
        topic = _TOPIC[type(record)]
        try:
            key = session_key(record.tenant, record.session)
            key.encode()
            headers = event_headers(record.event_id, topic, SOURCE, self._clock(), traceparent)
            return topic, (key, encode(self._masked(record)), headers)
        except ValueError as e:  # lone surrogates: such text is no UTF-8, and would stop everything behind it
            with self._changed:
                self.counts.lost += 1
            # Without the error's words: they may quote the text.
            self._report(f"emit: event {record.event_id} can't be written as JSON: {type(e).__name__}")
            return None

    def _masked(self, record: Emitted) -> Emitted:
        """``record`` with every text that a person or a model wrote masked, or left out."""

        def masked(text: str) -> str:
            try:
                return self._mask(text)
            except Exception as e:  # whatever it is: the event is kept, the raw text is not
                self.counts.unmasked += 1
                if self.counts.unmasked == 1:  # the counter has the rest
                    self._report(f"emit: a text of {record.event_id} can't be masked: {type(e).__name__}")
                return FAILED

        if isinstance(record, Feedback):
            return dataclasses.replace(record, correction=masked(record.correction))
        passages = (dataclasses.replace(passage, text=masked(passage.text)) for passage in record.context)
        return dataclasses.replace(
            record, query=masked(record.query), answer=masked(record.answer), context=tuple(passages)
        )

    def _write(self, items: list[_Item]) -> int:
        """Append topic by topic; how many are durable."""
        topics = dict.fromkeys(topic for topic, _ in items)
        return sum(self._append(topic, [item for to, item in items if to == topic]) for topic in topics)

    def _append(self, topic: str, items: list[tuple[str, bytes, Mapping[str, str]]]) -> int:
        """Append until it works or ``close`` gives up; how many are durable."""
        while items:
            try:
                self._log.append_many(topic, items)
            except Exception as e:  # whatever it is, the batch is kept: losing it needs a full queue or a close
                self.counts.failures += 1
                if not self._failing:
                    self._failing = True
                    self._report(f"emit: can't write, {len(items)} events and more wait: {e}")
                again_s = e.retry_after_s if isinstance(e, Retry) else _AGAIN_S
                with self._changed:
                    if self._changed.wait_for(lambda: self._abandoned, again_s):
                        return 0
            else:
                if self._failing:
                    self._failing = False
                    self._report(f"emit: writing again after {self.counts.failures} failures since the start")
                return len(items)
        return 0
