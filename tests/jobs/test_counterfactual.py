"""Idle-time counterfactuals: which turns are taken, what comes of them, and what must never come of them."""

import asyncio
import contextlib
import dataclasses

import httpx
import numpy as np
import pytest

from conf.load import load
from jobs.counterfactual import ASK, Budget, Counterfactuals, body_of
from jobs.door import Door, admin_key
from jobs.evidence import Tally
from jobs.learning.turns import row
from operators.documents import node_id
from operators.errors import Reject, Retry, Stop
from operators.learning.estimates import Bootstrap, worth
from operators.learning.holdout import as_set
from operators.records import Passage, Piece, Verdict, decode, encode
from operators.stores.removal import Receipt
from operators.stores.sqlite_log import SqliteLog
from operators.stores.topics import INTERACTIONS, JUDGEMENTS, create_topics
from pipeline.counterfactual_api import _answered
from tests import learn_rig as rig

NOW = 1000.0
SLOTS = {"135M": 0, "270M": 1}


@pytest.fixture
def log(tmp_path):
    made = SqliteLog(tmp_path / "events.db", clock=lambda: NOW)
    made.open()
    create_topics(made, 2)
    with contextlib.closing(made):
        yield made


def turn(i, **facts):
    interaction, verdict = rig.turn(i)
    route = dataclasses.replace(interaction.route, tier="270M", **facts.pop("route", {}))
    changes = {"route": route, "messages": 1, "context": (Passage(node_id="n", text="A passage."),), **facts}
    return dataclasses.replace(interaction, **changes), verdict


class World:
    """A log, what the service says, and a judge that rates by length; time is held."""

    def __init__(self, log, root, *more):
        sets = [f"data_dir={root}", "counterfactual.share=1.0", "counterfactual.share_of_time=1.0", *more]
        self.settings = load("test", overrides=sets, env={}).settings
        self.log, self.asked, self.script, self.now = log, [], [], 0.0
        self.work = self.made()

    def made(self):
        return Counterfactuals(
            self.log, self.ask, self.rate, "j", self.settings, clock=lambda: NOW, monotonic=lambda: self.now
        )

    def ask(self, path, body):
        self.asked.append((path, body))
        if self.script and (said := self.script.pop(0)):
            raise said
        return {
            "text": "12345", "tier": body["tier"], "model": "m", "finish_reason": "stop",
            "prompt_tokens": 30, "completion_tokens": 10,
        }  # fmt: skip

    async def rate(self, batch):
        (one,) = batch
        return [dataclasses.replace(rig.turn(0)[1], score=len(one.answer) / 10, judge="j")]

    def put(self, interaction, verdict):
        """The event of the verdict. The judge has dealt with the interaction."""
        rig.put(self.log, interaction, verdict)
        for partition in range(2):
            self.log.commit("judge", INTERACTIONS, partition, self.log.end(INTERACTIONS, partition))
        events = [event for partition in range(2) for event in self.log.read(JUDGEMENTS, partition, 0, 1000)]
        return next(event for event in reversed(events) if f'"{verdict.event_id}"'.encode() in event.value)

    async def take(self, interaction, verdict):
        return await self.work.handle(self.put(interaction, verdict))


@pytest.fixture
def world(log, tmp_path):
    return World(log, tmp_path)


async def test_a_turn_becomes_whole_and_nothing_else_comes_of_it(world, log):
    interaction, verdict = turn(1)
    (out,) = await world.take(interaction, verdict)
    ((path, body),) = world.asked
    assert path == ASK
    assert (body["tier"], body["query"], body["tenant"]) == ("135M", "q", "t")
    assert body["passages"][0]["text"] == "A passage."
    said = decode(Verdict, out.value)
    assert (out.topic, out.headers["ce_source"]) == (JUDGEMENTS, "/ruvllm/counterfactual")
    assert said.others == {"135M": 0.5}
    assert (said.score, said.replaces, said.interaction_id) == (verdict.score, verdict.event_id, "i1")
    assert b"12345" not in out.value, "the answer is kept nowhere"
    made = row(interaction, said, SLOTS)
    assert made["known"].tolist() == [[1, 1, 0, 0]]
    assert made["quality"][0, :2].tolist() == pytest.approx([0.5, verdict.score])
    one = as_set("whole", made)
    chances = np.array([[0.3, 0.7, 0, 0]])
    valued = worth(chances, one, np.full((1, 4), 0.9), 20.0, Bootstrap(one.session, 0.95, 100, 0))
    assert valued.dr.mean == pytest.approx(0.3 * 0.5 + 0.7 * verdict.score), "valued exactly"
    tally = Tally(10)
    tally.add(interaction, verdict)
    tally.add(interaction, said)
    assert [len(scores) for scores in tally.evidence().verdicts.values()] == [1]
    (again,) = await world.made().handle(world.put(interaction, verdict))
    assert again.headers["ce_id"] == out.headers["ce_id"] == said.event_id
    log.append(JUDGEMENTS, out.key, out.value, out.headers)
    event = [event for p in range(2) for event in log.read(JUDGEMENTS, p, 0, 99) if b'"others":{"' in event.value][-1]
    assert await world.work.handle(event) == [], "its own events are not taken again"


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"messages": 2}, {}),
        ({"messages": 0}, {}),
        ({"route": {"reason": "caller"}}, {}),
        ({"degraded": ("tier:270M→135M",)}, {}),
        ({}, {"by": "user"}),
        ({}, {"judge": "another"}),
        ({}, {"score": None, "status": "unjudged"}),
        ({}, {"replaces": "v0"}),
    ],
)
async def test_turns_that_others_cannot_be_asked_the_same_are_left(world, facts, said):
    interaction, verdict = turn(1, **facts)
    assert await world.take(interaction, dataclasses.replace(verdict, **said)) == []
    assert world.asked == []


async def test_what_was_removed_or_is_old_or_was_rated_since_is_left(world, log, tmp_path):
    folder = tmp_path / "memory" / "removed"
    folder.mkdir(parents=True)
    gone = Receipt(receipt_id="r", tenant="t", reason="", asked_at=1.0, node_ids=(node_id("t", "i1", "interaction"),))
    (folder / "r.json").write_bytes(encode(gone))
    assert await world.take(*turn(1)) == []
    world.work._clock = lambda: NOW + 2 * 86400
    assert await world.take(*turn(2)) == []
    assert world.asked == []
    world.work._clock = lambda: NOW
    interaction, verdict = turn(3)
    event = world.put(interaction, verdict)
    world.put(interaction, dataclasses.replace(verdict, event_id="u3", by="user", score=0.0))
    assert await world.work.handle(event) == []


async def test_the_share_is_taken_by_the_turn_not_by_chance(log, tmp_path):
    world = World(log, tmp_path, "counterfactual.share=0.3")
    taken = [bool(await world.take(*turn(i))) for i in range(120)]
    assert 20 <= sum(taken) <= 55
    again = World(log, tmp_path, "counterfactual.share=0.3")
    assert [bool(await again.take(*turn(i))) for i in range(12)] == taken[:12]


async def test_it_waits_for_requests_for_the_judge_and_for_its_budget(world, log):
    interaction, verdict = turn(1)
    event = world.put(interaction, verdict)
    world.script = [Retry("service (503)", "requests come first", "ask again", 2.0, 503)]
    with pytest.raises(Retry, match="requests come first"):
        await world.work.handle(event)
    log.append(INTERACTIONS, "t|s0", encode(turn(2)[0]), {})
    with pytest.raises(Retry, match="judge has work"):
        await world.work.handle(event)
    world.put(*turn(4))
    assert await world.work.handle(event)
    world.work.budget.spend(world.settings.counterfactual.tokens_per_hour, 0.0)
    with pytest.raises(Retry, match="budget"):
        await world.take(*turn(5))
    world.now += 3600.0
    assert await world.take(*turn(5))


def test_a_share_of_the_time_and_tokens_of_the_last_hour():
    now = 0.0
    config = load("test", overrides=["counterfactual.tokens_per_hour=100"], env={}).settings.counterfactual
    budget = Budget(config, lambda: now)
    assert budget.wait_s() == 0
    budget.spend(10, 3.0)
    assert budget.wait_s() == pytest.approx(27.0), "3 s of work are a tenth of 30 s"
    now = 27.0
    assert budget.wait_s() == 0
    budget.spend(90, 0.0)
    assert budget.wait_s() == pytest.approx(3600 - 27), "the first ten are an hour old then"
    now = 3600.0
    assert budget.wait_s() == 0


async def test_a_tier_that_is_away_stays_unknown_and_a_wrong_key_ends_the_job(world):
    world.script = [Reject("service (404)", "tier 135M is not loaded", "leave it out", 404, "tier", "model_not_found")]
    assert await world.take(*turn(1)) == []
    world.script = [Reject("service (401)", "no valid key", "send another", 401)]
    with pytest.raises(Stop):
        await world.take(*turn(3))


# ---------------------------------------------------------------------------------------------------- the service's end


@pytest.mark.slow
def test_the_service_answers_with_the_named_tier_and_keeps_nothing(inproc):
    interaction, _ = turn(1, query="How tall is the Vell lighthouse?")
    with contextlib.closing(SqliteLog(inproc.data_dir / "events.sqlite")) as log:
        log.open()
        before = [log.end(INTERACTIONS, partition) for partition in range(2)]
        with contextlib.closing(Door(inproc.url, admin_key(inproc.data_dir, {}))) as door:
            for tier in SLOTS:
                said = door.post_json(ASK, body_of(interaction, tier))
                assert said["tier"] == tier
                assert said["completion_tokens"] > 0
                assert said["prompt_tokens"] > 10
            again = door.post_json(ASK, body_of(interaction, tier) | {"temperature": 0.0})
            assert again["text"] == door.post_json(ASK, body_of(interaction, tier) | {"temperature": 0.0})["text"]
            with pytest.raises(Reject) as unknown:
                door.post_json(ASK, body_of(interaction, "13B"))
            assert unknown.value.code == "model_not_found"
            question = {"model": "135M", "stream": True, "messages": [{"role": "user", "content": "Count to ten."}]}
            with httpx.stream("POST", f"{inproc.url}/v1/chat/completions", json=question, trust_env=False) as held:
                lines = held.iter_lines()
                next(lines)
                with pytest.raises(Retry, match=r"requests come first|at work"):
                    door.post_json(ASK, body_of(interaction, "135M"))
                assert list(lines)[-2:]
        assert sum(log.end(INTERACTIONS, p) - at for p, at in enumerate(before)) <= 1, "the chat's own, if it is there"
    with contextlib.closing(Door(inproc.url, "wrong")) as wrong, pytest.raises(Reject):
        wrong.post_json(ASK, body_of(interaction, "135M"))


async def test_a_request_that_comes_ends_the_answer():
    ended = asyncio.Event()

    class Service:
        def __init__(self):
            self.backend = self

        async def stream(self, item):
            try:
                for _ in range(10):
                    yield Piece(text="word ")
            finally:
                ended.set()

    quiet = iter([False, False, True])
    with pytest.raises(Retry, match="a request came"):
        await _answered(Service(), None, lambda: next(quiet))
    assert ended.is_set()
    with pytest.raises(Stop):
        await _answered(Service(), None, lambda: False)
