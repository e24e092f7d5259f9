"""Turns of other programs are judged, remembered and learned from as ours are; they need nothing of ours to send."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import time

import pytest

from jobs.evidence import Tally
from jobs.judge import judge_consumer
from operators.judge import Judge, verdict_id
from operators.records import RELATIONS, Interaction, Verdict, Writeback, decode
from operators.stores.kafka import KafkaLog
from operators.stores.topics import INTERACTIONS, JUDGEMENTS, WRITEBACKS, create_topics, dlq, partition_of
from tests.broker import NAMED, broker, config
from tests.raw_kafka import produce
from tests.scripted import Scripted
from tests.writeback_rig import Owner, document, log_at, memory_at, state, write_back

KEY = "acme|ticket-12"
LEAST = {
    "event_id": "helpdesk-1",
    "tenant": "acme",
    "session": "ticket-12",
    "query": "Where is gate 7?",
    "answer": "Gate 7 is behind hall B, next to the fountain.",
}


class Generous(Scripted):
    """A judge's model that is sure of 5, and counts how often it was asked."""

    context_tokens = 4000
    asked = 0

    async def score(self, prompt, choices):
        import numpy as np

        self.asked += 1
        return np.log([0.01, 0.01, 0.01, 0.01, 0.96])


@pytest.fixture
def memory(tmp_path):
    made = memory_at(tmp_path)
    yield made
    made.close()


@pytest.fixture
def log(tmp_path):
    made = log_at(tmp_path)
    yield made
    made.close()


def read(log, topic):
    return [event for p in range(log.topics()[topic]) for event in log.read(topic, p, 0, 999)]


async def judge(log, engine):
    stop, consumer = asyncio.Event(), judge_consumer(log, Judge(Judge.Config(), engine), idle_s=0.01)
    running = asyncio.create_task(consumer.run(stop))

    def done():
        return all(
            log.committed("judge", INTERACTIONS, p) == log.end(INTERACTIONS, p)
            for p in range(log.topics()[INTERACTIONS])
        )

    async with asyncio.timeout(20):
        while not (running.done() or await asyncio.to_thread(done)):
            await asyncio.sleep(0.01)
        stop.set()
        await running
    return [decode(Verdict, event.value) for event in read(log, JUDGEMENTS)]


def send(log, **fields):
    log.append(INTERACTIONS, KEY, json.dumps({**LEAST, **fields}).encode())


async def test_the_least_that_can_be_sent_is_judged_and_remembered_under_its_origin(log, memory):
    send(log, origin="helpdesk")
    engine = Generous([])
    (verdict,) = await judge(log, engine)
    assert (verdict.by, verdict.status, verdict.interaction_id, engine.asked) == ("model", "judged", "helpdesk-1", 1)
    assert verdict.score > 0.9
    await write_back(log, Owner(memory))
    ((_, kind, text, session, position, quality, metadata, _),) = state(memory)["nodes"]
    assert (kind, text) == ("interaction", f"{LEAST['query']}\n{LEAST['answer']}")
    assert (session, position, quality) == ("ticket-12", 0, pytest.approx(verdict.score))
    assert (metadata["origin"], metadata["interaction"]) == ("helpdesk", "helpdesk-1")
    assert metadata["judge"] == verdict.judge
    assert "tier" not in metadata
    (event,) = read(log, INTERACTIONS)
    (node,) = [node for batch in memory.vectors.scan("acme") for node in batch]
    assert node.created_at == event.timestamp, "it did not say when it was"
    assert "acme" in memory.vectors.tenants()


async def test_a_turn_without_origin_is_not_taken_for_ours(log, memory):
    send(log)
    await judge(log, Generous([]))
    await write_back(log, Owner(memory))
    assert state(memory)["nodes"][0][6]["origin"] == "outside"


async def test_a_score_that_comes_along_outranks_the_judge(log, memory):
    send(log, origin="helpdesk", score=0.8)
    send(log, origin="helpdesk", score=0.1, event_id="helpdesk-2", query="And gate 9?", answer="There is none.")
    engine = Generous([])
    verdicts = await judge(log, engine)
    assert [(v.by, v.score, v.event_id) for v in verdicts] == [
        ("user", 0.8, verdict_id("helpdesk-1")),
        ("user", 0.1, verdict_id("helpdesk-2")),
    ]
    assert engine.asked == 0
    await write_back(log, Owner(memory))
    outcomes = [decode(Writeback, event.value).outcome for event in read(log, WRITEBACKS)]
    assert outcomes == ["written", "withdrawn"]
    ((*_, quality, metadata, _),) = state(memory)["nodes"]
    assert (quality, metadata["origin"], metadata["judge"]) == (0.8, "helpdesk", "user")


async def test_its_context_may_be_nodes_of_ours_or_text_of_its_own(log, memory):
    memory.add("acme", [document("n1", "Gates 5 to 9 are behind hall B.")])
    send(
        log, context=[{"text": "Gates 5 to 9 are behind hall B.", "node_id": "n1"}, {"text": "Hall B has a fountain."}]
    )
    send(log, event_id="many", query="Which halls?", context=[{"text": "t", "node_id": f"n{i}"} for i in range(99)])
    assert len(await judge(log, Generous([]))) == 2
    await write_back(log, Owner(memory))
    assert [decode(Writeback, event.value).outcome for event in read(log, WRITEBACKS)] == ["written", "written"]
    cites = [target for _, target, relation, _ in memory.graph.edges("acme") if RELATIONS[relation] == "cites"]
    assert cites == ["n1", "n1"]
    assert read(log, dlq(JUDGEMENTS)) == []


async def test_the_router_s_evidence_leaves_out_what_no_router_decided(log):
    send(log)
    (verdict,) = await judge(log, Generous([]))
    tally = Tally(10)
    tally.add(decode(Interaction, read(log, INTERACTIONS)[0].value), verdict)
    assert dict(tally.evidence().verdicts) == {}


async def test_odd_text_is_text(log, memory):
    send(log, query="Where\0is \u202egate\u202c 7? \U0001f6a9", answer="Behind hall B,\0 next to the fountain.")
    assert [verdict.status for verdict in await judge(log, Generous([]))] == ["judged"]
    await write_back(log, Owner(memory))
    assert [decode(Writeback, event.value).outcome for event in read(log, WRITEBACKS)] == ["written"]
    assert "gate" in state(memory)["nodes"][0][2]


# ------------------------------------------------------------------------------------------------ other languages


@pytest.fixture
def kafka():
    with broker() as address, contextlib.closing(KafkaLog(config(address))) as log:
        log.open()
        create_topics(log)
        yield address, log


def by_hand(address, log, key, value):
    topic = log.config.prefix + INTERACTIONS
    return produce(address, topic, partition_of(key, 4), key.encode(), value.encode(), int(time.time() * 1000))


def by_kcat(address, log, key, value):
    kcat = shutil.which("kcat")
    if kcat is None:
        pytest.skip("no kcat: install Debian's package kcat to see this")
    met = subprocess.run([kcat, "-L", "-b", address], capture_output=True, text=True, timeout=30)
    if met.returncode and not NAMED:  # librdkafka 2.0.2, Debian 12's, can't read tansu's versions; 2.16 can
        pytest.skip(
            f"this kcat and tansu don't understand each other: name a cluster in RUVLLM_TEST_KAFKA; {met.stderr}"
        )
    topic = log.config.prefix + INTERACTIONS
    command = [kcat, "-P", "-b", address, "-t", topic, "-K", "\t", "-X", "partitioner=consistent"]
    subprocess.run(command, input=f"{key}\t{value}\n", text=True, check=True, timeout=20)


@pytest.mark.parametrize("sender", [by_hand, by_kcat])
async def test_a_producer_without_any_code_of_ours(kafka, sender):
    """Its event lies where ours of the same session lie, so that feedback finds it, and is judged."""
    address, log = kafka
    await asyncio.to_thread(sender, address, log, KEY, json.dumps({**LEAST, "origin": "helpdesk", "score": 1.0}))
    (event,) = await asyncio.to_thread(read, log, INTERACTIONS)
    assert (event.key, event.partition) == (KEY, partition_of(KEY, 4))
    assert abs(event.timestamp - time.time()) < 60
    (verdict,) = await judge(log, Generous([]))
    assert (verdict.interaction_id, verdict.score, verdict.by) == ("helpdesk-1", 1.0, "user")
    assert await asyncio.to_thread(read, log, dlq(INTERACTIONS)) == []
