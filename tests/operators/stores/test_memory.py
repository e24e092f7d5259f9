"""The memory keeps its stores in step, whatever fails between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from operators.errors import Reject, Retry, Skip, Stop
from operators.records import RELATIONS, Kind
from operators.stores.edges import EdgeMaker
from operators.stores.kuzu_graph import KuzuGraph
from operators.stores.lance import LanceStore
from operators.stores.memory import Memory
from operators.stores.ports import Edge, Node, SearchRequest

DIM = 8
NOW = 1_000.0
WALK: dict[str, Any] = {"hops": 2, "max_nodes": 100, "max_edges": 100, "decay": 0.5}


def graph_at(root: Path) -> KuzuGraph:
    return KuzuGraph(root / "graph.db", KuzuGraph.Config(buffer_pool_bytes=64 << 20, max_bytes=1 << 30))


def build(root: Path, graph: Any = None, every: float = 0, clock: Callable[[], float] = lambda: NOW) -> Memory:
    config = Memory.Config(
        edges=EdgeMaker.Config(similar_threshold=0.9, similar_top=2, same_source_max=2), publish_every_s=every
    )
    vectors = LanceStore(root / "vectors", DIM, clock=clock)
    return Memory(config, vectors, graph or graph_at(root), root / "snapshots", clock=clock, monotonic=clock)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Memory]:
    made = build(tmp_path)
    made.open()
    yield made
    made.close()
    made.close()


def unit(*values: float) -> Any:
    vector = np.zeros(DIM, np.float32)
    vector[: len(values)] = values
    return vector / np.linalg.norm(vector)


def chunk(i: int, vector: Any, source: str = "a.md", **fields: Any) -> Node:
    fields = {"kind": "document", "created_at": NOW} | fields
    name = f"{source}#{i}"
    return Node(node_id=name, text=f"chunk {i}", vector=vector, source=source, position=i, **fields)


def axis(i: int) -> Any:
    return np.eye(DIM, dtype=np.float32)[i]


CHUNKS = [chunk(i, axis(i)) for i in range(5)]
WANT = {  # chain, and a star from the first to at most two places on; nothing is similar
    ("a.md#0", "a.md#1", "next_chunk"),
    ("a.md#1", "a.md#2", "next_chunk"),
    ("a.md#2", "a.md#3", "next_chunk"),
    ("a.md#3", "a.md#4", "next_chunk"),
    ("a.md#0", "a.md#1", "same_source"),
    ("a.md#0", "a.md#2", "same_source"),
}


def edges(memory: Memory, tenant: str = "acme") -> set[tuple[str, str, str]]:
    return {(s, t, RELATIONS[r]) for s, t, r, _ in memory.graph.edges(tenant)}


def state(memory: Memory, tenant: str = "acme") -> tuple[Any, ...]:
    """All that a memory shows: nodes, edges with weights, and the snapshot's view of both."""
    around = memory.expand(tenant, [n.node_id for n in CHUNKS], **WALK)
    seen = sorted(
        (around.node_ids[s], around.node_ids[t], int(r), float(w))
        for s, t, r, w in zip(around.edge_from, around.edge_to, around.edge_relation, around.edge_weight, strict=True)
    )
    stored = sorted(n.node_id for batch in memory.vectors.scan(tenant) for n in batch)
    return stored, sorted(memory.graph.edges(tenant)), sorted(around.node_ids), seen


def test_chunks_get_their_edges_and_are_found(memory: Memory) -> None:
    added = memory.add("acme", CHUNKS)
    assert (added.new, added.duplicate, added.edges) == (tuple(n.node_id for n in CHUNKS), (), len(WANT))
    assert edges(memory) == WANT
    around = memory.expand("acme", ["a.md#4"], **WALK)
    assert set(around.node_ids) == {"a.md#4", "a.md#3", "a.md#2"}
    hits = memory.search(SearchRequest(tenant="acme", text="chunk", vector=axis(3), k=1))
    assert hits.hits[0].node_id == "a.md#3"


def test_batches_join_at_their_borders_in_any_order(memory: Memory) -> None:
    for part in (CHUNKS[:2], CHUNKS[3:], CHUNKS[2:3]):
        memory.add("acme", part)
    assert edges(memory) == WANT


def test_the_border_is_known_after_a_restart(tmp_path: Path) -> None:
    for part in (CHUNKS[:2], CHUNKS[2:]):
        memory = build(tmp_path)
        memory.open()
        memory.add("acme", part)
        memory.close()
    memory = build(tmp_path)
    memory.open()
    assert edges(memory) == WANT
    memory.close()


def test_adding_again_adds_nothing(memory: Memory) -> None:
    memory.add("acme", CHUNKS[:3])
    before, version = state(memory), memory.expand("acme", [], **WALK).snapshot
    again = memory.add("acme", [*CHUNKS[:3], CHUNKS[0]])
    assert (again.new, len(again.duplicate), again.edges) == ((), 3, 0)
    assert state(memory) == before
    assert memory.expand("acme", [], **WALK).snapshot == version
    mixed = memory.add("acme", CHUNKS[2:4])
    assert (mixed.new, mixed.duplicate) == (("a.md#3",), ("a.md#2",))


def test_similar_nodes_are_joined_once_with_the_cosine(memory: Memory) -> None:
    memory.add("acme", [chunk(0, unit(1, 0), "x"), chunk(0, unit(1, 0.1), "y"), chunk(0, unit(0, 1), "z")])
    assert edges(memory) == {("x#0", "y#0", "similar")}
    ((_, _, _, weight),) = memory.graph.edges("acme")
    assert weight == pytest.approx(float(unit(1, 0) @ unit(1, 0.1)), abs=1e-6)
    # at most two edges for a new node, to the most similar of those that were there
    memory.add("acme", [chunk(0, unit(1, 0.05), "w")])
    memory.add("acme", [chunk(0, unit(1, 0.2), "v")])
    new = {e for e in edges(memory) if "v#0" in e}
    assert new == {("v#0", "y#0", "similar"), ("v#0", "w#0", "similar")}


def test_edges_that_the_caller_knows(memory: Memory) -> None:
    memory.add("acme", CHUNKS[:1])
    turn = Node(node_id="turn", kind="interaction", text="asked", vector=axis(7), created_at=NOW)
    cites = Edge(source_id="turn", target_id="a.md#0", relation="cites", weight=1.0, created_at=NOW)
    assert memory.add("acme", [turn], [cites]).edges == 1
    assert memory.add("acme", [turn], [cites]).edges == 0
    assert edges(memory) == {("turn", "a.md#0", "cites")}
    with pytest.raises(Skip, match="nope"):
        memory.add("acme", [], [Edge(source_id="turn", target_id="nope", relation="cites", weight=1.0, created_at=NOW)])


def test_tenants_do_not_meet(memory: Memory) -> None:
    memory.add("acme", CHUNKS[:2])
    memory.add("umbra", CHUNKS[1:3])
    assert edges(memory, "umbra") == {("a.md#1", "a.md#2", "next_chunk"), ("a.md#1", "a.md#2", "same_source")}
    assert memory.expand("acme", ["a.md#2"], **WALK).node_ids == ()
    assert memory.expand("nobody", ["a.md#2"], **WALK).snapshot == 0
    for call in (lambda: memory.add("../acme", CHUNKS), lambda: memory.expand("a/b", [], **WALK)):
        with pytest.raises(Reject, match="tenant"):
            call()


class Failing:
    """A graph whose ``upsert`` fails as often as it is told."""

    def __init__(self, inner: KuzuGraph, failures: int) -> None:
        self._inner, self.failures = inner, failures

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def upsert(
        self, tenant: str, node_ids: Sequence[str], kinds: Sequence[Kind], edges: Sequence[Edge], created_at: float
    ) -> None:
        if self.failures:
            self.failures -= 1
            raise Retry("graph", "lost power", "add again")
        self._inner.upsert(tenant, node_ids, kinds, edges, created_at)


@pytest.mark.parametrize("restart", [False, True])
def test_a_crash_after_the_vectors_is_repaired_by_adding_again(tmp_path: Path, restart: bool) -> None:
    clean = build(tmp_path / "clean")
    clean.open()
    clean.add("acme", CHUNKS[:2])
    clean.add("acme", CHUNKS[2:])
    want = state(clean)
    clean.close()

    torn = build(tmp_path / "torn", Failing(graph_at(tmp_path / "torn"), 0))
    torn.open()
    torn.add("acme", CHUNKS[:2])
    torn.graph.failures = 1  # type: ignore[attr-defined]
    with pytest.raises(Retry, match="lost power"):
        torn.add("acme", CHUNKS[2:])
    assert torn.vectors.count("acme") == 5  # the crash came after the write, or this test shows nothing
    assert torn.graph.count("acme")[0] == 2
    if restart:
        torn.close()
        torn = build(tmp_path / "torn")
        torn.open()
    again = torn.add("acme", CHUNKS[2:])
    assert again.new == tuple(n.node_id for n in CHUNKS[2:])
    assert state(torn) == want
    assert torn.add("acme", CHUNKS).new == ()
    torn.close()


def test_others_may_be_added_before_the_repair(tmp_path: Path) -> None:
    torn = build(tmp_path, Failing(graph_at(tmp_path), 1))
    torn.open()
    with pytest.raises(Retry):
        torn.add("acme", CHUNKS[:2])
    torn.add("acme", CHUNKS[2:])
    torn.add("acme", CHUNKS[:2])
    assert {e for e in edges(torn) if e[2] == "next_chunk"} == {e for e in WANT if e[2] == "next_chunk"}
    torn.close()


def test_open_publishes_what_a_crash_left_unpublished(tmp_path: Path) -> None:
    memory = build(tmp_path)
    memory.open()
    memory.add("acme", CHUNKS[:2])
    memory.vectors.close()  # as kill -9 would: written, never published
    memory.graph.upsert("acme", ["a.md#9"], ["document"], [], NOW)
    memory.vectors.open()
    memory.vectors.upsert("acme", [chunk(9, axis(6))])
    memory.graph.close()
    memory.vectors.close()
    again = build(tmp_path)
    again.open()
    assert again.expand("acme", ["a.md#9"], **WALK).node_ids == ("a.md#9",)
    version = again.expand("acme", [], **WALK).snapshot
    assert version == 2
    again.close()
    third = build(tmp_path)
    third.open()
    assert third.expand("acme", [], **WALK).snapshot == version  # nothing new, nothing published
    third.close()


def test_publishing_keeps_its_pace(tmp_path: Path) -> None:
    now = [NOW]
    memory = build(tmp_path, every=10, clock=lambda: now[0])
    memory.open()
    memory.add("acme", CHUNKS[:1])
    assert (memory.staleness("acme"), memory.staleness("nobody")) == (0.0, 0.0)
    now[0] += 4
    memory.add("acme", CHUNKS[1:2])
    assert memory.expand("acme", ["a.md#1"], **WALK).node_ids == ()
    now[0] += 5
    assert memory.publish_due() == []
    assert memory.staleness("acme") == 5
    now[0] += 1
    assert memory.publish_due() == ["acme"]
    assert memory.publish_due() == []
    assert memory.staleness("acme") == 0
    assert memory.expand("acme", ["a.md#1"], **WALK).node_ids == ("a.md#1", "a.md#0")
    memory.add("acme", CHUNKS[2:3])
    memory.close()
    reader = memory.reader("acme").current()
    assert reader is not None
    assert len(reader) == 3


def test_expired_nodes_leave_the_snapshot(tmp_path: Path) -> None:
    now = [NOW]
    memory = build(tmp_path, clock=lambda: now[0])
    memory.open()
    memory.add("acme", [chunk(0, axis(0)), chunk(1, axis(1), expires_at=NOW + 5)])
    assert set(memory.expand("acme", ["a.md#0"], **WALK).node_ids) == {"a.md#0", "a.md#1"}
    now[0] += 5
    memory.publish("acme")
    assert memory.expand("acme", ["a.md#0"], **WALK).node_ids == ("a.md#0",)
    memory.close()


def test_a_graph_that_does_not_open_closes_the_vectors(tmp_path: Path) -> None:
    (tmp_path / "graph.db").mkdir()
    memory = build(tmp_path)
    with pytest.raises(Stop, match="can't open"):
        memory.open()
    with pytest.raises(Stop, match="open"):
        memory.vectors.upsert("acme", CHUNKS[:1])


def test_turns_of_a_session_are_joined_by_next_turn_and_by_nothing_of_their_source(memory: Memory) -> None:
    turns = [
        Node(
            node_id=f"{session}{i}",
            kind="interaction",
            text=f"turn {i}",
            vector=axis(4 * (session == "t") + i),
            session=session,
            source="chat.log",
            position=i,
            created_at=NOW,
        )
        for session in ("s", "t")
        for i in (0, 1, 3)
    ]
    memory.add("acme", turns[1:])
    memory.add("acme", turns[:1])  # the first one late: the edge is made from its side
    assert edges(memory) == {(f"{s}{i}", f"{s}{j}", "next_turn") for s in "st" for i, j in ((0, 1), (1, 3))}
