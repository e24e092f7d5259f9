"""The published snapshot: what is written is read, versions change under a reader's feet, the walk is right."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.errors import Stop
from operators.stores import csr, snapshot
from operators.stores.ports import Node
from operators.stores.snapshot import Snapshot, SnapshotReader, publish

DIM = 4
ALL: dict[str, Any] = {"max_nodes": 10_000, "max_edges": 10_000, "decay": 0.5}


def nodes(names: Any) -> list[Node]:
    return [
        Node(
            node_id=name,
            kind="summary" if i % 2 else "document",
            text=f"text of {name} é日\U0001f600",
            vector=np.full(DIM, ord(name[0]), np.float32),
            source=f"{name}.md" if i else "",
            tokens=i,
            created_at=0.0,
        )
        for i, name in enumerate(names)
    ]


def snap(directory: Path, names: Any, edges: Any = ()) -> Snapshot:
    publish(directory, nodes(names), edges, {})
    current = SnapshotReader(directory).current()
    assert current is not None
    return current


EDGES = [("a", "b", 0, 0.5), ("c", "b", 2, 1.0), ("c", "d", 3, 0.25), ("d", "e", 0, 0.75), ("a", "b", 4, 0.125)]


def test_nodes_and_edges_come_back(tmp_path: Path) -> None:
    read = snap(tmp_path / "acme", "edcbax", EDGES)
    around = read.expand(["b", "nope", "b", "x"], hops=1, **ALL)
    assert around.node_ids == ("b", "x", "c", "a")  # seeds as asked, then by worth: 1.0 over 0.5
    assert (around.seeds, around.snapshot, around.truncated) == (2, 1, False)
    want = {node.node_id: node for node in nodes("edcbax")}
    for i, name in enumerate(around.node_ids):
        assert (around.texts[i], around.sources[i], around.kinds[i], around.tokens[i]) == (
            want[name].text,
            want[name].source,
            want[name].kind,
            want[name].tokens,
        )
        np.testing.assert_array_equal(around.vectors[i], want[name].vector)
    edges = list(
        zip(
            [around.node_ids[i] for i in around.edge_from],
            [around.node_ids[i] for i in around.edge_to],
            around.edge_relation.tolist(),
            around.edge_weight.tolist(),
            strict=True,
        )
    )
    assert sorted(edges) == [("a", "b", 0, 0.5), ("a", "b", 4, 0.125), ("c", "b", 2, 1.0)]
    assert around.hop.tolist() == [0, 0, 1, 1]
    assert [
        a.dtype.name for a in (around.vectors, around.tokens, around.hop, around.edge_from, around.edge_relation)
    ] == [
        "float32",
        "int32",
        "int32",
        "int32",
        "int8",
    ]


def test_hops_reach_both_ways(tmp_path: Path) -> None:
    read = snap(tmp_path, "abcdex", EDGES)
    reached = [set(read.expand(["a"], hops=hops, **ALL).node_ids) for hops in range(5)]
    assert reached == [{"a"}, {"a", "b"}, {"a", "b", "c"}, {"a", "b", "c", "d"}, {"a", "b", "c", "d", "e"}]
    assert read.expand([], hops=2, **ALL).node_ids == ()
    assert read.expand(["nope"], hops=2, **ALL).seeds == 0


def test_a_cap_on_nodes_keeps_the_worthiest(tmp_path: Path) -> None:
    edges = [("a", "b", 0, 0.2), ("a", "c", 0, 0.9), ("c", "d", 0, 0.9), ("b", "e", 0, 1.0)]
    read = snap(tmp_path, "abcde", edges)
    caps = {"max_edges": 99, "decay": 0.5}
    # worth: c 0.45, d 0.2025, b 0.1, e 0.05
    for most, want in ((5, "acdbe"), (4, "acdb"), (3, "acd"), (2, "ac"), (1, "a")):
        around = read.expand(["a"], hops=2, max_nodes=most, **caps)
        assert ("".join(around.node_ids), around.truncated) == (want, most < 5)
    two = read.expand(["a", "b", "c"], hops=2, max_nodes=2, **caps)
    assert (two.node_ids, two.seeds, two.truncated) == (("a", "b"), 2, True)


def test_a_cap_on_edges_keeps_the_heaviest(tmp_path: Path) -> None:
    around = snap(tmp_path, "abcde", EDGES).expand(["c"], hops=3, max_nodes=99, max_edges=2, decay=0.5)
    assert sorted(around.edge_weight.tolist()) == [0.75, 1.0]
    assert around.truncated
    assert len(around.node_ids) == 5


def test_edges_to_nodes_that_are_not_there_are_left_out(tmp_path: Path) -> None:
    read = snap(tmp_path, "ab", [*EDGES, ("a", "zz", 0, 1.0)])
    assert read.manifest["edges"] == 2
    assert read.expand(["a"], hops=3, **ALL).node_ids == ("a", "b")


def test_weights_of_zero_and_loops_are_walked(tmp_path: Path) -> None:
    around = snap(tmp_path, "abc", [("a", "a", 0, 1.0), ("a", "b", 0, 0.0), ("b", "c", 0, -1.0)]).expand(
        ["a"], hops=2, **ALL
    )
    assert around.node_ids == ("a", "b", "c")
    assert len(around.edge_from) == 3


def test_a_reader_follows_and_old_versions_go(tmp_path: Path) -> None:
    reader = SnapshotReader(tmp_path)
    assert reader.current() is None
    held = []
    for version in range(1, 5):
        assert publish(tmp_path, nodes("abc"[: min(version, 3)]), [], {"stamp": version}) == version
        current = reader.current()
        assert current is not None
        assert current is reader.current()
        held.append(current)
        assert (current.version, current.manifest["stamp"]) == (version, version)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["CURRENT", "snapshot-3", "snapshot-4"]
    # what was mapped stays readable although it is gone
    assert held[0].expand(["a"], hops=1, **ALL).texts == (nodes("a")[0].text,)
    assert [len(snapshot_) for snapshot_ in held] == [1, 2, 3, 3]


def test_arrays_are_mapped_not_copied(tmp_path: Path) -> None:
    read = snap(tmp_path, "abc", EDGES)
    for array in (read.vectors, read.tokens, *read.graph):
        base: Any = array
        while isinstance(base, np.ndarray):
            base = base.base
        assert type(base).__name__ == "mmap"
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


class Crash(Exception):
    pass


@pytest.mark.parametrize("step", ["rename", "replace"])
def test_a_crash_while_publishing_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    snap(tmp_path, "a")
    reader = SnapshotReader(tmp_path)

    def crash(*_: object) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(os, step, crash)
        with pytest.raises(Crash):
            publish(tmp_path, nodes("ab"), [], {})
    current = reader.current()
    assert current is not None
    assert (current.version, len(current)) == (1, 1)
    publish(tmp_path, nodes("abc"), [], {})
    current = reader.current()
    assert current is not None
    assert len(current) == 3
    assert not list(tmp_path.glob("writing-*"))


@pytest.mark.parametrize("damage", ["truncate", "remove", "format", "marker"])
def test_a_damaged_snapshot_counts_as_none(tmp_path: Path, damage: str) -> None:
    snap(tmp_path, "abc")
    directory = tmp_path / "snapshot-1"
    if damage == "truncate":
        os.truncate(directory / "vectors.npy", 130)
    elif damage == "remove":
        (directory / "texts.utf8").unlink()
    elif damage == "format":
        manifest = json.loads((directory / "manifest.json").read_text())
        (directory / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    else:
        (tmp_path / "CURRENT").write_text("snapshot-77")
    assert SnapshotReader(tmp_path).current() is None
    assert publish(tmp_path, nodes("ab"), [], {}) == 2
    assert SnapshotReader(tmp_path).current() is not None


def test_a_place_that_cannot_be_written_stops(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Stop, match="can't publish"):
        publish(tmp_path / "file" / "acme", nodes("a"), [], {})


def test_ids_that_share_a_hash_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "_keys", lambda ids: np.array([ord(i[0]) % 2 for i in ids], np.uint64))
    read = snap(tmp_path, "abcd", EDGES)
    assert read.expand(["c", "zz", "a"], hops=0, **ALL).node_ids == ("c", "a")
    assert read.expand(["z"], hops=0, **ALL).node_ids == ()


@st.composite
def graphs(draw: st.DrawFn) -> tuple[int, list[tuple[int, int, int, float]], list[int], int]:
    n = draw(st.integers(1, 12))
    node = st.integers(0, n - 1)
    weight = st.floats(0.125, 1, width=32)
    edges = draw(st.lists(st.tuples(node, node, st.integers(0, 4), weight), max_size=25, unique_by=lambda e: e[:3]))
    return n, edges, draw(st.lists(node, unique=True, max_size=4)), draw(st.integers(0, 3))


@given(graph=graphs(), room=st.integers(1, 14))
@settings(max_examples=150, deadline=None)
def test_the_walk_is_the_definition(graph: Any, room: int) -> None:
    n, edges, seeds, hops = graph
    start, end, relation, weight = (np.array([e[i] for e in edges], t) for i, t in enumerate(("i8", "i8", "i1", "f4")))
    made = csr.build(n, start, end, relation, weight)
    free = csr.walk(made, np.array(seeds, np.int64), hops=hops, max_nodes=99, max_edges=999, decay=0.5)
    distance = dict.fromkeys(seeds, 0)
    for step in range(1, hops + 1):
        rim = [row for row, hop in distance.items() if hop == step - 1]
        for s, t, _, _ in edges:
            for a, b in ((s, t), (t, s)):
                if a in rim:
                    distance.setdefault(b, step)
    assert dict(zip(free.rows.tolist(), free.hop.tolist(), strict=True)) == distance
    assert free.rows[: len(seeds)].tolist() == seeds
    rows = free.rows.tolist()
    got = [
        (rows[s], rows[t], r)
        for s, t, r in zip(free.edge_from.tolist(), free.edge_to.tolist(), free.edge_relation.tolist(), strict=True)
    ]
    assert sorted(got) == sorted((s, t, r) for s, t, r, _ in edges if s in distance and t in distance)
    assert not free.truncated

    capped = csr.walk(made, np.array(seeds, np.int64), hops=hops, max_nodes=room, max_edges=999, decay=0.5)
    kept = set(capped.rows.tolist())
    assert len(kept) == min(room, len(distance))
    assert capped.truncated == (len(distance) > room) or len(seeds) > room
    for row, hop in zip(capped.rows.tolist(), capped.hop.tolist(), strict=True):  # every node keeps a way to a seed
        near = {b for s, t, _, _ in edges for a, b in ((s, t), (t, s)) if a == row}
        assert hop == 0 or any(other in kept and distance[other] == hop - 1 for other in near)
