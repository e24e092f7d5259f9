"""The emitter: never in the way, nothing lost in silence, order kept."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from operators.errors import Retry, Stop
from operators.privacy.masker import FAILED, Masker
from operators.records import Interaction, Passage, decode
from operators.stores.ports import EventLog
from operators.stores.sqlite_log import SqliteLog
from operators.stores.topics import INTERACTIONS, create_topics
from pipeline.emit import Emitter

DEADLINE_S = 20.0


def interaction(number: int, session: str = "s", answer: str = "a") -> Interaction:
    return Interaction(
        event_id=f"e{number}",
        interaction_id=f"i{number}",
        tenant="acme",
        session=session,
        turn=number,
        created_at=1.0,
        query="q",
        answer=answer,
    )


class Gate:
    """A log in front of a real one: it fails as told, and holds appends until its gate is open."""

    def __init__(self, log: EventLog) -> None:
        self.log = log
        self.open = threading.Event()
        self.open.set()
        self.entered = threading.Event()
        self.failures: list[Exception] = []
        self.sizes: list[int] = []

    def append_many(self, topic: str, items: Sequence[tuple[str, bytes, Mapping[str, str]]]) -> list[tuple[int, int]]:
        self.entered.set()
        assert self.open.wait(DEADLINE_S)
        if self.failures:
            raise self.failures.pop(0)
        self.sizes.append(len(items))
        return self.log.append_many(topic, items)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SqliteLog]:
    made = SqliteLog(tmp_path / "events.db")
    made.open()
    create_topics(made)
    yield made
    made.close()


@pytest.fixture
def gate(log: SqliteLog) -> Iterator[Gate]:
    made = Gate(log)
    yield made
    made.open.set()


def emitter(gate: Gate, reports: list[str], mask: Callable[[str], str] = str, **knobs: int) -> Emitter:
    made = Emitter(gate, mask=mask, report=reports.append, clock=lambda: 0.0, **knobs)  # type: ignore[arg-type]
    made.start()
    return made


def stored(log: EventLog) -> list[Interaction]:
    events = [e for p in range(log.topics()[INTERACTIONS]) for e in log.read(INTERACTIONS, p, 0, 9_999)]
    return [decode(Interaction, e.value) for e in events]


async def test_what_is_emitted_is_durable_after_flush_with_its_key_and_headers(log: SqliteLog, gate: Gate) -> None:
    reports: list[str] = []
    emit = emitter(gate, reports)
    assert emit.emit(interaction(1, "s1"), traceparent="00-ab-cd-01")
    assert await emit.flush(DEADLINE_S)
    (event,) = [e for p in range(4) for e in log.read(INTERACTIONS, p, 0, 9)]
    assert event.key == "acme|s1"
    assert decode(Interaction, event.value).event_id == "e1"
    assert event.headers["ce_id"] == "e1"
    assert event.headers["ce_type"] == INTERACTIONS
    assert event.headers["traceparent"] == "00-ab-cd-01"
    assert (emit.counts.taken, emit.counts.written, emit.counts.lost) == (1, 1, 0)
    assert emit.healthy()
    assert await emit.close(DEADLINE_S) == 0
    assert reports == []


async def test_emit_returns_while_the_log_is_stuck_and_order_is_kept(log: SqliteLog, gate: Gate) -> None:
    emit = emitter(gate, [], batch=7)
    gate.open.clear()
    emit.emit(interaction(0))
    assert gate.entered.wait(DEADLINE_S), "the thread is inside append_many and stays there"
    for i in range(1, 50):
        assert emit.emit(interaction(i))
    assert stored(log) == []
    assert emit.waiting() == 50
    gate.open.set()
    assert await emit.flush(DEADLINE_S)
    assert [i.turn for i in stored(log)] == list(range(50))
    assert gate.sizes == [1, 7, 7, 7, 7, 7, 7, 7]
    await emit.close(DEADLINE_S)


async def test_overflow_is_counted_and_reported_once_an_episode(log: SqliteLog, gate: Gate) -> None:
    reports: list[str] = []
    emit = emitter(gate, reports, capacity=3)
    gate.open.clear()
    assert [emit.emit(interaction(i)) for i in range(6)] == [True, True, True, False, False, False]
    assert not emit.healthy()
    assert (emit.counts.taken, emit.counts.lost) == (6, 3)
    assert len(reports) == 1
    assert "first e3: 3 events wait" in reports[0]
    gate.open.set()
    assert await emit.flush(DEADLINE_S)
    assert emit.healthy()
    assert emit.emit(interaction(6))
    await emit.close(DEADLINE_S)
    assert [i.event_id for i in stored(log)] == ["e0", "e1", "e2", "e6"]
    assert emit.counts.taken == emit.counts.written + emit.counts.lost


async def test_a_failing_log_delays_and_loses_nothing(log: SqliteLog, gate: Gate) -> None:
    reports: list[str] = []
    gate.failures = [Retry("log", "full", "wait", retry_after_s=0.0), Retry("log", "busy", "wait", retry_after_s=0.0)]
    emit = emitter(gate, reports)
    emit.emit(interaction(0))
    emit.emit(interaction(1))
    assert await emit.flush(DEADLINE_S)
    assert [i.event_id for i in stored(log)] == ["e0", "e1"]
    assert emit.counts.failures == 2
    assert ["can't write" in reports[0], "writing again" in reports[1], len(reports)] == [True, True, 2]
    assert emit.healthy()
    await emit.close(DEADLINE_S)


async def test_close_writes_what_waits(log: SqliteLog, gate: Gate) -> None:
    emit = emitter(gate, [])
    for i in range(250):
        emit.emit(interaction(i))
    assert await emit.close(DEADLINE_S) == 0
    assert len(stored(log)) == 250


async def test_close_gives_up_at_its_deadline_and_says_how_many(log: SqliteLog, gate: Gate) -> None:
    reports: list[str] = []
    gate.failures = [Retry("log", "away", "wait", retry_after_s=1_000.0)]
    emit = emitter(gate, reports)
    emit.emit(interaction(0))
    emit.emit(interaction(1))
    assert await emit.close(0.0) == 2
    assert await emit.close(0.0) == 0, "given up once"
    assert emit.counts.lost == 2
    assert "gave up 2 events" in reports[-1]
    thread = emit._thread
    assert thread is not None
    thread.join(DEADLINE_S)
    assert not thread.is_alive(), "the thread leaves its wait of 1000 s"
    assert stored(log) == []


async def test_flush_says_when_its_deadline_was_not_met(gate: Gate) -> None:
    emit = emitter(gate, [])
    gate.open.clear()
    emit.emit(interaction(0))
    assert await emit.flush(0.0) is False
    gate.open.set()
    assert await emit.flush(DEADLINE_S) is True
    await emit.close(DEADLINE_S)


async def test_after_close_events_are_refused_and_counted(gate: Gate) -> None:
    reports: list[str] = []
    emit = emitter(gate, reports)
    await emit.close(DEADLINE_S)
    assert emit.emit(interaction(0)) is False
    assert emit.counts.lost == 1
    assert "closed" in reports[0]
    assert not emit.healthy()
    with pytest.raises(Stop):
        emit.start()


async def test_an_event_that_is_no_json_is_lost_alone(log: SqliteLog, gate: Gate) -> None:
    reports: list[str] = []
    emit = emitter(gate, reports)
    gate.open.clear()
    for i, answer in enumerate(["good", "\ud800", "good"]):
        emit.emit(interaction(i, answer=answer))
    emit.emit(interaction(3, session="\ud800"))
    gate.open.set()
    assert await emit.close(DEADLINE_S) == 0
    assert [i.event_id for i in stored(log)] == ["e0", "e2"]
    assert (emit.counts.written, emit.counts.lost) == (2, 2)
    assert [r.split()[2] for r in reports] == ["e1", "e3"]


async def test_texts_are_masked_in_the_emitters_thread_before_they_are_written(log: SqliteLog, gate: Gate) -> None:
    masker, threads = Masker(Masker.Config()), set[str]()

    def mask(text: str) -> str:
        threads.add(threading.current_thread().name)
        return masker(text)

    emit = emitter(gate, [], mask)
    passage = Passage(node_id="n", source="a.txt", text="Mail ada@example.org.", tokens=5, score=0.5)
    turn = dataclasses.replace(
        interaction(1, answer="Ring (212) 736-5000."), query="Is bob@example.org ill?", context=(passage,)
    )
    emit.emit(turn)
    assert await emit.close(DEADLINE_S) == 0
    (event,) = [event.value for p in range(4) for event in log.read(INTERACTIONS, p, 0, 9)]
    for value in (b"ada@", b"bob@", b"736-5000"):
        assert value not in event
    (found,) = stored(log)
    assert (found.query, found.answer) == ("Is [EMAIL] ill?", "Ring [PHONE].")
    assert [p.text for p in found.context] == ["Mail [EMAIL]."]
    assert (turn.query, passage.text) == ("Is bob@example.org ill?", "Mail ada@example.org."), "not the caller's own"
    assert threads == {"emit"}
    assert masker.found == {"EMAIL": 2, "PHONE": 1}


async def test_what_cannot_be_masked_is_left_out_and_the_event_kept(log: SqliteLog, gate: Gate) -> None:
    def broken(text: str) -> str:
        if "bob" in text:
            raise RuntimeError(f"no room for {text}")
        return text

    reports: list[str] = []
    emit = emitter(gate, reports, broken)
    emit.emit(interaction(1, answer="Ask bob@example.org."))
    emit.emit(interaction(2, answer="bob again"))
    assert await emit.close(DEADLINE_S) == 0
    assert [(i.event_id, i.query, i.answer) for i in stored(log)] == [("e1", "q", FAILED), ("e2", "q", FAILED)]
    assert (emit.counts.written, emit.counts.lost, emit.counts.unmasked) == (2, 0, 2)
    assert reports == ["emit: a text of e1 can't be masked: RuntimeError"]


async def test_a_full_disk_delays_until_there_is_room(tmp_path: Path) -> None:
    """The real failure instead of a scripted one: the file may not grow, until retention makes room."""
    log = SqliteLog(tmp_path / "small.db", max_bytes=200_000)
    log.open()
    create_topics(log)
    told = threading.Event()

    class Hasty(Gate):
        def append_many(
            self, topic: str, items: Sequence[tuple[str, bytes, Mapping[str, str]]]
        ) -> list[tuple[int, int]]:
            try:
                return self.log.append_many(topic, items)
            except Retry as e:
                raise Retry(e.who, e.got, e.remedy, retry_after_s=0.01) from e  # seconds are for real disks

    emit = Emitter(Hasty(log), mask=str, batch=1, report=lambda _: told.set())  # type: ignore[arg-type]
    emit.start()
    for i in range(30):
        emit.emit(interaction(i, answer="x" * 10_000))
    assert told.wait(DEADLINE_S)
    assert not emit.healthy()
    written = len(stored(log))
    assert 5 < written < 30
    while not await emit.flush(0.05):
        log.retain(INTERACTIONS, max_events=2)
    assert emit.counts.written == 30
    assert emit.counts.lost == 0
    await emit.close(DEADLINE_S)
    log.close()


async def test_threads_may_emit_at_once(log: SqliteLog, gate: Gate) -> None:
    emit = emitter(gate, [])

    def work(n: int) -> None:
        for i in range(50):
            assert emit.emit(interaction(100 * n + i, session=f"s{n}"))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(DEADLINE_S)
    assert await emit.close(DEADLINE_S) == 0
    found = stored(log)
    for n in range(4):
        assert [i.turn for i in found if i.session == f"s{n}"] == [100 * n + i for i in range(50)]
