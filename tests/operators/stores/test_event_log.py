"""Every event log passes the kit; what only the SQLite one promises follows it."""

from __future__ import annotations

import functools
import pickle
import sqlite3
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from operators.errors import Reject, Retry, Stop
from operators.stores import topics
from operators.stores.kafka import KafkaLog
from operators.stores.ports import EventLog
from operators.stores.sqlite_log import SqliteLog
from tests.broker import NAMED, broker, config
from tests.operators.stores.event_log_kit import Clock, EventLogKit

SUBJECTS = {
    "sqlite": lambda address, directory, clock: SqliteLog(directory / "events.db", clock=clock),
    "kafka": lambda address, directory, clock: KafkaLog(
        config(address, prefix=f"kit-{uuid.uuid5(uuid.NAMESPACE_URL, str(directory))}."), clock=clock
    ),
}


@pytest.fixture(scope="module")
def kafka() -> Iterator[str]:
    with broker() as address:
        yield address


class TestEventLogs(EventLogKit):
    @pytest.fixture(params=SUBJECTS)
    def subject(self, request: pytest.FixtureRequest) -> object:
        address = request.getfixturevalue("kafka") if request.param == "kafka" else ""
        return functools.partial(SUBJECTS[request.param], address)

    @pytest.fixture
    def retains(self, request: pytest.FixtureRequest) -> bool:
        return "kafka" not in request.node.callspec.id or bool(NAMED)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "events.db"


def opened(path: Path, **knobs: object) -> SqliteLog:
    log = SqliteLog(path, **knobs)  # type: ignore[arg-type]
    log.open()
    return log


def test_it_is_an_event_log(path: Path) -> None:
    log: EventLog = opened(path)
    log.close()


def test_an_append_is_synced_before_it_returns(path: Path) -> None:
    """What we can see of power-loss safety without pulling the plug: WAL with synchronous=FULL on the writer."""
    log = opened(path)
    try:
        writer = log._writer
        assert writer is not None
        assert writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert writer.execute("PRAGMA synchronous").fetchone() == (2,)
        assert writer.execute("PRAGMA fullfsync").fetchone() == (1,)
    finally:
        log.close()


def test_a_full_disk_is_retry_and_loses_nothing(path: Path) -> None:
    log = opened(path, max_bytes=200_000)
    log.create_topic("t", 1)

    def fill() -> None:
        for _ in range(100):
            log.append("t", "k", b"x" * 5_000)

    with pytest.raises(Retry, match="SQLITE_FULL") as caught:
        fill()
    written = log.end("t", 0)
    assert "free disk space" in caught.value.remedy
    assert 10 < written < 40
    assert pickle.loads(pickle.dumps(caught.value)).retry_after_s == 5.0
    assert [e.offset for e in log.read("t", 0, 0, 99)] == list(range(written))
    assert log.retain("t", max_events=5) == written - 5
    assert log.append("t", "k", b"x" * 5_000) == (0, written), "room again, and no offset was lost"
    log.close()


def test_a_busy_log_is_retry(path: Path) -> None:
    log = opened(path, busy_s=0.05)
    log.create_topic("t", 1)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Retry, match="write lock"):
        log.append("t", "k", b"")
    assert log.read("t", 0, 0, 9) == [], "reads go on meanwhile"
    other.execute("ROLLBACK")
    other.close()
    assert log.append("t", "k", b"") == (0, 0)
    log.close()


def test_a_file_that_is_no_database_stops(tmp_path: Path) -> None:
    file = tmp_path / "events.db"
    file.write_bytes(b"not a database " * 100)
    with pytest.raises(Stop, match="move the file away"):
        opened(file)
    assert file.read_bytes() == b"not a database " * 100


def test_another_programs_database_stops(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / "events.db")
    db.execute("CREATE TABLE theirs (x)")
    db.close()
    with pytest.raises(Stop, match="another program"):
        opened(tmp_path / "events.db")


def test_a_newer_layout_stops(path: Path) -> None:
    opened(path).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(Stop, match="99"):
        opened(path)


def test_an_unusable_directory_stops(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Stop, match="directory"):
        opened(tmp_path / "file" / "events.db")
    (tmp_path / "events.db").mkdir()
    with pytest.raises(Stop, match="permissions"):
        opened(tmp_path / "events.db")


def test_a_closed_log_says_so(path: Path) -> None:
    log = SqliteLog(path)
    with pytest.raises(Stop, match="open\\(\\) first"):
        log.create_topic("t", 1)


def test_retention_by_age_stops_at_the_first_young_event_when_the_clock_went_back(path: Path) -> None:
    clock = Clock()
    log = opened(path, clock=clock)
    log.create_topic("t", 1)
    for clock.now in (100.0, 900.0, 200.0):
        log.append("t", "k", b"%d" % clock.now)
    clock.now = 1_000.0
    assert log.retain("t", max_age_s=500.0) == 1
    assert [e.value for e in log.read("t", 0, 0, 9)] == [b"900", b"200"]
    log.close()


def test_every_topic_of_the_design_and_its_dead_letters_can_be_made(path: Path) -> None:
    log = opened(path)
    topics.create_topics(log)
    topics.create_topics(log)
    made = log.topics()
    assert {t: made[t] for t in topics.TOPICS} == topics.TOPICS
    assert made["ruvllm.interactions.v1.dlq"] == 1
    assert len(made) == 2 * len(topics.TOPICS)
    with pytest.raises(Reject, match="asked for 8"):
        topics.create_topics(log, 8)
    log.close()


def test_partitions_of_known_keys_never_change() -> None:
    """Frozen values: another hash would send a session's next events to another partition."""
    assert [topics.partition_of(k, 4) for k in ("acme|s1", "acme|s2", "", "ü|ö")] == [1, 3, 0, 0]


def test_event_headers_are_cloud_events() -> None:
    headers = topics.event_headers("id-1", topics.JUDGEMENTS, "/ruvllm/judge", 0.5)
    assert headers == {
        "ce_id": "id-1",
        "ce_type": "ruvllm.judgements.v1",
        "ce_source": "/ruvllm/judge",
        "ce_specversion": "1.0",
        "ce_time": "1970-01-01T00:00:00.500000+00:00",
        "content-type": "application/json",
    }
    assert topics.event_headers("i", "t", "/s", 0.0, "00-aa-bb-01")["traceparent"] == "00-aa-bb-01"


def test_a_bad_topic_error_is_the_callers_fault(path: Path) -> None:
    log = opened(path)
    with pytest.raises(Reject) as caught:
        log.append("nope", "k", b"")
    assert caught.value.status == 404
    log.close()
