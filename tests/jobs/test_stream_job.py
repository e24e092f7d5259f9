"""Stream mode on a real log: what is asked and answered, in which order, and what waits, is refused or put aside."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conf.stream import StreamJob
from jobs.consumer import Consumer
from jobs.stream import ANSWER, Answerer, interaction_id, stream
from operators.errors import Reject, Retry, Stop
from operators.records import Message, Request, Response, Sampling, decode, encode
from operators.stores.sqlite_log import SqliteLog
from operators.stores.topics import REQUESTS, RESPONSES, TOPICS, create_topics, dlq, session_key
from tests.service import ROOT, Running

DEADLINE_S = 20.0
AWAY = Retry("http://x", "no service listens there", "start it", retry_after_s=0.0)
BUSY = Retry("service (429)", "8 requests running", "try again", retry_after_s=0.0, status=429)
SLOW = Retry("service (503)", "request_timeout_s is over", "ask for fewer tokens", retry_after_s=0.0)
BROKEN = Stop("service (500)", "an unforeseen error", "see the service's log")
Said = dict[str, Any]


class Clock:
    """The time, for all: it goes on when told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Service:
    """Answers as the service's endpoint does, with what is asked; fails where it is told to."""

    def __init__(self, failures: dict[str, list[Exception]] | None = None) -> None:
        self.failures = failures or {}
        self.asked: list[Said] = []
        self.busy = self.most = 0
        self.together = 1
        """It answers nobody before so many ask at the same time."""
        self.clock, self.takes = Clock(), 0.0
        self._changed = threading.Condition()

    def __call__(self, body: Said) -> Said:
        with self._changed:
            self.asked.append(body)
            self.busy += 1
            self.most = max(self.most, self.busy)
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: self.most >= self.together, DEADLINE_S):
                raise AssertionError(f"{self.most} at the same time, {self.together} were expected")
            if self.together > 1 and len(self.asked) <= self.together:  # one more had the time to come
                self._changed.wait_for(lambda: self.busy > self.together, 0.3)
            self.busy -= 1
        question = body["messages"][-1]["content"] if body["messages"] else ""
        self.clock.now += self.takes
        if waiting := self.failures.get(question):
            raise waiting.pop(0)
        route = {"tier": "135M", "context_tokens": 512, "temperature": 0.7, "top_p": 0.9, "confidence": 0.4}
        return {
            "model": "270M",
            "choices": [{"message": {"content": f"answer to {question}"}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 5, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}},
            "ruvllm": {
                "route": {**route, "checkpoint": "prior", "reason": "router", "probabilities": {}},
                "citations": [{"node_id": "n", "source": "vell.txt", "score": 0.5}],
                "degraded": ["attend"],
            },
        }


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SqliteLog]:
    made = SqliteLog(tmp_path / "events.db", clock=lambda: 10.0)
    made.open()
    create_topics(made)
    yield made
    made.close()


def send(log: SqliteLog, *requests: Request) -> None:
    for one in requests:
        log.append(REQUESTS, session_key(one.tenant, one.session), encode(one), {"traceparent": f"00-{one.event_id}"})


def request(number: int, session: str = "s", **rest: Any) -> Request:
    return Request(**({"event_id": f"r{number}", "tenant": "acme", "session": session, "text": f"q{number}"} | rest))


def responses(log: SqliteLog) -> list[Response]:
    return [decode(Response, e.value) for p in range(TOPICS[RESPONSES]) for e in log.read(RESPONSES, p, 0, 9999)]


def committed(log: SqliteLog) -> int:
    return sum(log.committed("stream", REQUESTS, p) for p in range(TOPICS[REQUESTS]))


async def until_answered(
    log: SqliteLog, service: Service, before_commit: Callable[[], None] = lambda: None, **knobs: Any
) -> list[Consumer]:
    """Run the job until every request was dealt with; fails after the deadline."""
    stop, wanted = asyncio.Event(), sum(log.end(REQUESTS, p) for p in range(TOPICS[REQUESTS]))
    answerer = Answerer(service, StreamJob(**knobs), 120.0, clock=service.clock, monotonic=service.clock)
    running = asyncio.create_task(stream(log, answerer, stop, idle_s=0.01, before_commit=before_commit))
    with contextlib.closing(answerer):
        async with asyncio.timeout(DEADLINE_S):
            while committed(log) < wanted and not running.done():
                await asyncio.sleep(0.005)
            stop.set()
            return await running


async def test_every_request_gets_its_response(log: SqliteLog) -> None:
    first = request(1, session="s1", user="ada", sampling=Sampling(tier="135M", max_tokens=9, stop=(".",)), k=3)
    send(log, first, request(2, session="", messages=(Message(role="system", content="be brief"),)))
    service = Service()
    await until_answered(log, service)
    found = {one.request_id: one for one in responses(log)}
    assert set(found) == {"r1", "r2"}
    one = found["r1"]
    assert (one.answer, one.tier, one.finish_reason, one.error) == ("answer to q1", "270M", "stop", None)
    assert (one.tenant, one.session, one.interaction_id) == ("acme", "s1", interaction_id(first))
    assert (one.prompt_tokens, one.completion_tokens, one.cached_tokens, one.degraded) == (5, 3, 2, ("attend",))
    assert one.route is not None
    assert (one.route.tier, one.route.confidence, one.citations[0].source) == ("135M", 0.4, "vell.txt")
    asked = {body["messages"][-1]["content"]: body for body in service.asked}
    assert asked["q1"] == {
        "tenant": "acme",
        "session": "s1",
        "interaction_id": one.interaction_id,
        "messages": [{"role": "user", "content": "q1"}],
        "model": "135M",
        "temperature": None,
        "top_p": None,
        "max_tokens": 9,
        "stop": ["."],
        "seed": None,
        "user": "ada",
        "ruvllm": {"k": 3, "mode": None, "quality_bias": 0.5},
    }
    assert [m["role"] for m in asked["q2"]["messages"]] == ["system", "user"]
    assert found["r2"].session == found["r2"].interaction_id, "a conversation of its own"
    (event,) = [e for p in range(4) for e in log.read(RESPONSES, p, 0, 9) if b'"r1"' in e.value]
    assert (event.key, event.headers["ce_id"], event.headers["traceparent"]) == ("acme|s1", one.event_id, "00-r1")
    (source,) = log.read(REQUESTS, int(event.headers["src.partition"]), int(event.headers["src.offset"]), 1)
    assert decode(Request, source.value).event_id == "r1"


async def test_sessions_keep_their_order_and_no_more_are_asked_at_once_than_told(log: SqliteLog) -> None:
    send(log, *(request(i, session=f"s{i % 8}") for i in range(40)))
    assert all(log.end(REQUESTS, p) for p in range(4)), "every partition has some"
    service = Service()
    service.together = 3
    await until_answered(log, service, concurrent=3)
    assert service.most == 3
    order: dict[str, list[int]] = {}
    for body in service.asked:
        order.setdefault(body["session"], []).append(int(body["messages"][-1]["content"][1:]))
    assert order == {f"s{i}": list(range(i, 40, 8)) for i in range(8)}
    assert len(responses(log)) == 40


async def test_what_is_away_or_full_is_waited_for(log: SqliteLog) -> None:
    send(log, request(1), request(2))
    consumers = await until_answered(log, Service({"q1": [AWAY, BUSY] * 5}), attempts=1)
    assert [one.answer for one in responses(log)] == ["answer to q1", "answer to q2"]
    assert sum(consumer.counts.retries for consumer in consumers) == 10


@pytest.mark.parametrize(
    ("failures", "kind", "words"), [([SLOW] * 3, "Retry", "request_timeout_s"), ([SLOW, BROKEN], "Stop", "unforeseen")]
)
async def test_a_request_that_fails_again_and_again_holds_nobody_up(
    log: SqliteLog, failures: list[Exception], kind: str, words: str
) -> None:
    send(log, request(1), request(2), request(1))
    service = Service({"q1": list(failures)})
    service.takes = 120.0
    await until_answered(log, service, attempts=len(failures))
    one, two = responses(log)
    assert one.error is not None
    assert (one.error.kind, words in one.error.message, one.answer) == (kind, True, "")
    assert (two.answer, two.error) == ("answer to q2", None)
    assert Counter(body["messages"][-1]["content"] for body in service.asked) == {"q1": len(failures), "q2": 1}


async def test_two_failures_are_no_reason_to_give_up(log: SqliteLog) -> None:
    send(log, request(1))
    service = Service({"q1": [SLOW, SLOW]})
    service.takes = 120.0
    await until_answered(log, service, attempts=3)
    assert [one.answer for one in responses(log)] == ["answer to q1"]


@pytest.mark.parametrize(
    ("error", "param"),
    [
        (Reject("service (400)", "a blank question", "ask something", 400, "messages"), "messages"),
        (Reject("service (404)", "no model 'x'", "use 'auto'", 404, "model", "model_not_found"), "sampling.tier"),
        (Reject("service (400)", "must be ≤ 100", "send less", 400, "ruvllm.k"), "k"),
    ],
)
async def test_what_the_service_refuses_is_answered_with_the_reason(log: SqliteLog, error: Reject, param: str) -> None:
    send(log, request(1), request(2))
    await until_answered(log, Service({"q1": [error]}))
    one, two = responses(log)
    assert one.error is not None
    assert (one.error.kind, one.error.message, one.error.remedy) == ("Reject", error.got, error.remedy)
    assert one.error.param == param
    assert (one.request_id, two.answer) == ("r1", "answer to q2")
    assert log.end(dlq(REQUESTS), 0) == 0


async def test_a_request_past_its_deadline_is_not_asked(log: SqliteLog) -> None:
    send(log, request(1, deadline=999.0), request(2, deadline=1001.0))
    service = Service()
    await until_answered(log, service)
    one, two = responses(log)
    assert one.error is not None
    assert (one.error.param, one.error.message[:28]) == ("deadline", "its deadline passed 1.0 s be")
    assert two.answer == "answer to q2"
    assert len(service.asked) == 1


async def test_a_deadline_ends_the_wait_for_a_service_that_is_away(log: SqliteLog) -> None:
    send(log, request(1, deadline=1003.0))
    service = Service({"q1": [AWAY] * 99})
    service.takes = 1.0
    await until_answered(log, service)
    (one,) = responses(log)
    assert one.error is not None
    assert one.error.param == "deadline"
    assert len(service.asked) == 4


async def test_after_a_crash_the_answer_comes_again_under_the_same_ids(log: SqliteLog) -> None:
    send(log, request(1))
    service = Service()

    def crash() -> None:
        raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        await until_answered(log, service, before_commit=crash)
    assert (committed(log), len(responses(log))) == (0, 1)
    await until_answered(log, service)
    one, again = responses(log)
    assert (one.event_id, one.interaction_id) == (again.event_id, again.interaction_id)
    assert len({body["interaction_id"] for body in service.asked}) == 1


async def test_repeats_are_answered_once_and_tenants_do_not_share_ids(log: SqliteLog) -> None:
    send(log, request(1), request(1), request(1, tenant="beta"))
    service = Service()
    await until_answered(log, service)
    assert sorted(body["tenant"] for body in service.asked) == ["acme", "beta"]
    assert len({one.event_id for one in responses(log)}) == len(responses(log)) == 2


async def test_what_is_no_request_is_put_aside(log: SqliteLog) -> None:
    log.append(REQUESTS, "acme|s", b'{"event_id": "r0", "tenant": "a/b"}')
    log.append(REQUESTS, "acme|s", encode(request(1)).replace(b'"k":null', b'"k":null,"temprature":0.1'))
    send(log, request(2))
    await until_answered(log, Service())
    assert [one.request_id for one in responses(log)] == ["r2"]
    reasons = [letter.headers["error.message"] for letter in log.read(dlq(REQUESTS), 0, 0, 9)]
    assert ["first at tenant" in reasons[0], "first at temprature" in reasons[1]] == [True, True]


@pytest.mark.parametrize(
    "error",
    [
        Reject("service (401)", "no valid administrator's key", "send it", 401, code="invalid_admin_key"),
        Reject("service (404)", "/v1/admin/answer: no such path", "/docs lists them", 404),
        Stop("http://x", "what answers there is not RuvLLM", "name the service's address"),
    ],
)
async def test_what_is_wrong_with_the_job_ends_it_and_answers_nobody(log: SqliteLog, error: Exception) -> None:
    send(log, *(request(i, session=f"s{i}") for i in range(8)))
    with pytest.raises(Stop):
        await until_answered(log, Service({f"q{i}": [error] for i in range(8)}))
    assert (committed(log), responses(log)) == (0, [])


@pytest.mark.slow
def test_the_job_in_its_own_process_answers_through_the_real_service(inproc: Running) -> None:
    """Started by hand on the service's data directory, as ``pipeline.children`` starts it too."""
    sampling = {"temperature": 0, "max_tokens": 8}
    about = {"tenant": "default", "session": "from a topic", "sampling": sampling}
    asked = [
        {"event_id": "one", "text": "How tall is the Vell lighthouse?", **about},
        {"event_id": "two", "text": " ", **about},
        {"event_id": "three", "text": "And when was its lamp lit?", **about},
    ]
    sets = ["--set", f"data_dir={inproc.data_dir}"]
    with contextlib.closing(SqliteLog(inproc.data_dir / "events.sqlite")) as log:
        log.open()
        for each in asked:
            log.append(REQUESTS, session_key("default", "from a topic"), json.dumps(each).encode())
    job = subprocess.Popen([sys.executable, "-m", "jobs.stream", "--profile", "test", *sets], cwd=ROOT)
    try:
        inproc.until(lambda: job.poll() is not None or len(inproc.events(RESPONSES)) == 3, "responses")
    finally:
        job.terminate()
        assert job.wait(30) == 0
    one, two, three = (decode(Response, json.dumps(each)) for each in inproc.events(RESPONSES))
    assert [each.request_id for each in (one, two, three)] == ["one", "two", "three"]
    assert "vell.txt" in [each.source for each in one.citations]
    assert one.answer
    assert one.completion_tokens <= 8
    assert two.error is not None
    assert (two.error.kind, two.error.remedy, two.error.param) == ("Reject", "ask something", "messages")
    event = inproc.wait_event(three.interaction_id)
    assert (event["session"], event["turn"], event["origin"]) == ("from a topic", 1, "ruvllm")
    assert event["event_id"] == event["interaction_id"]


@pytest.mark.slow
def test_a_topics_tenant_sees_its_own_memory_alone_and_only_the_administrator_may_say_whose(inproc: Running) -> None:
    body = {"tenant": "nobody", "session": "s", "interaction_id": "i", "max_tokens": 4}
    body["messages"] = [{"role": "user", "content": "How tall is the Vell lighthouse?"}]
    post = functools.partial(inproc.http.post, ANSWER, json=body)
    key = (inproc.data_dir / "admin-key").read_text()
    assert post().status_code == 401
    answer = post(headers={"authorization": f"Bearer {key}"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["ruvllm"]["citations"] == []
    assert answer.json()["ruvllm"]["interaction_id"] == "i"
