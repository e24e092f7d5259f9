"""The spool: what a log can't take now waits on disk, reaches it in order, and is never lost.

The log behind it is a real broker that is killed and started again, or, where the broker plays no part, an event log in
a file whose write lock a test holds: it is away (``Retry``) as truly.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from operators.errors import Reject, Retry, Stop
from operators.records import Interaction
from operators.stores.events import Events
from operators.stores.kafka import KafkaLog
from operators.stores.make import open_log
from operators.stores.ports import EventLog
from operators.stores.spool import NOWHERE, SpoolingLog
from operators.stores.spool_file import ASIDE, SpoolFile
from operators.stores.sqlite_log import SqliteLog
from operators.stores.topics import INTERACTIONS
from pipeline.emit import Emitter
from tests.broker import Broker, broker, config, forgotten_sockets, mortal_broker, until

ROOT = Path(__file__).parents[3]
PLENTY = 50_000_000
SHORT = {"request_timeout_s": 0.3, "delivery_timeout_s": 0.6}


def items(*numbers: int, size: int = 1) -> list[tuple[str, bytes, dict[str, str]]]:
    return [(f"k{n % 3}", b"x" * size, {"ce_id": str(n)}) for n in numbers]


def ids(log: EventLog, topic: str = "t") -> list[int]:
    """Of every event, partition by partition."""
    events = [e for p in range(log.topics()[topic]) for e in log.read(topic, p, 0, 99_999)]
    return [int(e.headers["ce_id"]) for e in events]


@pytest.fixture
def target(tmp_path: Path) -> Iterator[SqliteLog]:
    log = SqliteLog(tmp_path / "events.db", busy_s=0.01)
    log.open()
    log.create_topic("t", 1)
    yield log
    log.close()


@contextlib.contextmanager
def away(target: SqliteLog) -> Iterator[None]:
    """While somebody else holds its write lock, ``target`` takes nothing."""
    other = sqlite3.connect(target.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


@pytest.fixture
def spooling(tmp_path: Path, target: SqliteLog) -> Iterator[Any]:
    made: list[SpoolingLog] = []

    def make(log: EventLog | None = None, max_bytes: int = PLENTY, **rest: Any) -> SpoolingLog:
        rest = {"again_s": 0.02, "report": lambda text: None, **rest}
        made.append(SpoolingLog(log or target, tmp_path / "spool.db", max_bytes, **rest))
        made[-1].open()
        return made[-1]

    yield make
    for log in made:
        log.close()


def test_while_the_log_is_there_events_go_straight_to_it(target: SqliteLog, spooling: Any) -> None:
    log: EventLog = spooling()
    assert log.append_many("t", items(0, 1)) == [(0, 0), (0, 1)]
    assert log.append("t", "k", b"x", {"ce_id": "2"}) == (0, 2)
    assert ids(target) == ids(log) == [0, 1, 2]
    assert (log.waiting(), log.counts.spooled, log.end("t", 0)) == (0, 0, 3)  # type: ignore[attr-defined]


def test_what_waited_comes_first_and_in_order(target: SqliteLog, spooling: Any) -> None:
    said: list[str] = []
    log = spooling(report=said.append)
    log.append_many("t", items(0))
    with away(target):
        assert log.append_many("t", items(1, 2)) == [NOWHERE] * 2
        assert log.append_many("t", items(3)) == [NOWHERE]
        assert (log.waiting(), ids(target)) == (3, [0])
    until(lambda: log.waiting() == 0)
    log.append_many("t", items(4))
    assert ids(target) == [0, 1, 2, 3, 4]
    assert (log.counts.spooled, log.counts.drained, log.counts.refused) == (3, 3, 0)
    assert "events wait" in said[0]
    until(lambda: any("reached the log" in text for text in said))
    assert sum("events wait" in text for text in said) == 1, "once an episode"


def test_what_an_earlier_process_left_comes_before_anything_new(
    target: SqliteLog, spooling: Any, tmp_path: Path
) -> None:
    left = SpoolFile(tmp_path / "spool.db")
    left.open()
    left.put("t", items(*range(250)))
    left.close()
    log = spooling()
    log.append_many("t", items(250))
    until(lambda: log.waiting() == 0)
    assert ids(target) == list(range(251))


def test_two_processes_share_the_file_and_one_of_them_drains(target: SqliteLog, spooling: Any) -> None:
    written, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        written.set()
        assert go_on.wait(20)

    one = spooling(before_remove=hold)
    with away(target):
        one.append_many("t", items(*range(20)))
    assert written.wait(20), "the log has them, the file too"
    try:
        two = spooling()
        assert two.append_many("t", items(20)) == [NOWHERE]
        assert (two._drain(), two.counts.drained, one.waiting()) == (0, 0, 21)
    finally:
        go_on.set()
    until(lambda: one.waiting() == 0)
    assert ids(target) == list(range(21)), "each once"


def test_a_full_spool_is_retry_and_keeps_what_it_has(target: SqliteLog, spooling: Any) -> None:
    log = spooling(max_bytes=200_000)
    kept: list[int] = []

    def fill() -> None:
        for i in range(100):
            log.append_many("t", items(i, size=5_000))
            kept.append(i)

    with away(target):
        with pytest.raises(Retry, match="find no room") as caught:
            fill()
        assert "spool_bytes" in caught.value.remedy
        assert isinstance(caught.value.__cause__, Retry)
        assert (log.counts.refused, log.waiting()) == (1, len(kept))
        assert 10 < len(kept) < 40
        assert 100_000 < log.used_bytes() <= 200_000
    until(lambda: log.waiting() == 0)
    assert log.append_many("t", items(len(kept))) == [(0, len(kept))]
    assert ids(target) == [*kept, len(kept)]
    assert log.used_bytes() < 50_000, "its pages are used again"


def test_the_callers_mistakes_are_not_spooled(spooling: Any) -> None:
    log = spooling()
    with pytest.raises(Reject, match="unknown topic"):
        log.append_many("nope", items(0))
    assert log.waiting() == 0


def test_a_log_that_needs_a_person_loses_nothing_meanwhile(target: SqliteLog, spooling: Any) -> None:
    log = spooling()
    target.close()  # as if our rights were taken
    with pytest.raises(Stop):
        target.append_many("t", items(0))
    assert log.append_many("t", items(0)) == [NOWHERE]
    target.open()
    until(lambda: log.waiting() == 0)
    assert ids(target) == [0]


def test_a_spool_that_is_no_spool_stops_at_the_start(tmp_path: Path, target: SqliteLog) -> None:
    (tmp_path / "spool.db").write_bytes(b"not a database " * 100)
    with pytest.raises(Stop, match="move the file away"):
        SpoolingLog(target, tmp_path / "spool.db", PLENTY).open()


def test_close_keeps_what_waits_and_may_be_called_twice(target: SqliteLog, spooling: Any) -> None:
    with away(target):
        log = spooling(again_s=60.0)
        log.append_many("t", items(0))
        log.close()
        log.close()
    target.open()
    again = spooling()
    until(lambda: again.waiting() == 0)
    assert ids(target) == [0]


# --------------------------------------------------------------------------------------------- the drainer is killed

DRAINER = """
import itertools, os, signal, sys, threading
from pathlib import Path
from operators.stores.spool import SpoolingLog
from operators.stores.sqlite_log import SqliteLog
batches = itertools.count()

def die():
    if next(batches) == 1:
        os.kill(os.getpid(), signal.SIGKILL)

log = SpoolingLog(SqliteLog(sys.argv[1]), Path(sys.argv[2]), 50_000_000, before_remove=die)
log.open()
threading.Event().wait(30)
"""


def test_kill_9_of_the_drainer_repeats_a_batch_and_loses_nothing(
    tmp_path: Path, target: SqliteLog, spooling: Any
) -> None:
    left = SpoolFile(tmp_path / "spool.db")
    left.open()
    left.put("t", items(*range(350)))
    command = [sys.executable, "-c", DRAINER, str(target.path), str(tmp_path / "spool.db")]
    process = subprocess.Popen(command, cwd=ROOT)
    assert process.wait(60) == -9, "it died between the log and the file"
    assert len(ids(target)) == 200
    assert left.waiting() == {"t": 250}
    left.close()
    log = spooling()  # the dead one's lock is free
    until(lambda: log.waiting() == 0)
    found = ids(target)
    assert len(found) == 450, "the second hundred twice"
    assert list(dict.fromkeys(found)) == list(range(350)), "in order, once the repeats are dropped"


# --------------------------------------------------------------------------------------------------- in front of Kafka


@pytest.fixture
def failing() -> Iterator[None]:
    """For tests in which connections fail; it ends after the test's own variables are gone."""
    with forgotten_sockets():
        yield


@pytest.fixture
def mortal(failing: None) -> Iterator[Broker]:
    with mortal_broker() as own:
        yield own


def test_a_broker_killed_amid_the_stream_gets_everything_once_it_is_back(mortal: Broker, spooling: Any) -> None:
    log = spooling(KafkaLog(config(mortal.address, **SHORT)))
    log.create_topic("t", 2)
    produced = threading.Event()

    def produce() -> None:
        for i in range(0, 200, 4):
            log.append_many("t", items(i, i + 1, i + 2, i + 3))  # an error would end the thread, and the test
        produced.set()

    thread = threading.Thread(target=produce)
    thread.start()
    until(lambda: sum(log.end("t", p) for p in range(2)) > 30)  # it lives, and now it dies
    mortal.kill()
    thread.join(30)
    assert produced.is_set()
    waiting = log.waiting()
    assert 0 < waiting < 200
    mortal.start()
    until(lambda: log.waiting() == 0)
    reader = KafkaLog(config(mortal.address, prefix=log.log.config.prefix))
    reader.open()
    with contextlib.closing(reader):
        for partition in range(2):
            found = [(e.key, int(e.headers["ce_id"])) for e in reader.read("t", partition, 0, 9999)]
            unique = list(dict.fromkeys(found))
            assert unique == sorted(unique, key=lambda pair: pair[1]), "in order, once the repeats are dropped"
            assert len(found) - len(unique) <= 4, "at most the call that was under way is there twice"
        assert set(ids(reader)) == set(range(200))
    assert log.counts.drained == log.counts.spooled == waiting


def test_an_event_too_large_for_the_broker_is_set_aside_and_the_rest_goes_on(
    tmp_path: Path, failing: None, spooling: Any
) -> None:
    left = SpoolFile(tmp_path / "spool.db")
    left.open()
    left.put("t", [*items(0), *items(1, size=5_000), *items(2)])
    with broker() as address:
        behind = KafkaLog(config(address, max_event_bytes=1_000), prepare=lambda log: log.create_topic("t", 1))
        log = spooling(behind)
        until(lambda: log.waiting() == 0)
        assert ids(log) == [0, 2]
        assert (log.counts.drained, log.counts.aside) == (2, 1)
    left.close()
    db = sqlite3.connect(tmp_path / "spool.db")
    assert db.execute("SELECT topic, length(value) FROM events").fetchall() == [("t" + ASIDE, 5_000)]
    db.close()


def test_the_service_starts_and_answers_before_the_broker_does(tmp_path: Path, failing: None) -> None:
    """As ``events.kind: kafka`` wires it: emitter, spool, Kafka. The topics come with the first connection."""
    own = Broker()
    events = Events(
        kind="kafka",
        kafka=config(own.address, **SHORT),
        partitions=2,
        path=str(tmp_path / "unused.db"),
        spool_path=str(tmp_path / "spool.db"),
    )
    log = open_log(events, spool=True)
    emitter = Emitter(log, mask=str)
    emitter.start()
    try:
        for i in range(3):
            assert emitter.emit(_interaction(i))
        assert asyncio.run(emitter.flush(20.0))
        assert (emitter.counts.written, emitter.counts.lost, emitter.healthy()) == (3, 0, True)
        assert isinstance(log, SpoolingLog)
        assert log.waiting() == 3
        own.start()
        until(lambda: log.waiting() == 0)
        assert log.topics()[INTERACTIONS] == 2
        keys = [e.headers["ce_id"] for p in range(2) for e in log.read(INTERACTIONS, p, 0, 9)]
        assert keys == ["e0", "e1", "e2"]
        assert not (tmp_path / "unused.db").exists()
    finally:
        asyncio.run(emitter.close(1.0))
        log.close()
        own.close()


def test_a_file_has_no_spool(tmp_path: Path) -> None:
    events = Events(path=str(tmp_path / "events.db"), spool_path=str(tmp_path / "spool.db"))
    with contextlib.closing(open_log(events, spool=True)) as log:
        assert isinstance(log, SqliteLog)
    assert not (tmp_path / "spool.db").exists()


def _interaction(number: int) -> Interaction:
    return Interaction(
        event_id=f"e{number}",
        interaction_id=f"i{number}",
        tenant="acme",
        session="s",
        turn=number,
        created_at=1.0,
        query="q",
        answer="a",
    )
