"""Events that can't be used, on the file and on a broker: each becomes a dead letter that says why, and nothing stops.

Good events stand between the bad ones, in the same partition; all of them must come through.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from conf.stream import StreamJob
from jobs.feedback import feedback_consumer
from jobs.judge import judge_consumer
from jobs.stream import Answerer, stream
from operators.judge import Judge
from operators.records import Interaction, Response, Verdict, decode
from operators.stores.kafka import KafkaLog
from operators.stores.ports import EventLog
from operators.stores.spool import SpoolingLog
from operators.stores.spool_file import ASIDE
from operators.stores.sqlite_log import SqliteLog
from operators.stores.topics import FEEDBACK, INTERACTIONS, JUDGEMENTS, REQUESTS, RESPONSES, create_topics, dlq
from pipeline.emit import Emitter
from tests.broker import broker, config, until
from tests.scripted import Scripted

KEY = "acme|s"
ALL = os.environ.get("RUVLLM_TEST_FAULTS") == "all"
LARGE = {SqliteLog: 10_000_000, KafkaLog: 10_000_000 if ALL else 1_050_000}
"""Bytes of the largest value. On the broker it is what an outside producer may send and we, by default, may not. It is
also more than a fetch asks for. kafka-python's checksums are Python, a second and more for each MB each way."""
TURN = {"tenant": "acme", "session": "s"}
GOOD: dict[str, dict[str, Any]] = {
    REQUESTS: {**TURN, "text": "q"},
    INTERACTIONS: {**TURN, "query": "q", "answer": "a", "score": 0.9},
}
"""The least that each topic takes, besides the event's id; the score spares the judge its model."""


def poison(topic: str, large: int) -> list[tuple[bytes, str]]:
    """Values that ``topic`` can't use, and what the dead letter says of them."""
    good = json.dumps({"event_id": "bad", **GOOD[topic]})

    def field(name: str, value: str) -> bytes:
        return f'{good[:-1]}, "{name}": {value}}}'.encode()

    number = "deadline" if topic == REQUESTS else "prompt_tokens"
    vectors = ["[NaN]", "[1e300]", '{"a": 1}', f"[{'9' * 400}]", "[[1], [1, 2]]", "[0.5, 0.5]", "[" * 90 + "]" * 90]
    return [
        (b"", "Invalid JSON: EOF"),
        (b"\xff\xfe not text", "Invalid JSON"),
        (good.encode()[:-1], "Invalid JSON: EOF"),
        (good.encode("utf-16"), "Invalid JSON"),
        (b"[1, 2]", "first at the value"),
        (b'"text"', "first at the value"),
        (b"null", "first at the value"),
        (b"{}", "Field required"),
        (field("surprise", "1"), "first at surprise"),
        (field("tenant", '"../beta"'), "first at tenant"),
        (field("tenant", '"a\\u0000"'), "first at tenant"),
        (field("event_id", json.dumps("e" * 201)), "at most 200 characters"),
        (field("event_id", '""'), "at least 1 character"),
        (field("schema_version", "2"), "schema_version 2, this is 1; replay it with a release that knows it"),
        (field("schema_version", '2, "surprise": 1'), "schema_version 2, this is 1; replay it with a release"),
        (field("schema_version", '"two"'), "first at schema_version"),
        (field("created_at", "NaN"), "first at created_at: Input should be a finite number"),
        (field(number, "Infinity"), f"first at {number}"),
        (field("user", '"\0"'), "control character"),
        (field("user", r'"\ud800"'), "Invalid JSON"),
        (field("user", r'"\udc00\ud800"'), "Invalid JSON"),
        (b"[" * 100_000, "recursion limit"),
        (b'{"a":' * 100_000, "recursion limit"),
        (field("user", json.dumps("x" * large)), "first at user"),
        *([(field("hidden", each), "first at hidden") for each in vectors] if topic == INTERACTIONS else []),
    ]


@contextlib.contextmanager
def on_file(root: Path) -> Iterator[tuple[EventLog, EventLog]]:
    with contextlib.closing(SqliteLog(root / "events.db")) as log:
        log.open()
        yield log, log


@contextlib.contextmanager
def on_broker(address: str) -> Iterator[tuple[EventLog, EventLog]]:
    """What its producer may send is larger than what we may."""
    ours = config(address)
    patient = {"request_timeout_s": 60.0, "delivery_timeout_s": 120.0}
    theirs = ours.model_copy(update={"max_event_bytes": 2 * LARGE[KafkaLog], **patient})
    with contextlib.closing(KafkaLog(ours)) as log, contextlib.closing(KafkaLog(theirs)) as producer:
        log.open()
        producer.open()
        yield log, producer


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with broker() as at:
        yield at


@pytest.fixture(params=["file", "broker"])
def logs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[EventLog, EventLog]]:
    """The log as the jobs have it, and as an outside producer has it."""
    kind = on_file(tmp_path) if request.param == "file" else on_broker(request.getfixturevalue("address"))
    with kind as (log, producer):
        create_topics(log)
        yield log, producer


def read(log: EventLog, topic: str) -> list[Any]:
    return [event for p in range(log.topics()[topic]) for event in log.read(topic, p, 0, 9999)]


async def consume(log: EventLog, topic: str, group: str, run: Callable[[asyncio.Event], Any]) -> None:
    stop = asyncio.Event()
    running = asyncio.create_task(run(stop))

    def done() -> bool:
        return all(log.committed(group, topic, p) >= log.end(topic, p) for p in range(log.topics()[topic]))

    async with asyncio.timeout(120 if ALL else 30):
        while not (running.done() or await asyncio.to_thread(done)):
            await asyncio.sleep(0.05)
        stop.set()
        await running


def answer(body: Any) -> Any:
    """A service that answers everything."""
    route = {"tier": "t", "context_tokens": 1, "temperature": 0.0, "top_p": 1.0, "confidence": 1.0}
    return {
        "model": "t",
        "choices": [{"message": {"content": "a"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1, "prompt_tokens_details": {}},
        "ruvllm": {"route": {**route, "checkpoint": "", "reason": "router"}, "citations": [], "degraded": []},
    }


def send(producer: EventLog, topic: str, bad: Sequence[bytes]) -> int:
    """A good event before each bad one, and one behind them all; returns how many good ones."""
    for i, value in enumerate(bad):
        producer.append(topic, KEY, json.dumps({"event_id": f"good {i}", **GOOD[topic]}).encode())
        producer.append(topic, KEY, value, {"traceparent": f"00-{i}"})
    producer.append(topic, KEY, json.dumps({"event_id": "last", **GOOD[topic]}).encode())
    return len(bad) + 1


def check_letters(log: EventLog, topic: str, bad: Sequence[tuple[bytes, str]]) -> None:
    letters = read(log, dlq(topic))
    originals = {(event.partition, event.offset): event for event in read(log, topic)}
    assert len(letters) == len(bad)
    for i, ((value, reason), letter) in enumerate(zip(bad, letters, strict=True)):
        why = letter.headers
        assert reason in why["error.message"], (value[:60], why["error.message"])
        assert (why["error.class"], why["src.topic"], why["attempt"]) == ("Skip", topic, "1")
        assert len(why["error.message"]) <= 500
        assert originals[int(why["src.partition"]), int(why["src.offset"])].value == value
        if "src.bytes" in why:  # too large for us to send
            assert (letter.value, int(why["src.bytes"])) == (b"", len(value))
            assert isinstance(log, KafkaLog)
            assert len(value) > log.config.max_event_bytes - 1000
        else:
            assert (letter.key, letter.value, why["traceparent"]) == (KEY, value, f"00-{i}")
    assert sum("src.bytes" in letter.headers for letter in letters) == isinstance(log, KafkaLog)


@pytest.mark.parametrize("logs", ["file"], indirect=True)
async def test_requests(logs: tuple[EventLog, EventLog]) -> None:
    log, producer = logs
    bad = poison(REQUESTS, LARGE[type(log)])
    good = send(producer, REQUESTS, [value for value, _ in bad])
    with contextlib.closing(Answerer(answer, StreamJob(), 120.0)) as answerer:
        await consume(log, REQUESTS, "stream", lambda stop: stream(log, answerer, stop, idle_s=0.01))
    check_letters(log, REQUESTS, bad)
    answered = [decode(Response, event.value).request_id for event in read(log, RESPONSES)]
    assert answered == [*(f"good {i}" for i in range(good - 1)), "last"]


async def test_interactions(logs: tuple[EventLog, EventLog]) -> None:
    log, producer = logs
    bad = poison(INTERACTIONS, LARGE[type(log)])
    good = send(producer, INTERACTIONS, [value for value, _ in bad])
    judge = Judge(Judge.Config(), Scripted([]))
    consumer = judge_consumer(log, judge, idle_s=0.01)
    await consume(log, INTERACTIONS, "judge", consumer.run)
    check_letters(log, INTERACTIONS, bad)
    assert (consumer.counts.dead, consumer.counts.events) == (len(bad), len(bad) + good)
    judged = [decode(Verdict, event.value).interaction_id for event in read(log, JUDGEMENTS)]
    assert judged == [*(f"good {i}" for i in range(good - 1)), "last"]


async def test_feedback(tmp_path: Path) -> None:
    given = {**TURN, "event_id": "f", "interaction_id": "good", "score": 1.0}
    bad = [
        ({**given, "score": float("nan")}, "first at score"),
        ({**given, "score": 2}, "send one from 0 to 1"),
        ({**given, "interaction_id": "other"}, "no interaction 'other'"),
        ({**given, "correction": "x" * 32_001}, "first at correction"),
    ]
    with on_file(tmp_path) as (log, _):
        create_topics(log)
        log.append(INTERACTIONS, KEY, b"[" * 100_000 + b'"good"')  # found by its words, and no interaction
        log.append(INTERACTIONS, KEY, json.dumps({"event_id": "good", **GOOD[INTERACTIONS]}).encode())
        for value, _ in bad:
            log.append(FEEDBACK, KEY, json.dumps(value).encode())
        log.append(FEEDBACK, KEY, json.dumps(given).encode())
        await consume(log, FEEDBACK, "feedback", feedback_consumer(log, idle_s=0.01).run)
        reasons = [letter.headers["error.message"] for letter in read(log, dlq(FEEDBACK))]
        assert [wanted in found for (_, wanted), found in zip(bad, reasons, strict=True)] == [True] * len(bad)
        (verdict,) = [decode(Verdict, event.value) for event in read(log, JUDGEMENTS)]
        assert (verdict.interaction_id, verdict.score) == ("good", 1.0)


async def test_an_answer_too_large_for_the_broker_holds_up_none_behind_it(tmp_path: Path, address: str) -> None:
    """Our own: as ``events.kind: kafka`` wires it. It is set aside, with its bytes, in the spool."""
    behind = KafkaLog(config(address, max_event_bytes=4_000), prepare=lambda log: create_topics(log, 1))
    with contextlib.closing(SpoolingLog(behind, tmp_path / "spool.db", 1 << 24, report=lambda text: None)) as log:
        log.open()
        emitter = Emitter(log, mask=str, batch=3)
        said = Interaction(interaction_id="i", event_id="", created_at=1.0, query="q", answer="a", turn=0, **TURN)
        emitter.start()
        for i in range(6):
            answer = "x" * (9_000 if i == 1 else 1)
            assert emitter.emit(dataclasses.replace(said, event_id=f"e{i}", answer=answer))
        assert await emitter.flush(20.0)
        until(lambda: log.waiting() == 0)
        assert [event.headers["ce_id"] for event in read(log, INTERACTIONS)] == ["e0", "e2", "e3", "e4", "e5"]
        assert (log.counts.aside, emitter.counts.lost, emitter.healthy()) == (1, 0, True)
        await emitter.close(1.0)
    with contextlib.closing(sqlite3.connect(tmp_path / "spool.db")) as file:
        ((topic, length),) = file.execute("SELECT topic, length(value) FROM events").fetchall()
    assert (topic, length > 9_000) == (INTERACTIONS + ASIDE, True)
