"""The embedded event log: topics, partitions and offsets in one SQLite file (Kafka's semantics without a broker).

Why these pragmas. ``journal_mode=WAL``: readers never wait for the writer. ``synchronous=FULL``: every commit syncs the
WAL before it returns, so an acknowledged append survives kill −9 *and* a power loss; under ``NORMAL``, WAL's usual
companion, a power loss takes the last commits with it (https://sqlite.org/pragma.html#pragma_synchronous).
``fullfsync`` asks the same of macOS, whose plain fsync leaves data in the drive's cache. ``BEGIN IMMEDIATE`` takes the
write lock at the start: a transaction that reads first and upgrades later fails at once instead of waiting its turn.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from operators.errors import Reject, Retry, RuvError, Stop
from operators.stores.ports import Event
from operators.stores.topics import partition_of

_APPLICATION_ID = 0x5255564C
"""Marks our files ("RUVL"), so that another program's database is refused instead of written to."""
_LAYOUT = 1
"""Version of the tables below, kept in ``user_version``."""
_MAX_WAL_BYTES = 64 << 20
_TABLES = """
CREATE TABLE IF NOT EXISTS topics (topic TEXT PRIMARY KEY, partitions INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS ends (
    topic TEXT, partition INTEGER, next_offset INTEGER NOT NULL, PRIMARY KEY (topic, partition)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS events (
    topic TEXT, partition INTEGER, "offset" INTEGER, key TEXT NOT NULL, value BLOB NOT NULL, headers TEXT NOT NULL,
    timestamp REAL NOT NULL, PRIMARY KEY (topic, partition, "offset"));
CREATE TABLE IF NOT EXISTS commits (
    consumers TEXT, topic TEXT, partition INTEGER, "offset" INTEGER NOT NULL,
    PRIMARY KEY (consumers, topic, partition)) WITHOUT ROWID;
"""
_WAIT = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_UNSOUND = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)


class SqliteLog:
    """``EventLog`` in the file ``path``; any thread and any number of processes may use it at once.

    Open it after ``fork``, never before. The file keeps its largest size: what ``retain`` frees is used again.

    Args:
        path: the database file; its directory is created.
        clock: gives Unix seconds, for the events' timestamps and for retention by age.
        busy_s: longest wait for another process' transaction, then ``Retry``.
        max_bytes: largest size of the file; appends beyond it raise ``Retry`` as on a full disk. ``None``: the disk's.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        clock: Callable[[], float] = time.time,
        busy_s: float = 10.0,
        max_bytes: int | None = None,
    ) -> None:
        self.path = Path(path)
        self._who = f"event log {self.path}"
        self._clock = clock
        self._busy_s = busy_s
        self._max_bytes = max_bytes
        self._partitions: dict[str, int] = {}
        # Two connections, so that a read never waits behind an append that waits for the disk.
        self._writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()

    def open(self) -> None:
        """Open or create. Raises ``Stop`` when the file can't be used; opening an open log changes nothing."""
        if self._writer is not None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise Stop(self._who, f"can't create its directory: {e}", "give a path that this user may write") from e
        try:
            with self._errors():
                self._writer = self._connect()
                self._create_tables(self._writer)
                self._reader = self._connect()
        except RuvError as e:
            self.close()
            raise e if isinstance(e, Stop) else Stop(e.who, e.got, e.remedy) from e

    def create_topic(self, topic: str, partitions: int) -> None:
        """Create ``topic``; ``Reject`` if it exists with another number of partitions, or for a number below 1."""
        if partitions < 1:
            raise Reject(self._who, f"topic {topic} with {partitions} partitions", "ask for at least 1")
        with self._write() as db:
            db.execute("INSERT OR IGNORE INTO topics VALUES (?, ?)", (topic, partitions))
            (found,) = db.execute("SELECT partitions FROM topics WHERE topic = ?", (topic,)).fetchone()
        if found != partitions:
            got = f"topic {topic} exists with {found} partitions, asked for {partitions}"
            raise Reject(self._who, got, "use its number, or a new topic version: keys would change partitions")

    def topics(self) -> dict[str, int]:
        """Topic → number of partitions."""
        return dict(self._rows("SELECT topic, partitions FROM topics ORDER BY topic"))

    def append(self, topic: str, key: str, value: bytes, headers: Mapping[str, str] | None = None) -> tuple[int, int]:
        """Durable when it returns; gives (partition, offset). An unknown topic raises ``Reject``."""
        return self.append_many(topic, [(key, value, headers or {})])[0]

    def append_many(self, topic: str, items: Sequence[tuple[str, bytes, Mapping[str, str]]]) -> list[tuple[int, int]]:
        """``append`` for many in one transaction (and one sync of the disk): all or none."""
        if not items:
            return []
        partitions = self._count(topic)
        places = []
        with self._write() as db:
            now = self._clock()
            for key, value, headers in items:
                partition = partition_of(key, partitions)
                (end,) = db.execute(
                    "INSERT INTO ends VALUES (?, ?, 1) "
                    "ON CONFLICT DO UPDATE SET next_offset = next_offset + 1 RETURNING next_offset",
                    (topic, partition),
                ).fetchone()
                row = (topic, partition, end - 1, key, value, json.dumps(dict(headers)), now)
                db.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)", row)
                places.append((partition, end - 1))
        return places

    def read(self, topic: str, partition: int, offset: int, limit: int) -> list[Event]:
        """Events from ``offset`` on, in order, at most ``limit``; empty at the end. Removed ones are skipped over."""
        self._check(topic, partition)
        rows = self._rows(
            'SELECT "offset", key, value, headers, timestamp FROM events '
            'WHERE topic = ? AND partition = ? AND "offset" >= ? ORDER BY "offset" LIMIT ?',
            (topic, partition, offset, max(limit, 0)),  # SQLite takes a negative limit as "all"
        )
        return [
            Event(
                topic=topic,
                partition=partition,
                offset=at,
                key=key,
                value=value,
                headers=json.loads(headers),
                timestamp=t,
            )
            for at, key, value, headers, t in rows
        ]

    def end(self, topic: str, partition: int) -> int:
        """The offset the next event will get."""
        self._check(topic, partition)
        rows = self._rows("SELECT next_offset FROM ends WHERE topic = ? AND partition = ?", (topic, partition))
        return int(rows[0][0]) if rows else 0

    def commit(self, group: str, topic: str, partition: int, offset: int) -> None:
        """Record that ``group`` has dealt with everything below ``offset``; never moves back."""
        self._check(topic, partition)
        with self._write() as db:
            db.execute(
                "INSERT INTO commits VALUES (?, ?, ?, ?) "
                'ON CONFLICT DO UPDATE SET "offset" = max("offset", excluded."offset")',
                (group, topic, partition, offset),
            )

    def committed(self, group: str, topic: str, partition: int) -> int:
        """The offset ``group`` goes on from; 0 if it never committed."""
        self._check(topic, partition)
        rows = self._rows(
            'SELECT "offset" FROM commits WHERE consumers = ? AND topic = ? AND partition = ?',
            (group, topic, partition),
        )
        return int(rows[0][0]) if rows else 0

    def retain(self, topic: str, *, max_age_s: float | None = None, max_events: int | None = None) -> int:
        """Remove the oldest events beyond either limit in every partition; returns how many went.

        Only a partition's oldest run goes, up to the first event that is young enough, even if the clock went back.
        """
        went = 0
        for partition in range(self._count(topic)):
            with self._write() as db:
                at = (topic, partition)
                ends = db.execute("SELECT next_offset FROM ends WHERE topic = ? AND partition = ?", at).fetchone()
                end = ends[0] if ends else 0
                keep_from = 0 if max_events is None else end - max_events
                if max_age_s is not None:
                    (first_young,) = db.execute(
                        'SELECT coalesce(min("offset"), ?) FROM events '
                        "WHERE topic = ? AND partition = ? AND timestamp >= ?",
                        (end, *at, self._clock() - max_age_s),
                    ).fetchone()
                    keep_from = max(keep_from, first_young)
                went += db.execute(
                    'DELETE FROM events WHERE topic = ? AND partition = ? AND "offset" < ?', (*at, keep_from)
                ).rowcount
        return went

    def close(self) -> None:
        """Release the file; safe to call twice."""
        with self._write_lock, self._read_lock:
            for db in (self._reader, self._writer):
                if db is not None:
                    db.close()
            self._reader = self._writer = None

    # ------------------------------------------------------------------------------------------------ inside

    def _connect(self) -> sqlite3.Connection:
        # isolation_level=None: the sqlite3 module begins no transactions by itself. Our locks serialise the threads.
        db = sqlite3.connect(self.path, timeout=self._busy_s, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA fullfsync = ON")
            db.execute(f"PRAGMA journal_size_limit = {_MAX_WAL_BYTES}")
            if self._max_bytes is not None:
                (page_bytes,) = db.execute("PRAGMA page_size").fetchone()
                db.execute(f"PRAGMA max_page_count = {max(1, self._max_bytes // page_bytes)}")
        except BaseException:
            db.close()
            raise
        return db

    def _create_tables(self, db: sqlite3.Connection) -> None:
        with self._transaction(db):
            found = [db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
            if found == [_APPLICATION_ID, _LAYOUT]:
                return
            if found != [0, 0] or db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
                got = f"application id and version {found}, expected {[_APPLICATION_ID, _LAYOUT]}"
                raise Stop(self._who, got, "this is another program's or version's database: give another path")
            for statement in _TABLES.split(";"):
                db.execute(statement)
            db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {_LAYOUT}")

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        with self._write_lock, self._errors(), self._transaction(self._opened(self._writer)) as db:
            yield db

    @contextmanager
    def _transaction(self, db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
        db.execute("BEGIN IMMEDIATE")
        try:
            yield db
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:  # a full disk has rolled back by itself
                db.execute("ROLLBACK")
            raise

    def _rows(self, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        with self._read_lock, self._errors():
            return self._opened(self._reader).execute(sql, values).fetchall()

    def _opened(self, db: sqlite3.Connection | None) -> sqlite3.Connection:
        if db is None:
            raise Stop(self._who, "used while closed", "call open() first")
        return db

    def _count(self, topic: str) -> int:
        """Partitions of ``topic``; they never change, so they are read once."""
        if topic not in self._partitions:
            self._partitions.update(self.topics())
        if topic not in self._partitions:
            raise Reject(self._who, f"unknown topic {topic}", "create it first", status=404)
        return self._partitions[topic]

    def _check(self, topic: str, partition: int) -> None:
        if not 0 <= partition < self._count(topic):
            got = f"partition {partition} of {topic}"
            raise Reject(self._who, got, f"it has the partitions 0 to {self._count(topic) - 1}")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """The one door where SQLite's errors become ours."""
        try:
            yield
        except sqlite3.Error as e:
            if not hasattr(e, "sqlite_errorcode"):
                raise  # not from SQLite but from the module: a value of a wrong type, a bug of the caller
            code = e.sqlite_errorcode & 0xFF  # the low byte is the primary code
            got = f"{e.sqlite_errorname}: {e}"
            if code in _WAIT:
                raise Retry(self._who, got, "another process holds the write lock: try again") from e
            if code == sqlite3.SQLITE_FULL:
                remedy = "free disk space, retain less or raise max_bytes; nothing of this call was written"
                raise Retry(self._who, got, remedy, retry_after_s=5.0) from e
            if code in _UNSOUND:
                raise Stop(self._who, got, "not a sound event log: move the file away or restore it") from e
            raise Stop(self._who, got, "check the path, its permissions and the disk") from e
