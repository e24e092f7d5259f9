"""Large tenants: the index finds what a look at every row finds; writes, removals and loading at the same time."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from operators.records import Filter
from operators.stores import fusion, kept, large
from operators.stores.faiss_index import FaissIndex
from operators.stores.kept import Kept
from operators.stores.lance import LanceStore
from operators.stores.lance_table import OpenTable
from operators.stores.large import Large
from operators.stores.packed import Chosen, PackedNodes
from operators.stores.ports import Node, SearchRequest
from operators.stores.resident import Resident

DIM, ROWS, NOW, DEADLINE = 32, 4000, 1000.0, 60.0
RNG = np.random.default_rng(0)
VOCABULARY = np.array([f"w{i}" for i in range(3000)])
SHARE = 1 / np.arange(1, len(VOCABULARY) + 1)
TOPICS = RNG.standard_normal((200, DIM))


def unit(vector: Any) -> Any:
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def words(count: int) -> str:
    return " ".join(RNG.choice(VOCABULARY, count, p=SHARE / SHARE.sum()))


def turn(i: int, **fields: Any) -> Node:
    """Turn ``i``, in sessions of 20 that have a topic and a speaker every other turn; words by Zipf's law."""
    session = i // 20
    about = TOPICS[session % 200] + RNG.standard_normal(DIM)
    name = ("Alma", "Bram")[i % 2]
    text = f"{name}: {words(int(RNG.integers(3, 15)))} topic{session % 200}"
    fields = {"text": text, "vector": unit(about), "created_at": float(i % 900), "domain": f"d{i % 40}"} | fields
    return Node(node_id=f"n{i}", kind="document", session=f"s{session}", position=i % 20, **fields)


TURNS = [turn(i) for i in range(ROWS)]


def built(nodes: Any = TURNS, exact: int = 100) -> Large:
    rows = Large(DIM, str.split, 2 * ROWS, exact)
    rows.load(nodes)
    rows.ready()
    return rows


def resident(nodes: Any = TURNS) -> Resident:
    rows = Resident(DIM, str.split)
    rows.put(nodes)
    return rows


@pytest.fixture(scope="module")
def both() -> tuple[Large, Resident]:
    """The same rows both ways; tests only read them."""
    return built(), resident()


def ask(rows: Resident, text: str, vector: Any, k: int = 10, now: float = NOW, **fields: Any) -> Any:
    return fusion.search_resident(rows, SearchRequest(tenant="t", text=text, vector=vector, k=k, **fields), now).hits


def ids(hits: Any) -> list[str]:
    return [hit.node_id for hit in hits]


@pytest.mark.parametrize("mode", ["hybrid", "vector", "text"])
@pytest.mark.parametrize(
    "where",
    [
        Filter(),
        Filter(domains=("d1",)),  # few pass: all of them are looked at
        Filter(domains=tuple(f"d{i}" for i in range(20))),
        Filter(created_from=300.0),
        Filter(sessions=("none",)),
    ],
)
def test_the_best_ten_are_those_of_a_look_at_every_row(both: tuple[Large, Resident], mode: Any, where: Filter) -> None:
    indexed, exact = both
    assert indexed._index is not None
    assert len(indexed._index) == ROWS
    same, first, total = 0, 0, 0
    for query in range(40):
        vector, text = unit(TOPICS[query] + RNG.standard_normal(DIM)), f"Bram {words(4)} topic{query}"
        got, want = (ask(rows, text, vector, mode=mode, filter=where) for rows in (indexed, exact))
        assert len(got) == len(want)
        scores = {hit.node_id: hit for hit in want}
        for hit in got:
            if hit.node_id in scores:
                theirs = scores[hit.node_id]
                assert (hit.score, hit.similarity, hit.text_score) == pytest.approx(
                    (theirs.score, theirs.similarity, theirs.text_score), rel=1e-3, abs=1e-5
                )
        same, total = same + len(set(ids(got)) & set(scores)), total + len(want)
        first += ids(got)[:1] == ids(want)[:1]
    assert same >= 0.95 * total
    assert first >= 38


def test_the_index_is_what_finds_them() -> None:
    rows = built()
    named = rows._index.search(TURNS[7].vector, 64)  # type: ignore[union-attr]
    assert 7 in named
    assert 10 < len(named) <= 64


def test_of_rows_that_pass_the_index_names_only_these() -> None:
    vectors = np.stack([node.vector for node in TURNS])
    index = FaissIndex(vectors[:2000], ROWS)
    assert len(index) == 0
    index.add(vectors)
    passes = np.arange(ROWS) % 50 == 3
    named = index.search(vectors[53], 64, passes)
    assert 53 in named
    assert passes[named].all()
    assert len(named) > 40


@pytest.mark.parametrize(
    ("where", "filters"), [(Filter(), False), (Filter(domains=("d1",)), True), (Filter(created_to=0.0), True)]
)
def test_a_search_without_a_filter_pays_for_none(monkeypatch: pytest.MonkeyPatch, where: Filter, filters: bool) -> None:
    """A mask of a million rows costs more than the search."""
    rows, seen = built(), []
    passing = rows._passing
    monkeypatch.setattr(rows, "_passing", lambda *args: seen.append(passing(*args)) or seen[-1])
    ask(rows, "Bram", TURNS[7].vector, filter=where)
    assert [mask is not None for mask in seen] == [filters]


def test_what_is_written_is_found_at_once_and_what_is_removed_is_gone_at_once() -> None:
    rows = built(TURNS[:1500])
    fresh = [turn(5000 + i, text=f"only{i} here") for i in range(40)]
    rows.put(fresh)
    for i, node in enumerate(fresh):
        for mode in ("vector", "text", "hybrid"):
            assert ids(ask(rows, f"only{i}", node.vector, k=1, mode=mode)) == [node.node_id]
    changed = dataclasses.replace(fresh[0], text="quite another thing", vector=unit(-fresh[0].vector))
    rows.put([changed])
    assert ids(ask(rows, "only0", fresh[0].vector, mode="text")) == []
    assert ids(ask(rows, "quite another", changed.vector, k=1)) == [changed.node_id]
    rows.remove([node.node_id for node in fresh])
    gone = {node.node_id for node in fresh}
    for i, node in enumerate(fresh):
        assert gone.isdisjoint(ids(ask(rows, f"only{i}", node.vector)))
    assert len(rows) == 1500
    again = resident(TURNS[:1500])
    query, vector = f"topic3 {words(3)}", unit(TOPICS[3])
    got, want = (ask(side, query, vector, mode="text") for side in (rows, again))
    assert {h.node_id: h.score for h in got} == pytest.approx({h.node_id: h.score for h in want}, rel=1e-4)


def test_expired_rows_are_not_found_and_say_nothing_of_their_neighbours() -> None:
    nodes = [turn(i, expires_at=500.0 if i % 3 == 0 else 0.0) for i in range(800)]
    indexed, exact = built(nodes), resident(nodes)
    for query in range(10):
        vector, text = nodes[3 * query].vector, nodes[3 * query].text
        assert ids(ask(indexed, text, vector, now=499.0, k=1)) == [f"n{3 * query}"]
        got, want = (ask(rows, text, vector, now=500.0) for rows in (indexed, exact))
        assert not [name for name in ids(got) if int(name[1:]) % 3 == 0]
        assert len(set(ids(got)) & set(ids(want))) >= 9


def test_what_is_written_while_the_table_is_read_is_newer_and_what_is_removed_stays_away() -> None:
    rows = Large(DIM, str.split, ROWS, 100)
    rows.put([dataclasses.replace(TURNS[0], text="newer")])
    rows.remove(["n1", "n2"])
    rows.put([dataclasses.replace(TURNS[2], text="back")])
    rows.load(TURNS[:200])
    rows.ready()
    assert len(rows) == 199
    assert "n1" not in rows
    assert ids(ask(rows, "newer", TURNS[0].vector, mode="text")) == ["n0"]
    assert ids(ask(rows, "back", TURNS[2].vector, mode="text")) == ["n2"]
    rows.load([TURNS[1]])
    assert "n1" in rows  # only what was removed while it was loading stays away


def test_twice_the_rows_get_a_new_index() -> None:
    rows = built(TURNS[:300])
    first = rows._index
    for begin in range(300, 1000, 100):
        rows.put(TURNS[begin : begin + 100])
        if rows.building is not None:
            rows.building.join(DEADLINE)
    assert rows.building is not None
    assert rows._index is not first
    assert rows._index is not None
    assert rows._index.planned > 600
    for i in range(0, 1000, 37):
        assert ids(ask(rows, "", TURNS[i].vector, k=1, mode="vector")) == [f"n{i}"]


def test_rows_mostly_replaced_ask_to_be_loaded_anew() -> None:
    rows = built(TURNS[:150], exact=50)
    for version in range(3):
        assert rows.worn == (version >= 2)
        rows.put([dataclasses.replace(node, text=f"version {version}") for node in TURNS[:150]])


def test_nodes_are_unpacked_as_they_were() -> None:
    odd = turn(1, text="naïve \U0001f600", quality=0.1 + 0.2, metadata={"k": "v"}, expires_at=1e9 + 1 / 3)
    packed = PackedNodes(lambda row: np.full(DIM, row, np.float32))
    packed.append(TURNS[0])
    packed.append(odd)
    for field in dataclasses.fields(Node):
        if field.name != "vector":
            assert getattr(packed[1], field.name) == getattr(odd, field.name), field.name
    assert packed[1].vector[0] == 1
    assert [node.node_id for node in packed[0:2]] == ["n0", "n1"]
    chosen = Chosen(packed, [1])
    assert chosen[0] is chosen[0]
    assert [node.node_id for node in chosen] == ["n1"]


# ---------------------------------------------------------------------------------------------------- in the store


class Gate:
    """Reading the table waits at the gate until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.opened, read = threading.Event(), threading.Event(), OpenTable.read

        def gated(table: OpenTable, size: int = 1024) -> Iterator[list[Node]]:
            if size == kept.PIECE:
                self.reached.set()
                assert self.opened.wait(DEADLINE)
            yield from read(table, size)

        monkeypatch.setattr(OpenTable, "read", gated)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A store whose tenants get an index from 200 rows on, loaded in the background."""
    monkeypatch.setattr(kept, "AT_ONCE", 0)
    made: list[LanceStore] = []

    def one(**config: Any) -> LanceStore:
        config = {"refresh_s": 0, "resident_rows": 200} | config
        made.append(LanceStore(tmp_path, DIM, LanceStore.Config(**config), lambda: NOW))
        made[-1].open()
        return made[-1]

    yield one
    for store in made:
        store.close()


def settled(store: LanceStore) -> Kept:
    """The tenant's rows in memory, once loading has ended."""
    store.count("t")
    held = store._open["t"].kept
    assert held.loading is not None
    held.loading.join(DEADLINE)
    assert not held.loading.is_alive()
    return held


def found(store: LanceStore, text: str, vector: Any, k: int = 10) -> list[tuple[str, float]]:
    hits = store.search(SearchRequest(tenant="t", text=text, vector=vector, k=k)).hits
    return [(hit.node_id, round(hit.score, 5)) for hit in hits]


def test_a_tenant_that_grows_is_searched_all_the_time_and_the_same(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make()
    store.upsert("t", TURNS[:200])
    gate = Gate(monkeypatch)
    store.upsert("t", TURNS[200:250])
    assert gate.reached.wait(DEADLINE)
    held = store._open["t"].kept
    assert type(held.rows) is Resident  # answers until the other is ready
    store.upsert("t", TURNS[250:260])
    store.remove("t", ["n5"])
    before = [found(store, TURNS[i].text, TURNS[i].vector) for i in (3, 255)]
    assert [hits[0][0] for hits in before] == ["n3", "n255"]
    gate.opened.set()
    assert type(settled(store).rows) is Large
    assert len(held.rows) == store.count("t") == 259  # type: ignore[arg-type]
    assert [found(store, TURNS[i].text, TURNS[i].vector) for i in (3, 255)] == before
    assert store.existing("t", ["n3", "n5"]) == {"n3"}


def test_while_a_large_tenant_is_opened_lancedb_answers_and_afterwards_all_is_as_before(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large, "EXACT", 100)
    first = make()
    first.upsert("t", TURNS[:1000])
    first.upsert("t", [dataclasses.replace(TURNS[7], text="changed words")])
    first.remove("t", ["n9"])
    settled(first)
    queries = [(TURNS[i].text, TURNS[i].vector) for i in range(0, 1000, 50)]
    before = [found(first, *query) for query in queries]
    assert first._open["t"].kept.rows._index is not None  # type: ignore[union-attr]
    first.close()
    second = make()
    gate = Gate(monkeypatch)
    assert found(second, *queries[0])[0][0] == "n0"
    held = second._open["t"].kept
    assert held.rows is None
    second.upsert("t", [turn(5000, text="written meanwhile")])
    second.remove("t", ["n5000"])
    gate.opened.set()
    settled(second)
    assert type(held.rows) is Large
    same = [len(set(a) & set(b)) for a, b in zip(before, [found(second, *q) for q in queries], strict=True)]
    assert sum(same) >= 0.95 * sum(map(len, before))


def test_a_search_waits_for_no_writer(make: Any) -> None:
    store = make()
    store.upsert("t", TURNS[:50])
    answered: list[Any] = []
    with store._open["t"].lock:  # somebody writes, or tidies up
        asking = threading.Thread(target=lambda: answered.append(found(store, TURNS[3].text, TURNS[3].vector)))
        asking.start()
        asking.join(DEADLINE)
        assert answered
    assert answered[0][0][0] == "n3"


def test_more_hits_than_the_index_names_come_from_lancedb(make: Any) -> None:
    store = make()
    store.upsert("t", TURNS[:400])
    assert type(settled(store).rows) is Large
    assert len(found(store, "", TURNS[0].vector, k=300)) == 300


def test_tenants_above_the_limit_and_failing_indexes_are_answered_by_lancedb(
    make: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = make(approximate_rows=300)
    store.upsert("t", TURNS[:250])
    assert type(settled(store).rows) is Large
    store.upsert("t", TURNS[250:301])
    assert store._open["t"].kept.rows is None
    assert found(store, TURNS[3].text, TURNS[3].vector)[0][0] == "n3"
    store.close()
    broken = make()
    monkeypatch.setattr(Large, "ready", lambda self: 1 / 0)
    with caplog.at_level(logging.WARNING, "ruvllm.memory"):
        assert settled(broken).rows is None
    assert "division by zero" in caplog.text
    assert found(broken, TURNS[3].text, TURNS[3].vector)[0][0] == "n3"
