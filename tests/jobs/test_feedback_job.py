"""Feedback becomes a verdict that names its interaction, and nobody can rate what is not theirs."""

from __future__ import annotations

import asyncio

import pytest

from jobs.feedback import SLICE, feedback_consumer
from operators.records import Feedback, Verdict, decode, encode
from operators.stores.topics import FEEDBACK, INTERACTIONS, JUDGEMENTS, TOPICS, dlq, session_key
from tests.writeback_rig import log_at, say

pytestmark = pytest.mark.anyio


@pytest.fixture
def log(tmp_path):
    made = log_at(tmp_path)
    yield made
    made.close()


def rate(log, name, score, tenant="acme", session="s", **fields):
    given = Feedback(
        event_id=f"feedback {name} {score}",
        interaction_id=name,
        tenant=tenant,
        session=session,
        created_at=1.0,
        score=score,
        **fields,
    )
    log.append(FEEDBACK, session_key(tenant, session), encode(given))


async def consume(log, *shares):
    """All of it, by one consumer, or by one for each of ``shares``, the partitions that are its own."""
    stop = asyncio.Event()
    consumers = [feedback_consumer(log, idle_s=0.01, partitions=own) for own in shares or (None,)]
    running = asyncio.gather(*(consumer.run(stop) for consumer in consumers))
    async with asyncio.timeout(20):
        while any(log.committed("feedback", FEEDBACK, p) < log.end(FEEDBACK, p) for p in range(TOPICS[FEEDBACK])):
            await asyncio.sleep(0.01)
    stop.set()
    await running
    events = [e for p in range(TOPICS[JUDGEMENTS]) for e in log.read(JUDGEMENTS, p, 0, 9999)]
    return [(e, v) for e in events if (v := decode(Verdict, e.value)).by == "user"]


async def test_a_verdict_by_the_user_that_names_its_interaction(log):
    for turn in range(2 * SLICE):
        say(log, "q", "a", 0.1, name=f"i{turn}", turn=turn)
    rate(log, "i7", 1.0)
    rate(log, "i500", 0.0, correction="so it is")
    (one, first), (two, second) = await consume(log)
    assert (first.interaction_id, first.score, first.judge, first.status) == ("i7", 1.0, "user", "judged")
    assert (second.score, second.correction) == (0.0, "so it is")
    for event, name in ((one, "i7"), (two, "i500")):
        place = int(event.headers["src.partition"]), int(event.headers["src.offset"])
        assert f'"interaction_id":"{name}"'.encode() in log.read(INTERACTIONS, *place, 1)[0].value
        assert event.key == "acme|s"


async def test_the_same_feedback_again_is_the_same_verdict(log):
    say(log, "q", "a", name="i")
    rate(log, "i", 1.0)
    rate(log, "i", 1.0)
    verdicts = await consume(log)
    assert len(verdicts) == 2
    assert len({verdict.event_id for _, verdict in verdicts}) == 1


async def test_several_processes_share_the_partitions(log):
    for i in range(12):
        say(log, "q", "a", name=f"i{i}", session=f"s{i}")
        rate(log, f"i{i}", 1.0, session=f"s{i}")
    halves = (0, 2), (1, 3)
    assert all(any(log.end(FEEDBACK, p) for p in half) for half in halves), "both have something to do"
    assert sorted(verdict.interaction_id for _, verdict in await consume(log, *halves)) == sorted(
        f"i{i}" for i in range(12)
    )


@pytest.mark.parametrize(
    ("name", "tenant", "session"), [("i", "beta", "s"), ("i", "acme", "t"), ("j", "acme", "s"), ("q", "acme", "s")]
)
async def test_what_is_not_theirs_or_not_there_is_a_dead_letter(log, name, tenant, session):
    say(log, "q", "a", name="i")
    rate(log, name, 1.0, tenant=tenant, session=session)
    assert await consume(log) == []
    (letter,) = log.read(dlq(FEEDBACK), 0, 0, 9)
    assert "no interaction" in letter.headers["error.message"]


async def test_a_score_out_of_range_is_a_dead_letter(log):
    say(log, "q", "a", name="i")
    rate(log, "i", 1.5)
    assert await consume(log) == []
    assert "send one from 0 to 1" in log.read(dlq(FEEDBACK), 0, 0, 9)[0].headers["error.message"]
