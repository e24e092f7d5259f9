"""search: what it asks of the memory, and that a memory that is away costs the context only."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from operators.errors import Reject, Retry, Stop
from operators.records import Embedded, Filter, Hit, Hits, Query
from operators.search import Search, SearchInput
from operators.stores.ports import SearchRequest

VECTOR = np.array([0.6, 0.8], np.float32)


def item(text: str = "why?", **fields: Any) -> SearchInput:
    query = Query(interaction_id="i", tenant="acme", session="s", text=text, messages=(), created_at=0.0, **fields)
    return SearchInput(query=query, embedded=Embedded(vector=VECTOR, tokens=2, truncated=False, encoder="e"))


def hit(name: str, similarity: float, text_score: float) -> Hit:
    return Hit(
        node_id=name,
        kind="document",
        text=name,
        source="",
        domain="",
        created_at=0.0,
        quality=1.0,
        tokens=1,
        score=0.1,
        similarity=similarity,
        text_score=text_score,
    )


class Fake:
    """Answers with ``hits``, or raises ``error`` for queries that say "fail"; remembers what was asked, and where."""

    def __init__(self, hits: tuple[Hit, ...] = (), error: Exception | None = None) -> None:
        self.hits, self.error = hits, error
        self.asked: list[SearchRequest] = []
        self.threads: set[int] = set()

    def search(self, request: SearchRequest) -> Hits:
        self.asked.append(request)
        self.threads.add(threading.get_ident())
        if self.error is not None and "fail" in request.text:
            raise self.error
        vectors = np.arange(2 * len(self.hits), dtype=np.float32).reshape(-1, 2)
        return Hits(hits=self.hits, vectors=vectors, mode=request.mode)


@pytest.fixture
async def started() -> AsyncIterator[Any]:
    stages: list[Search] = []

    async def make(memory: Fake, **knobs: Any) -> Search:
        stage = Search(Search.Config(**knobs), memory)
        await stage.start()
        stages.append(stage)
        return stage

    yield make
    for stage in stages:
        await stage.close()
        await stage.close()


async def test_the_request_is_the_query(started: Any) -> None:
    memory = Fake()
    stage = await started(memory, k=7, max_k=20, mode="text")
    where = Filter(domains=("d",))
    await stage([item(filter=where), item(k=3), item(k=500)])
    asked = sorted(memory.asked, key=lambda request: request.k)
    assert [request.k for request in asked] == [3, 7, 20]
    assert asked[1].filter is where
    assert all((r.tenant, r.text, r.mode) == ("acme", "why?", "text") and r.vector is VECTOR for r in asked)


async def test_a_query_may_choose_the_mode(started: Any) -> None:
    memory = Fake((hit("a", 1, 1),), Retry("memory", "disk away", "wait"))
    stage = await started(memory, mode="hybrid")
    found = await stage(
        [item("one", mode="text"), item("two", mode="vector"), item("three"), item("fail", mode="text")]
    )
    assert {request.text: request.mode for request in memory.asked} == {
        "one": "text",
        "two": "vector",
        "three": "hybrid",
        "fail": "text",
    }
    assert [hits.mode for hits in found] == ["text", "vector", "hybrid", "text"]


async def test_the_knobs_of_the_priors_reach_the_store(started: Any) -> None:
    memory = Fake()
    await (await started(memory))([item("plain")])
    await (await started(memory, recency=0.3, half_life_s=60.0, quality=0.2))([item("weighed")])
    priors = {request.text: request.prior for request in memory.asked}
    assert (priors["plain"].recency, priors["plain"].quality) == (0, 0)
    weighed = priors["weighed"]
    assert (weighed.recency, weighed.half_life_s, weighed.quality) == (0.3, 60.0, 0.2)


async def test_outputs_stand_in_the_order_of_the_inputs(started: Any) -> None:
    class Echo(Fake):
        def search(self, request: SearchRequest) -> Hits:
            return Hits(hits=(hit(request.text, 1, 1),), vectors=VECTOR[None], mode="hybrid")

    stage = await started(Echo())
    names = [f"q{i}" for i in range(20)]
    assert [hits.hits[0].node_id for hits in await stage([item(name) for name in names])] == names
    assert stage.stats.records == 20


async def test_the_event_loop_is_not_blocked(started: Any) -> None:
    memory = Fake()
    await (await started(memory))([item()])
    assert threading.get_ident() not in memory.threads


@pytest.mark.parametrize("error", [Retry("memory", "disk away", "wait"), Stop("memory", "full", "free")])
async def test_a_memory_that_is_away_costs_the_context_only(started: Any, error: Exception) -> None:
    memory = Fake((hit("a", 1, 1),), error)
    stage = await started(memory)
    away, there = await stage([item("fail"), item("fine")])
    assert (away.hits, away.degraded, away.vectors.shape, away.vectors.dtype) == ((), ("memory",), (0, 2), np.float32)
    assert ([h.node_id for h in there.hits], there.degraded) == (["a"], ())
    assert stage.unavailable == 1


@pytest.mark.parametrize("error", [Reject("memory", "bad tenant", "fix it"), ValueError()])
async def test_other_errors_are_not_hidden(started: Any, error: Exception) -> None:
    stage = await started(Fake(error=error))
    with pytest.raises(type(error)):
        await stage([item("fail")])
    assert stage.unavailable == 0


async def test_hits_that_fit_neither_way_are_dropped(started: Any) -> None:
    memory = Fake((hit("near", 0.5, 0), hit("far", 0.1, 0), hit("far but said", 0.1, 2.0)))
    (kept,) = await (await started(memory, min_similarity=0.3))([item()])
    assert [h.node_id for h in kept.hits] == ["near", "far but said"]
    np.testing.assert_array_equal(kept.vectors, [[0, 1], [4, 5]])
    (everything,) = await (await started(memory))([item()])
    assert len(everything.hits) == 3


async def test_running_before_start_stops() -> None:
    with pytest.raises(Stop, match="start"):
        await Search(Search.Config(), Fake())([item()])
