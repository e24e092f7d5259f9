"""The clock jumps by hours, to 1970 and to 2100, and back: what is kept, what is due, and what does not care."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import inspect
import itertools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from conf.jobs import MaintainJob
from conf.promotion import Promotion
from jobs.consumer import Consumer, Out
from jobs.evidence import Evidence
from jobs.maintain import Maintainer
from jobs.promote import step
from jobs.stream import Answerer
from operators.errors import Retry
from operators.ids import uuid7
from operators.learning import rollout as changes
from operators.learning.arrays import to_bytes
from operators.learning.rollout import Why
from operators.quarantine import Quarantine
from operators.records import Filter, Interaction
from operators.stores import lifecycle, removal
from operators.stores.checkpoints import Registry
from operators.stores.kafka import KafkaLog
from operators.stores.kafka_errors import translated
from operators.stores.memory import Memory
from operators.stores.ports import Event, EventLog
from operators.stores.sqlite_log import SqliteLog
from operators.stores.topics import INTERACTIONS, create_topics
from pipeline.emit import Emitter
from pipeline.sessions import Sessions
from tests import learn_rig
from tests.broker import broker, config
from tests.writeback_rig import document, memory_at

NOW, HOUR_S, DAY_S = 1_790_000_000.0, 3600.0, 86_400.0
Y2100 = 4_102_444_800.0
JUMPS = (NOW, NOW + 3 * HOUR_S, NOW - 3 * HOUR_S, 0.0, Y2100, NOW)


class Clock:
    def __init__(self, now: float = NOW) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def said(number: int) -> Interaction:
    return Interaction(
        event_id=f"e{number}", interaction_id=f"i{number}", tenant="t", session="s", turn=number, created_at=1.0,
        query="q", answer="a",
    )  # fmt: skip


async def emitted_under_jumps(log: EventLog, clock: Clock) -> list[Event]:
    create_topics(log, 1)
    emitter = Emitter(log, mask=str, clock=clock)
    emitter.start()
    for i, clock.now in enumerate(JUMPS):
        assert emitter.emit(said(i))
        assert await emitter.flush(20.0)
    assert (emitter.counts.written, emitter.counts.lost) == (len(JUMPS), 0)
    await emitter.close(1.0)
    return log.read(INTERACTIONS, 0, 0, 99)


@pytest.mark.parametrize("kind", ["file", "broker"])
async def test_events_keep_their_order_and_the_time_of_their_moment(tmp_path: Path, kind: str) -> None:
    clock = Clock()
    with contextlib.ExitStack() as stack:
        if kind == "file":
            log: EventLog = SqliteLog(tmp_path / "events.db", clock=clock)
        else:
            log = KafkaLog(config(stack.enter_context(broker())), clock=clock)
        log.open()
        stack.enter_context(contextlib.closing(log))
        events = await emitted_under_jumps(log, clock)
    assert [(event.offset, event.headers["ce_id"]) for event in events] == [(i, f"e{i}") for i in range(len(JUMPS))]
    assert [event.timestamp for event in events] == list(JUMPS)
    times = [datetime.datetime.fromisoformat(event.headers["ce_time"]).timestamp() for event in events]
    assert times == list(JUMPS)


def test_a_broker_that_refuses_our_time_is_asked_again_later() -> None:
    """By then the clock may be right; what waits in the spool gets its time when it is sent."""
    from kafka.errors import InvalidTimestampError

    assert isinstance(translated("kafka", InvalidTimestampError("two hours ahead")), Retry)


def test_retention_takes_nothing_early_when_the_clock_goes_back(tmp_path: Path) -> None:
    clock = Clock()
    with contextlib.closing(SqliteLog(tmp_path / "events.db", clock=clock)) as log:
        log.open()
        log.create_topic("t", 1)
        for clock.now in JUMPS:
            log.append("t", "k", b"")
        for clock.now in (NOW, NOW - 3 * HOUR_S, 0.0):
            assert log.retain("t", max_age_s=30 * DAY_S) == 0, "what lies behind a young event is as young"
        clock.now = NOW + 31 * DAY_S
        assert log.retain("t", max_age_s=30 * DAY_S) == 4, "up to the one that says 2100"


async def test_a_reader_knows_how_much_a_clock_in_2100_took_from_it(tmp_path: Path) -> None:
    """Retention can't tell a jump from a long rest; what it takes unread is counted, and offsets go on."""
    clock, stop = Clock(), asyncio.Event()
    read: list[str] = []

    async def handle(event: Event) -> Sequence[Out]:
        read.append(event.key)
        stop.set()
        return []

    with contextlib.closing(SqliteLog(tmp_path / "events.db", clock=clock)) as log:
        log.open()
        log.create_topic("t", 1)
        for _ in range(5):
            log.append("t", "old", b"")
        clock.now = Y2100
        assert log.retain("t", max_age_s=30 * DAY_S) == 5
        clock.now = NOW
        assert log.append("t", "new", b"") == (0, 5)
        consumer = Consumer(log, "t", "g", handle, idle_s=0.01)
        async with asyncio.timeout(20):
            await consumer.run(stop)
    assert (read, consumer.counts.missed) == (["new"], 5)


def test_ids_sort_by_the_clock_and_never_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for now in JUMPS:
        monkeypatch.setattr(time, "time_ns", lambda now=now: int(now * 1e9))
        made.append([str(uuid7()) for _ in range(200)])
    assert len(set(itertools.chain(*made))) == 200 * len(JUMPS)
    first = dict(zip(JUMPS, made, strict=True))
    for early, late in itertools.pairwise(sorted(first)):
        assert max(first[early]) < min(first[late])


@pytest.mark.parametrize(("owner", "name"), [(Sessions, "clock"), (Memory, "monotonic"), (Answerer, "monotonic")])
def test_what_measures_how_long_does_not_ask_what_time_it_is(owner: type, name: str) -> None:
    assert inspect.signature(owner).parameters[name].default is time.monotonic


# ----------------------------------------------------------------------------------------------------- the memory


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Memory:
    return memory_at(tmp_path_factory.mktemp("memory"))


def test_what_expires_is_there_again_when_the_clock_comes_back_and_what_waits_is_purged(memory: Memory) -> None:
    clock = Clock()
    memory.clock = memory.vectors.clock = clock  # type: ignore[attr-defined]
    lasting, brief = document("lasting", "The lamp of Brindle."), document("brief", "The mill of Harrow.")
    memory.add("t", [lasting, dataclasses.replace(brief, expires_at=NOW + HOUR_S)])

    def listed() -> set[str]:
        return {node.node_id for node in lifecycle.page(memory, "t", Filter(), 9).nodes}

    shown = {}
    for clock.now in JUMPS:
        shown[clock.now] = listed()
    assert {now for now in JUMPS if "brief" in shown[now]} == {NOW, NOW - 3 * HOUR_S, 0.0}
    assert all("lasting" in each for each in shown.values())

    # Removed while the clock said 2100: it must not take until then for its bytes to go.
    clock.now = Y2100
    removal.remove(memory, "t", ["brief"], "a test")
    clock.now = NOW
    assert removal.purge_due(memory, "t")
    assert not removal.purge_due(memory, "t")
    # Removed now: the wait is the usual one.
    memory.add("t", [brief])
    removal.remove(memory, "t", ["brief"], "a test")
    clock.now = NOW + memory.config.purge_after_s - 1
    assert not removal.purge_due(memory, "t")
    clock.now += 1
    assert removal.purge_due(memory, "t")
    memory.close()


def test_maintenance_is_done_once_for_a_jump_ahead_and_goes_on_after_one_back(tmp_path: Path) -> None:
    class Door:
        rounds = 0

        def get_json(self, path: str) -> list[str]:
            self.rounds += 1
            return []

        def post_json(self, path: str, body: object) -> None:
            raise AssertionError(path)

    door, clock = Door(), Clock()
    job = MaintainJob(every_s=600, min_free_bytes=0)
    maintainer = Maintainer(door, job, tmp_path, clock=clock, say=lambda text: None)
    done = []
    for clock.now in (NOW, NOW + 599, Y2100, Y2100 + 1, NOW, NOW + 599, NOW + 600, 0.0, 600.0):
        done.append(maintainer.look())
    assert done == [False, False, True, False, False, False, True, False, True]
    assert door.rounds == 3


def test_a_quota_of_the_day_is_that_of_the_day_it_is(tmp_path: Path) -> None:
    quarantine = Quarantine(Quarantine.Config(a_day=1, copies=99))
    for now in (NOW, Y2100, NOW + 2 * DAY_S, 0.0):
        assert quarantine.check("t", "bob", "q", f"An answer of {now}.", now) is None
        assert "quota" in (quarantine.check("t", "bob", "q", "Another answer.", now) or "")


# ------------------------------------------------------------------------------------------------- weights that act


def test_promotion_counts_turns_and_not_days(tmp_path: Path) -> None:
    rule = Promotion(shadow_events=3, canary_events=3, alarm_min=2, alarm_events=9)
    start = changes.present(None, "router", "prior")
    shadow = changes.offer(start, "router-000001", Why("learn", NOW, "passed"))
    enough = Evidence(verdicts={}, watched={"router-000001": [0.0] * 3})
    few = Evidence(verdicts={}, watched={"router-000001": [0.0] * 2})
    for now in JUMPS:
        assert step(shadow, few, rule, now) is None
        widened = step(shadow, enough, rule, now)
        assert widened is not None
        assert (widened.canary, widened.version, widened.created_at) == ("router-000001", shadow.version + 1, now)


def test_the_newest_checkpoint_is_the_last_whatever_the_clock_said(tmp_path: Path) -> None:
    clock = Clock()
    registry = Registry(tmp_path, clock=clock)
    for number, clock.now in enumerate(JUMPS, 1):
        version = registry.publish({"weights": b"%d" % number})
        now = registry.rollouts.change(
            lambda now, version=version: changes.activate(
                changes.present(now, "router", "prior"), version, Why("admin", clock.now, "")
            )
        )
        found = registry.newest_good()
        assert found is not None
        assert now is not None
        assert (found.version, now.active, now.version) == (f"router-{number:06d}", version, number)
    assert [one.created_at for one in registry.rollouts.history()] == list(JUMPS)
    assert registry.prune(2) == ["router-000001"], "the first goes first, not the one of 1970"


def test_the_learner_learns_the_same_whatever_time_turns_say(tmp_path: Path) -> None:
    def learned(name: str, times: Callable[[int], float]) -> bytes:
        with contextlib.closing(learn_rig.opened(tmp_path / name)) as log:
            for i in range(56):
                interaction, verdict = learn_rig.turn(i)
                now = times(i)
                later = dataclasses.replace(verdict, created_at=now)
                learn_rig.put(log, dataclasses.replace(interaction, created_at=now), later)
            loop = learn_rig.loop_on(tmp_path / name, log)
            loop.begin()
            while loop.turn():
                pass
            assert loop.learner.ready
            return to_bytes(loop.state())

    assert learned("jumping", lambda i: JUMPS[i % len(JUMPS)] + 1) == learned("steady", lambda i: NOW)
