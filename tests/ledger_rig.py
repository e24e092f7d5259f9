"""A ledger of events: a producer and a consumer, processes that may be killed at any moment, and their accounts.

python -m tests.ledger_rig produce|consume ROOT TOTAL ADDRESS PREFIX    (ADDRESS empty: the log is a file in ROOT)

The producer numbers events, appends them (to a broker through a spool) and notes on disk how many were acknowledged;
started again it goes on from there. It waits for the consumer a little, so that both are at work together.

The consumer is a ``Consumer`` whose effect is a row an event in a database, written together with the ids that it
knows; it counts what came again. So an event that is lost, or applied twice, is seen.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from jobs.consumer import Consumer, Out
from operators.stores.kafka import KafkaLog
from operators.stores.ports import Event, EventLog
from operators.stores.spool import SpoolingLog
from operators.stores.sqlite_log import SqliteLog
from tests.broker import config

TOPIC, GROUP, PARTITIONS = "ledger", "ledger", 4
CALL, AHEAD, PACE_S = 50, 500, 0.3
"""Events of a producer's call; when it is ahead of the consumer by more, it makes a pause before each."""
SPOOL_BYTES = 64 << 20
TRAILER = "trailer"
KAFKA = {"request_timeout_s": 1.0, "delivery_timeout_s": 2.0, "batch_bytes": 100_000}


class Ledger:
    """What was applied, in a file. ``amounts`` has a row for every time that an event took effect."""

    def __init__(self, path: Path) -> None:
        self.db = sqlite3.connect(path, isolation_level=None, timeout=30.0, check_same_thread=False)
        self.db.execute("PRAGMA journal_mode = WAL")
        self.db.execute("CREATE TABLE IF NOT EXISTS known (id TEXT PRIMARY KEY) WITHOUT ROWID")
        self.db.execute("CREATE TABLE IF NOT EXISTS amounts (id TEXT, amount INTEGER)")
        self.db.execute("CREATE TABLE IF NOT EXISTS repeats (id TEXT)")

    def apply(self, events: Sequence[tuple[str, int]]) -> None:
        """All of them in one transaction; what is known already takes no effect."""
        self.db.execute("BEGIN IMMEDIATE")
        for event_id, amount in events:
            new = self.db.execute("INSERT OR IGNORE INTO known VALUES (?)", (event_id,)).rowcount
            if new:
                self.db.execute("INSERT INTO amounts VALUES (?, ?)", (event_id, amount))
            else:
                self.db.execute("INSERT INTO repeats VALUES (?)", (event_id,))
        self.db.execute("COMMIT")

    def count(self, table: str = "amounts") -> int:
        return int(self.db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])

    def twice(self) -> int:
        return self.count("(SELECT id FROM amounts GROUP BY id HAVING count(*) > 1)")

    def total(self) -> int:
        return int(self.db.execute("SELECT coalesce(sum(amount), 0) FROM amounts").fetchone()[0])

    def ids(self) -> set[str]:
        return {one for (one,) in self.db.execute("SELECT id FROM amounts")}

    def close(self) -> None:
        self.db.close()


def open_log(root: Path, address: str, prefix: str) -> EventLog:
    """The log, open, with its topic at the first call."""
    if not address:
        log: EventLog = SqliteLog(root / "events.db")
        log.open()
        log.create_topic(TOPIC, PARTITIONS)
        return log
    settings = config(address, prefix=prefix, **KAFKA)
    log = KafkaLog(settings, prepare=lambda made: made.create_topic(TOPIC, PARTITIONS))
    log.open()
    return log


def acknowledged(root: Path) -> int:
    """How many events the producer knows to be durable."""
    with contextlib.suppress(FileNotFoundError):
        return int((root / "acknowledged").read_text())
    return 0


def produce(root: Path, log: EventLog, total: int) -> None:
    ledger, at = Ledger(root / "ledger.db"), acknowledged(root)
    while at < total:
        # Paced, so that both are at work together; not stopped, or nothing would be spooled while the broker is dead.
        until = time.monotonic() + PACE_S
        while at - ledger.count() > AHEAD and time.monotonic() < until:
            threading.Event().wait(0.02)
        numbers = range(at, min(at + CALL, total))
        log.append_many(TOPIC, [(f"k{n % 37}", str(n).encode(), {"ce_id": f"e{n}"}) for n in numbers])
        at = numbers[-1] + 1
        new = root / "acknowledged.new"
        new.write_text(str(at))
        new.replace(root / "acknowledged")
    ledger.close()
    if isinstance(log, SpoolingLog):
        drain(log)
        # By themselves, so that the test's broker knows where its partitions end (tests/broker.py).
        for n in range(37):
            log.append(TOPIC, f"k{n}", b"0", {"ce_id": f"{TRAILER}{n}"})
        drain(log)


def drain(spool: SpoolingLog) -> None:
    while spool.waiting():
        threading.Event().wait(0.05)


def consume(root: Path, log: EventLog, total: int) -> None:
    """Until the ledger has ``total`` events."""
    ledger, waiting, stop = Ledger(root / "ledger.db"), list[tuple[str, int]](), asyncio.Event()

    async def handle(event: Event) -> Sequence[Out]:
        if not event.headers["ce_id"].startswith(TRAILER):
            waiting.append((event.headers["ce_id"], int(event.value)))
        return []

    async def finish() -> Sequence[Out]:
        ledger.apply(waiting)
        waiting.clear()
        if ledger.count() >= total:
            stop.set()
        return []

    consumer = Consumer(log, TOPIC, GROUP, handle, batch=100, idle_s=0.05, finish=finish)
    asyncio.run(consumer.run(stop))
    ledger.close()


if __name__ == "__main__":
    verb, where, many, server, own = sys.argv[1:]
    root = Path(where)
    opened = open_log(root, server, own)
    if verb == "produce" and server:
        opened = SpoolingLog(opened, root / "spool.db", SPOOL_BYTES, again_s=0.1, report=lambda text: None)
        opened.open()
    with contextlib.closing(opened):
        {"produce": produce, "consume": consume}[verb](root, opened, int(many))
