"""The judge job on a real log with a scripted judge: what is read, written, put aside and committed."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from jobs.consumer import Consumer, Out, Seen
from jobs.judge import judge_consumer, run
from operators.errors import Reject, Retry, RuvError, Skip, Stop
from operators.judge import Judge, verdict_id
from operators.records import Interaction, Verdict, decode, encode
from operators.stores.ports import Event
from operators.stores.sqlite_log import SqliteLog
from operators.stores.topics import INTERACTIONS, JUDGEMENTS, TOPICS, create_topics, dlq, session_key

DEADLINE_S = 20.0


class ScriptedJudge(Judge):
    """A judge without a model: rates by the answer's length, raises what it is told, and signals each verdict."""

    def __init__(self, failures: Sequence[RuvError] = ()) -> None:
        super().__init__(Judge.Config(), engine=None)  # type: ignore[arg-type]
        self.failures = list(failures)
        self.judged: list[str] = []
        self.life: list[str] = []

    async def start(self) -> None:
        self.life.append("started")

    async def close(self) -> None:
        self.life.append("closed")

    async def run(self, batch: Sequence[Interaction]) -> list[Verdict]:
        if self.failures:
            raise self.failures.pop(0)
        self.judged += [i.event_id for i in batch]
        return [
            Verdict(
                event_id=verdict_id(i.event_id),
                interaction_id=i.interaction_id,
                tenant=i.tenant,
                session=i.session,
                created_at=0.0,
                status="judged",
                score=min(len(i.answer) / 10, 1.0),
                uncertainty=0.0,
                judge="scripted",
            )
            for i in batch
        ]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SqliteLog]:
    made = SqliteLog(tmp_path / "events.db", clock=lambda: 10.0)
    made.open()
    create_topics(made)
    yield made
    made.close()


def interaction(number: int, session: str = "s1", answer: str = "12345") -> Interaction:
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


def send(log: SqliteLog, *interactions: Interaction) -> None:
    for i in interactions:
        log.append(INTERACTIONS, session_key(i.tenant, i.session), encode(i), {"traceparent": f"00-{i.event_id}"})


def events(log: SqliteLog, topic: str) -> list[Event]:
    return [e for p in range(log.topics()[topic]) for e in log.read(topic, p, 0, 9_999)]


def verdicts(log: SqliteLog) -> list[Verdict]:
    return [decode(Verdict, e.value) for e in events(log, JUDGEMENTS)]


def committed(log: SqliteLog) -> int:
    return sum(log.committed("judge", INTERACTIONS, p) for p in range(TOPICS[INTERACTIONS]))


async def until_judged(log: SqliteLog, judge: Judge, total: int, **knobs: object) -> Consumer:
    """Run the job until ``total`` events were dealt with, then stop it; fails after the deadline."""
    stop = asyncio.Event()
    consumer: Consumer

    def enough() -> None:
        if consumer.counts.events + 1 >= total:
            stop.set()

    consumer = judge_consumer(log, judge, idle_s=0.01, before_commit=enough, clock=lambda: 0.0, **knobs)  # type: ignore[arg-type]
    async with asyncio.timeout(DEADLINE_S):
        await consumer.run(stop)
    return consumer


async def test_every_interaction_gets_its_verdict_under_its_key(log: SqliteLog) -> None:
    send(log, *(interaction(i, session=f"s{i % 5}", answer="x" * i) for i in range(10)))
    consumer = await until_judged(log, ScriptedJudge(), 10)
    found = {v.interaction_id: v for v in verdicts(log)}
    assert {k: v.score for k, v in found.items()} == {f"i{i}": i / 10 for i in range(10)}
    for event in events(log, JUDGEMENTS):
        verdict = decode(Verdict, event.value)
        assert event.key == f"acme|{verdict.session}"
        assert event.headers["ce_id"] == verdict.event_id
        assert event.headers["ce_type"] == JUDGEMENTS
        assert event.headers["traceparent"] == f"00-e{verdict.interaction_id[1:]}"
        where = int(event.headers["src.partition"]), int(event.headers["src.offset"])
        (judged,) = log.read(event.headers["src.topic"], *where, 1)
        assert decode(Interaction, judged.value).interaction_id == verdict.interaction_id
    assert committed(log) == 10
    assert (consumer.counts.events, consumer.counts.dead, consumer.lag()) == (10, 0, 0)


async def test_a_session_is_judged_in_its_order(log: SqliteLog) -> None:
    send(log, *(interaction(i, session=f"s{i % 3}") for i in range(12)))
    judge = ScriptedJudge()
    await until_judged(log, judge, 12)
    for s in range(3):
        mine = [int(e[1:]) for e in judge.judged if int(e[1:]) % 3 == s]
        assert mine == sorted(mine)
        assert len(mine) == 4


async def test_two_judges_share_the_partitions_and_each_session_keeps_its_order(log: SqliteLog) -> None:
    send(log, *(interaction(i, session=f"s{i % 6}") for i in range(24)))
    judges, stops = [ScriptedJudge(), ScriptedJudge()], [asyncio.Event(), asyncio.Event()]
    halves = [(0, 2), (1, 3)]
    ends = [sum(log.end(INTERACTIONS, p) for p in half) for half in halves]
    assert min(ends) > 0, "both have something to do"
    consumers: list[Consumer] = []
    for judge, stop, half, end in zip(judges, stops, halves, ends, strict=True):

        def enough(number: int = len(consumers), stop: asyncio.Event = stop, end: int = end) -> None:
            if consumers[number].counts.events + 1 >= end:
                stop.set()

        consumers.append(judge_consumer(log, judge, idle_s=0.01, partitions=half, before_commit=enough))
    async with asyncio.timeout(DEADLINE_S):
        await asyncio.gather(*(consumer.run(stop) for consumer, stop in zip(consumers, stops, strict=True)))
    first, second = (set(judge.judged) for judge in judges)
    assert not first & second
    assert first | second == {f"e{i}" for i in range(24)}
    for judge in judges:
        for s in range(6):
            mine = [int(e[1:]) for e in judge.judged if int(e[1:]) % 6 == s]
            assert mine == sorted(mine)
            assert len(mine) in (0, 4), "a session has one judge"
    assert committed(log) == 24
    assert [consumer.lag() for consumer in consumers] == [0, 0]


async def test_it_goes_on_from_the_committed_offset(log: SqliteLog) -> None:
    send(log, interaction(0), interaction(1))
    await until_judged(log, ScriptedJudge(), 2)
    send(log, interaction(2))
    judge = ScriptedJudge()
    await until_judged(log, judge, 1)
    assert judge.judged == ["e2"]


async def test_repeats_are_dropped(log: SqliteLog) -> None:
    send(log, interaction(0), interaction(1), interaction(0), interaction(0))
    judge = ScriptedJudge()
    await until_judged(log, judge, 4)
    assert judge.judged == ["e0", "e1"]
    assert len(verdicts(log)) == 2
    assert committed(log) == 4


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"not json \xff", "Invalid JSON"),
        (b'{"event_id": "e1"}', "errors, first at tenant: Field required"),
        (encode(interaction(1)).replace(b'"schema_version":1', b'"schema_version":9'), "schema_version 9, this is 1"),
        (encode(interaction(1)).replace(b'"turn":1', b'"turn":1,"surprise":2'), "first at surprise"),
    ],
)
async def test_a_malformed_event_becomes_a_dead_letter_and_the_partition_moves_on(
    log: SqliteLog, value: bytes, message: str
) -> None:
    send(log, interaction(0))
    partition, offset = log.append(INTERACTIONS, "acme|s1", value, {"ce_id": "bad"})
    send(log, interaction(2))
    consumer = await until_judged(log, ScriptedJudge(), 3)
    assert [v.interaction_id for v in verdicts(log)] == ["i0", "i2"]
    (letter,) = events(log, dlq(INTERACTIONS))
    assert (letter.key, letter.value) == ("acme|s1", value)
    assert message in letter.headers.pop("error.message")  # type: ignore[attr-defined]
    assert letter.headers == {
        "ce_id": "bad",
        "error.class": "Skip",
        "src.topic": INTERACTIONS,
        "src.partition": str(partition),
        "src.offset": str(offset),
        "attempt": "1",
    }
    assert (consumer.counts.events, consumer.counts.dead) == (3, 1)
    assert log.committed("judge", INTERACTIONS, partition) == 3


async def test_what_the_judge_refuses_is_a_dead_letter_with_its_attempts(log: SqliteLog) -> None:
    send(log, interaction(0), interaction(1))
    away = Retry("engine", "away", "wait", retry_after_s=0.0)
    judge = ScriptedJudge([away, away, Reject("judge", "poison", "drop it")])
    consumer = await until_judged(log, judge, 2)
    (letter,) = events(log, dlq(INTERACTIONS))
    assert (letter.headers["error.class"], letter.headers["attempt"]) == ("Reject", "3")
    assert consumer.counts.retries == 2
    assert judge.judged == ["e1"]


async def test_an_engine_that_is_away_costs_lag_and_no_verdict(log: SqliteLog) -> None:
    send(log, interaction(0))
    judge = ScriptedJudge([Retry("engine", "away", "wait", retry_after_s=0.0)] * 3)
    await until_judged(log, judge, 1)
    assert [v.status for v in verdicts(log)] == ["judged"]
    assert events(log, dlq(INTERACTIONS)) == []


async def test_stop_ends_a_long_wait_for_the_engine_and_commits_nothing(log: SqliteLog) -> None:
    send(log, interaction(0))
    judge = ScriptedJudge([Retry("engine", "away", "wait", retry_after_s=1_000.0)])
    stop = asyncio.Event()
    task = asyncio.create_task(judge_consumer(log, judge).run(stop))
    async with asyncio.timeout(DEADLINE_S):
        while judge.failures:
            await asyncio.sleep(0)
        stop.set()
        await task
    assert committed(log) == 0
    assert verdicts(log) == []


async def test_stop_ends_the_poll_of_an_empty_topic_at_once(log: SqliteLog, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    all_read = threading.Event()
    read = log.read

    def counted(topic: str, partition: int, offset: int, limit: int) -> list[Event]:
        reads.append(partition)
        if len(reads) == TOPICS[INTERACTIONS]:
            all_read.set()
        return read(topic, partition, offset, limit)

    monkeypatch.setattr(log, "read", counted)
    stop = asyncio.Event()
    task = asyncio.create_task(judge_consumer(log, ScriptedJudge(), idle_s=1_000.0).run(stop))
    async with asyncio.timeout(DEADLINE_S):
        assert await asyncio.to_thread(all_read.wait, DEADLINE_S)
        stop.set()
        await task
    assert reads == [0, 1, 2, 3], "one look, then the wait of 1000 s that the stop ended"


async def test_a_judge_that_cannot_go_on_ends_the_job_before_the_commit(log: SqliteLog) -> None:
    send(log, interaction(0))
    with pytest.raises(Stop, match="out of memory"):
        async with asyncio.timeout(DEADLINE_S):
            await judge_consumer(log, ScriptedJudge([Stop("engine", "out of memory", "buy")])).run(asyncio.Event())
    assert committed(log) == 0


async def test_nothing_is_judged_while_it_may_not_work(log: SqliteLog) -> None:
    send(log, interaction(0), interaction(1))
    judge = ScriptedJudge()
    asked: list[int] = []

    def may_work() -> bool:
        asked.append(len(judge.judged))
        return len(asked) % 4 == 0

    await until_judged(log, judge, 2, may_work=may_work)
    assert asked == [0, 0, 0, 0, 1, 1, 1, 1], "asked before each item, three times in vain"


async def test_run_starts_and_closes_the_judge(log: SqliteLog) -> None:
    send(log, interaction(0))
    judge = ScriptedJudge()
    stop = asyncio.Event()

    def may_work() -> bool:
        stop.set()  # the loop finishes what it began
        return True

    async with asyncio.timeout(DEADLINE_S):
        await run(log, judge, stop, may_work, nice=0)
    assert judge.life == ["started", "closed"]
    assert [v.interaction_id for v in verdicts(log)] == ["i0"]
    assert committed(log) == 1


async def test_missing_topics_stop_the_job(tmp_path: Path) -> None:
    log = SqliteLog(tmp_path / "empty.db")
    log.open()
    with pytest.raises(Stop, match="create the topics"):
        await judge_consumer(log, ScriptedJudge()).run(asyncio.Event())
    log.close()


# ------------------------------------------------------------------------------------------------ the shared loop


async def test_a_batch_is_written_at_once_and_committed_once(log: SqliteLog) -> None:
    log.append_many(INTERACTIONS, [("k", b"%d" % i, {}) for i in range(7)])
    stop = asyncio.Event()
    commits: list[int] = []

    async def handle(event: Event) -> list[Out]:
        if event.value == b"3":
            raise Skip("test", "three", "none")
        return [Out(topic=JUDGEMENTS, key=event.key, value=event.value, headers={})] * 2

    def before_commit() -> None:
        commits.append(len(events(log, JUDGEMENTS)))
        if consumer.counts.events + 4 >= 7:
            stop.set()

    consumer = Consumer(log, INTERACTIONS, "g", handle, batch=4, idle_s=0.01, before_commit=before_commit)
    async with asyncio.timeout(DEADLINE_S):
        await consumer.run(stop)
    assert commits == [6, 12], "everything is written before its commit"
    assert [e.value for e in events(log, JUDGEMENTS)] == [b"%d" % i for i in (0, 0, 1, 1, 2, 2, 4, 4, 5, 5, 6, 6)]
    assert [e.value for e in events(log, dlq(INTERACTIONS))] == [b"3"]
    assert sum(log.committed("g", INTERACTIONS, p) for p in range(4)) == 7


async def test_stop_within_a_batch_commits_what_was_done(log: SqliteLog) -> None:
    log.append_many(INTERACTIONS, [("k", b"%d" % i, {}) for i in range(5)])
    stop = asyncio.Event()

    async def handle(event: Event) -> list[Out]:
        if event.value == b"1":
            stop.set()
        return [Out(topic=JUDGEMENTS, key=event.key, value=event.value, headers={})]

    async with asyncio.timeout(DEADLINE_S):
        await Consumer(log, INTERACTIONS, "g", handle).run(stop)
    assert [e.value for e in events(log, JUDGEMENTS)] == [b"0", b"1"]
    assert sum(log.committed("g", INTERACTIONS, p) for p in range(4)) == 2


async def test_what_retention_took_unread_is_counted(log: SqliteLog) -> None:
    log.append_many(INTERACTIONS, [("k", b"%d" % i, {}) for i in range(6)])
    log.retain(INTERACTIONS, max_events=2)
    stop = asyncio.Event()
    seen: list[bytes] = []

    async def handle(event: Event) -> list[Out]:
        seen.append(event.value)
        if len(seen) == 2:
            stop.set()
        return []

    consumer = Consumer(log, INTERACTIONS, "g", handle)
    async with asyncio.timeout(DEADLINE_S):
        await consumer.run(stop)
    assert seen == [b"4", b"5"]
    assert (consumer.counts.events, consumer.counts.missed) == (2, 4)


async def test_only_own_partitions_are_read(log: SqliteLog) -> None:
    places = log.append_many(INTERACTIONS, [(f"k{i}", b"%d" % i, {}) for i in range(20)])
    stop = asyncio.Event()
    seen: list[tuple[int, int]] = []
    mine = [place for place in places if place[0] in (1, 3)]

    async def handle(event: Event) -> list[Out]:
        seen.append((event.partition, event.offset))
        if len(seen) == len(mine):
            stop.set()
        return []

    async with asyncio.timeout(DEADLINE_S):
        await Consumer(log, INTERACTIONS, "g", handle, partitions=(1, 3)).run(stop)
    assert sorted(seen) == sorted(mine)
    assert 0 < len(mine) < 20


def test_seen_forgets_the_oldest() -> None:
    seen = Seen(2)
    for event_id in ("a", "b", "a", "c"):
        seen.add(event_id)
    assert ["a" in seen, "b" in seen, "c" in seen] == [True, False, True]
