"""What a check finds when the stores disagree, and what it mends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from operators.stores import lance_rows
from operators.stores.consistency import SHOWN, check
from operators.stores.memory import Memory
from tests.operators.stores.memory_kit import DIM, NODES, NOW, build, node, shown, unit

HALF = node("half", "Added by half", unit(0, 0, 0, 0, 1), source="a.md", position=3)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Memory]:
    made = build(tmp_path)
    made.add("acme", NODES)
    made.add("umbra", NODES)
    yield made
    made.close()


def test_a_sound_memory_is_left_alone(memory: Memory) -> None:
    before = shown(memory)
    for repair in (False, True):
        found = check(memory, "acme", repair=repair)
        assert found.sound
        assert (found.nodes, found.examples, found.snapshot_stale, found.repaired) == (6, {}, False, repair)
        assert found.edges == memory.graph.count("acme")[1]
    assert shown(memory) == before
    assert check(memory, "nobody").sound
    assert memory.vectors.tenants() == ["acme", "umbra"]


def returned(memory: Memory) -> None:
    nodes: list[Any] = [(n.node_id, n.kind, n.created_at) for n in NODES]
    memory.graph.replace("acme", nodes, memory.graph.edges_at("acme", [n.node_id for n in NODES]), {"a2": NOW})


def twice(memory: Memory) -> None:
    memory.vectors._open["acme"].table.add(lance_rows.table([NODES[2]], DIM))  # type: ignore[attr-defined]


FAULTS: dict[str, tuple[Callable[[Memory], object], str, list[str]]] = {
    "only_vectors": (lambda memory: memory.vectors.upsert("acme", [HALF]), "half", []),
    "only_graph": (lambda memory: memory.vectors.remove("acme", ["a2"]), "a2", ["a2"]),
    "repeated": (twice, "a2", []),
    "returned": (returned, "a2", ["a2"]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_found_named_and_mended(memory: Memory, fault: str) -> None:
    harm, name, lost = FAULTS[fault]
    other = shown(memory, "umbra")
    harm(memory)
    for repair in (False, True):
        found = check(memory, "acme", repair=repair)
        assert not found.sound
        assert {kind: getattr(found, kind) for kind in FAULTS} == {kind: int(kind == fault) for kind in FAULTS}
        assert found.examples == {fault: (name,)}
    after = check(memory, "acme")
    assert after.sound
    assert not after.snapshot_stale
    view = shown(memory)
    want = sorted({n.node_id for n in NODES} - set(lost) | ({"half"} if fault == "only_vectors" else set()))
    assert sorted(view["nodes"]) == sorted(view["graph"]) == sorted(view["snapshot"]) == want
    assert len(view["listed"]) == len(want)
    assert shown(memory, "umbra") == other


def test_what_was_added_by_half_gets_its_edges(memory: Memory) -> None:
    memory.vectors.upsert("acme", [HALF])
    check(memory, "acme", repair=True)
    assert ("a2", "half", "next_chunk", 1.0) in shown(memory)["edges"]


def test_many_faults_are_counted_and_some_named(memory: Memory) -> None:
    memory.graph.upsert("acme", [f"n{i:03}" for i in range(50)], ["document"] * 50, [], NOW)
    found = check(memory, "acme", repair=True)
    assert found.only_graph == 50
    assert found.examples["only_graph"] == tuple(f"n{i:03}" for i in range(SHOWN))
    assert check(memory, "acme").sound
