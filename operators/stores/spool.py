"""A bounded spool on disk in front of an event log, for producers that must go on while the log is away.

    append ─┬─ the log takes events and nothing waits ──────────► log
            └─ it is away, or earlier events wait ─► spool file ─► drainer (a thread) ─► log

What waits is written in order once the log is back, and removed from the file only after the log has it. A crash
between the two writes it again: repeats, never a loss; readers drop repeats by event id. Several processes may share
the file: each appends, and whoever gets the lock beside it drains.
"""

from __future__ import annotations

import dataclasses
import fcntl
import logging
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from operators.errors import Reject, Retry, Stop
from operators.stores.ports import Event, EventLog
from operators.stores.spool_file import SpoolFile

NOWHERE = (-1, -1)
"""Partition and offset of an event that waits in the spool."""
_LOG = logging.getLogger("ruvllm.spool")
_BATCH = 100
_IDLE_S = 5.0
_LONGEST_PAUSE_S = 10.0
_CLOSE_S = 2.0
_BROKEN_S = 1.0
_TOO_LARGE = 413
Items = Sequence[tuple[str, bytes, Mapping[str, str]]]


@dataclasses.dataclass(slots=True)
class Counts:
    """Events since the start: spooled, drained, refused (no room), set aside (too large for the log for ever)."""

    spooled: int = 0
    drained: int = 0
    refused: int = 0
    aside: int = 0


class SpoolingLog:
    """``EventLog`` that takes events while ``log`` is away; any thread may call it. Reading goes to ``log`` alone.

    Args:
        log: the log behind it; opened and closed with this one.
        path: the spool file; ``<path>.lock`` lies beside it.
        max_bytes: largest size of the file; beyond it ``append`` raises ``Retry`` as on a full disk.
        again_s: first pause of the drainer after a failure, give or take half; doubled up to 10 s.
        report: is told, in words, when spooling begins, when all is drained, and when an event is set aside.
        before_remove: called when the log has a batch that is still in the file; fault tests end the process in it.
    """

    def __init__(
        self,
        log: EventLog,
        path: Path,
        max_bytes: int,
        *,
        again_s: float = 0.5,
        report: Callable[[str], None] = _LOG.warning,
        before_remove: Callable[[], None] = lambda: None,
    ) -> None:
        self.counts = Counts()
        self.log = log
        self._path = path
        self._file = SpoolFile(path, max_bytes=max_bytes)
        self._again_s = again_s
        self._report = report
        self._before_remove = before_remove
        self._changed = threading.Condition()
        self._woken = self._closing = self._failing = False
        self._lock_file: IO[bytes] | None = None
        self._drainer: threading.Thread | None = None

    def open(self) -> None:
        """Open the file and the log, and begin to drain what an earlier process left."""
        if self._drainer is not None:
            return
        self._file.open()
        self.log.open()
        self._lock_file = Path(f"{self._path}.lock").open("wb")  # noqa: SIM115 - closed in close()
        self._closing, self._woken = False, True
        self._drainer = threading.Thread(target=self._run, name="spool", daemon=True)
        self._drainer.start()

    def append(self, topic: str, key: str, value: bytes, headers: Mapping[str, str] | None = None) -> tuple[int, int]:
        """``append_many`` for one."""
        return self.append_many(topic, [(key, value, headers or {})])[0]

    def append_many(self, topic: str, items: Items) -> list[tuple[int, int]]:
        """Durable in the log or in the spool when it returns; ``NOWHERE`` for what is spooled.

        An event that is too large for the log is set aside in the spool; it must not hold up what comes behind it.
        Raises ``Reject`` as the log does for the rest, and ``Retry`` when the log can't take them and the spool can't
        either: it or its disk is full or broken.
        """
        cause: Exception | None = None
        if not items:
            return []
        if self._file.empty():
            try:
                return self.log.append_many(topic, items)
            except (Retry, Stop) as e:  # Stop too: a person can give us our rights back, but not the events
                cause = e
            except Reject as e:
                if e.status != _TOO_LARGE:
                    raise
                cause = e  # the drainer finds out which one
        try:
            self._file.put(topic, items)
        except (Retry, Stop) as e:  # Stop: a quota, or a disk that fails; whoever has the events keeps them
            self.counts.refused += len(items)
            got = f"{len(items)} events for {topic} find no room: {e.got}"
            remedy = "bring the event log back, raise events.spool_bytes, free disk space or mend the disk"
            again_s = e.retry_after_s if isinstance(e, Retry) else _BROKEN_S
            raise Retry(f"spool {self._path}", got, remedy, retry_after_s=again_s) from (cause or e)
        with self._changed:
            self.counts.spooled += len(items)
            begun, self._failing, self._woken = not self._failing, True, True
            self._changed.notify_all()
        if begun:  # once an episode; the counter has the rest
            self._report(f"spool: events wait in {self._path}: {cause or 'earlier ones wait there'}")
        return [NOWHERE] * len(items)

    def waiting(self) -> int:
        """Events in the spool, those of other processes too."""
        return sum(self._file.waiting().values())

    def used_bytes(self) -> int:
        """Bytes of the spool file that are in use."""
        return self._file.used_bytes()

    def create_topic(self, topic: str, partitions: int) -> None:
        """As the log does."""
        self.log.create_topic(topic, partitions)

    def topics(self) -> dict[str, int]:
        """As the log does."""
        return self.log.topics()

    def read(self, topic: str, partition: int, offset: int, limit: int) -> list[Event]:
        """As the log does; what waits in the spool is not seen."""
        return self.log.read(topic, partition, offset, limit)

    def end(self, topic: str, partition: int) -> int:
        """As the log does."""
        return self.log.end(topic, partition)

    def commit(self, group: str, topic: str, partition: int, offset: int) -> None:
        """As the log does."""
        self.log.commit(group, topic, partition, offset)

    def committed(self, group: str, topic: str, partition: int) -> int:
        """As the log does."""
        return self.log.committed(group, topic, partition)

    def retain(self, topic: str, *, max_age_s: float | None = None, max_events: int | None = None) -> int:
        """As the log does."""
        return self.log.retain(topic, max_age_s=max_age_s, max_events=max_events)

    def close(self) -> None:
        """Release log and file; safe to call twice. What waits stays in the file for the next start."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._drainer is not None:
            self._drainer.join(_CLOSE_S)
            if self._drainer.is_alive():
                return  # it waits for the log; it ends with the process, and the file bears that
        self._drainer = None
        self.log.close()
        self._file.close()
        if self._lock_file is not None:
            self._lock_file.close()

    # ------------------------------------------------------------------------------------------------ the drainer

    def _run(self) -> None:
        failures = 0
        while True:
            pause_s = min(self._again_s * 2.0 ** (failures - 1), _LONGEST_PAUSE_S) if failures else _IDLE_S
            pause_s *= random.uniform(0.5, 1.5)  # noqa: S311 - jitter, not a secret
            failed = failures > 0
            with self._changed:
                self._changed.wait_for(lambda: self._closing or (self._woken and not failed), pause_s)  # noqa: B023
                if self._closing:
                    return
                self._woken = False
            try:
                drained = self._drain()
                failures = 0
            except Exception as e:  # whatever it is, what waits is kept; it is tried again
                failures += 1
                _LOG.info("spool: not drained yet: %s", e)
            else:
                if drained:
                    self._report(f"spool: {drained} events reached the log; {self.waiting()} wait in {self._path}")

    def _drain(self) -> int:
        """Write what waits to the log, if no other process does; how many events."""
        if self._lock_file is None or self._file.empty():
            self._failing = False
            return 0
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 0  # another process drains this file
        try:
            before = self.counts.drained
            for topic in self._file.waiting():
                while not self._closing and (events := self._file.read(topic, 0, 0, _BATCH)):
                    self._write(topic, events)
            self._failing = False
            return self.counts.drained - before
        finally:
            fcntl.flock(self._lock_file, fcntl.LOCK_UN)

    def _write(self, topic: str, events: list[Event]) -> None:
        """1 to the log, 2 out of the file; one by one when one of them is too large for the log."""
        try:
            self.log.append_many(topic, [(e.key, e.value, e.headers) for e in events])
        except Reject as e:
            if e.status != _TOO_LARGE:
                raise
            if len(events) > 1:
                for event in events:
                    self._write(topic, [event])
                return
            self._file.set_aside(topic, events[0].offset)
            self.counts.aside += 1
            self._report(f"spool: an event of {topic} is set aside in {self._path}: {e}")
        else:
            self._before_remove()
            self._file.remove(topic, events[-1].offset + 1)
            self.counts.drained += len(events)
