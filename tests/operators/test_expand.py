"""expand: hits first in their order, then what lies around them; hits that the snapshot lacks stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from operators.errors import Retry, Stop
from operators.expand import Expand, ExpandInput
from operators.records import Embedded, Hit, Hits, Neighbourhood, Query
from operators.stores.ports import Node, Subgraph
from operators.stores.snapshot import SnapshotReader, publish

NAMES = "abcde"
VECTORS = {name: np.eye(6, dtype=np.float32)[i] for i, name in enumerate(NAMES)}
EDGES = [("a", "b", 0, 0.5), ("c", "b", 2, 1.0), ("c", "d", 3, 0.25), ("d", "e", 0, 0.75)]
QUERY = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], np.float32)


class Published:
    """A memory of one snapshot."""

    def __init__(self, directory: Path) -> None:
        nodes = [
            Node(
                node_id=name,
                kind="document",
                text=f"text {name}",
                vector=VECTORS[name],
                source=f"{name}.md",
                tokens=ord(name),
                created_at=0.0,
            )
            for name in NAMES
        ]
        publish(directory / "acme", nodes, EDGES, {})
        self.directory = directory

    def expand(self, tenant: str, node_ids: Any, **caps: Any) -> Subgraph:
        current = SnapshotReader(self.directory / tenant).current()
        assert current is not None
        return current.expand(node_ids, **caps)


def hit(name: str, i: int) -> Hit:
    return Hit(
        node_id=name,
        kind="summary",
        text=f"hit {name}",
        source="hit.md",
        domain="",
        created_at=0.0,
        quality=1.0,
        tokens=7,
        score=0.5 / (i + 1),
        similarity=0.9 - i / 10,
        text_score=0.0,
    )


def item(names: str) -> ExpandInput:
    query = Query(interaction_id="i", tenant="acme", session="s", text="?", messages=(), created_at=0.0)
    hits = tuple(hit(name, i) for i, name in enumerate(names))
    vectors = np.arange(6 * len(names), dtype=np.float32).reshape(-1, 6)
    return ExpandInput(
        query=query,
        embedded=Embedded(vector=QUERY, tokens=1, truncated=False, encoder="e"),
        hits=Hits(hits=hits, vectors=vectors, mode="hybrid"),
    )


async def expand(memory: Any, names: str, **knobs: Any) -> Neighbourhood:
    (out,) = await Expand(Expand.Config(**knobs), memory)([item(names)])
    n, m = len(out.node_ids), len(out.edge_from)
    assert all(len(column) == n for column in (out.kinds, out.texts, out.sources, out.vectors, out.hop, out.score))
    assert all(len(column) == n for column in (out.similarity, out.tokens))
    assert all(len(column) == m for column in (out.edge_to, out.edge_relation, out.edge_weight))
    dtypes = [a.dtype.name for a in (out.vectors, out.hop, out.score, out.similarity, out.tokens)]
    assert dtypes == ["float32", "int32", "float32", "float32", "int32"]
    edges = [a.dtype.name for a in (out.edge_from, out.edge_to, out.edge_relation, out.edge_weight)]
    assert edges == ["int32", "int32", "int8", "float32"]
    return out


def named(out: Neighbourhood) -> list[tuple[str, str, int]]:
    return sorted(
        (out.node_ids[s], out.node_ids[t], int(r))
        for s, t, r in zip(out.edge_from, out.edge_to, out.edge_relation, strict=True)
    )


@pytest.fixture
def memory(tmp_path: Path) -> Published:
    return Published(tmp_path)


async def test_hits_come_first_as_they_are_then_their_neighbours(memory: Published) -> None:
    out = await expand(memory, "db", hops=1)
    assert out.node_ids == ("d", "b", "c", "e", "a") or out.node_ids[:3] == ("d", "b", "c")
    assert set(out.node_ids) == set(NAMES)
    assert out.hop.tolist() == [0, 0, 1, 1, 1]
    assert out.texts[:2] == ("hit d", "hit b")
    assert out.texts[2] == "text c"
    assert (out.kinds[0], out.kinds[2], out.sources[0], out.sources[2]) == ("summary", "document", "hit.md", "c.md")
    np.testing.assert_allclose(out.score, [0.5, 0.25, 0, 0, 0])
    np.testing.assert_allclose(out.similarity[:3], [0.9, 0.8, QUERY[2]], rtol=1e-6)
    np.testing.assert_array_equal(out.vectors[:2], item("db").hits.vectors)
    np.testing.assert_array_equal(out.vectors[2], VECTORS["c"])
    assert out.tokens[:3].tolist() == [7, 7, ord("c")]
    assert named(out) == sorted((s, t, r) for s, t, r, _ in EDGES)
    assert (out.snapshot, out.truncated, out.degraded) == (1, False, ())


async def test_hits_newer_than_the_snapshot_stay_without_edges(memory: Published) -> None:
    out = await expand(memory, "xay", hops=1)
    assert out.node_ids == ("x", "a", "y", "b")
    assert out.hop.tolist() == [0, 0, 0, 1]
    assert named(out) == [("a", "b", 0)]
    assert not out.truncated
    only = await expand(memory, "xy")
    assert (only.node_ids, len(only.edge_from), only.truncated) == (("x", "y"), 0, False)


async def test_new_hits_take_the_place_of_neighbours_when_it_is_full(memory: Published) -> None:
    out = await expand(memory, "xab", hops=2, max_nodes=4)
    assert out.node_ids == ("x", "a", "b", "c")
    assert named(out) == [("a", "b", 0), ("c", "b", 2)]
    assert out.truncated


async def test_caps(memory: Published) -> None:
    out = await expand(memory, "abc", max_nodes=2)
    assert (out.node_ids, out.truncated) == (("a", "b"), True)
    out = await expand(memory, "b", hops=2, max_edges=1)
    assert (named(out), out.truncated) == ([("c", "b", 2)], True)
    out = await expand(memory, "b", hops=0)
    assert (out.node_ids, out.truncated) == (("b",), False)


async def test_no_hits_no_neighbourhood(memory: Published) -> None:
    out = await expand(memory, "")
    assert (out.node_ids, out.vectors.shape, out.snapshot, out.truncated) == ((), (0, 6), 0, False)


class Broken:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def expand(self, tenant: str, node_ids: Any, **caps: Any) -> Subgraph:
        raise self.error


async def test_a_graph_that_is_away_leaves_the_hits() -> None:
    stage = Expand(Expand.Config(), Broken(Retry("graph", "away", "wait")))
    (out,) = await stage([item("ab")])
    assert (out.node_ids, out.degraded, stage.unavailable) == (("a", "b"), ("graph",), 1)
    with pytest.raises(Stop):
        await Expand(Expand.Config(), Broken(Stop("graph", "corrupt", "restore")))([item("ab")])
