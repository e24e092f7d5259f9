"""What is removed is gone from everything that holds it, also when the process dies on the way."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from operators.errors import Reject
from operators.records import Filter, encode
from operators.stores import removal
from operators.stores.consistency import check
from operators.stores.lifecycle import page
from operators.stores.memory import INGESTED, Memory
from tests.operators.stores.memory_kit import (
    NODES,
    NOW,
    SECRET,
    SECRETS,
    WALK,
    Crash,
    build,
    crash,
    dies_at,
    files_with,
    found,
    node,
    shown,
    unit,
)

STEPS = ["intent", "removed vectors", "removed from graph", "removed from snapshot"]


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Memory]:
    made = build(tmp_path)
    made.add("acme", NODES)
    made.add("umbra", NODES)
    yield made
    made.close()


@pytest.mark.parametrize("purge", [False, True])
def test_what_is_removed_is_in_nothing_that_answers(memory: Memory, tmp_path: Path, purge: bool) -> None:
    before = shown(memory, "umbra")
    assert set(SECRETS) <= set(memory.expand("acme", ["a0", "s0"], **WALK).node_ids), "else this test shows nothing"
    edges = len(memory.graph.edges_at("acme", SECRETS))
    assert edges >= 4
    receipt = removal.remove(memory, "acme", [*SECRETS, "nope"], "asked to", purge=purge)
    assert (receipt.vectors, receipt.graph_nodes, receipt.graph_edges) == (2, 2, edges)
    assert (receipt.tenant, receipt.reason, receipt.purged, receipt.done_at) == ("acme", "asked to", purge, NOW)
    for mode in ("hybrid", "vector", "text"):
        assert not set(SECRETS) & set(found(memory, SECRET, mode))
    assert memory.expand("acme", SECRETS, **WALK).node_ids == ()
    around = memory.expand("acme", ["a0", "a2", "s0", "b0"], **WALK)
    assert set(around.node_ids) == {"a0", "a2", "s0", "b0"}
    listing = page(memory, "acme", Filter(), 100)
    assert ({n.node_id for n in listing.nodes}, listing.total) == ({"a0", "a2", "s0", "b0"}, 4)
    assert memory.graph.edges_at("acme", SECRETS) == []
    assert set(memory.graph.gone("acme", SECRETS)) == set(SECRETS)
    assert [encode(one) for one in removal.receipts(memory, "acme")] == [encode(receipt)]
    assert removal.receipts(memory, "umbra") == []
    assert shown(memory, "umbra") == before
    assert check(memory, "acme").sound
    own = [path for path in files_with(tmp_path, SECRET) if "umbra" not in path]
    assert all(path.startswith("vectors/acme/") for path in own)
    assert not own if purge else own


def test_maintenance_leaves_nothing_in_the_files_once_it_is_due(tmp_path: Path) -> None:
    now = [NOW]
    memory = build(tmp_path, clock=lambda: now[0], purge_after_s=100)
    memory.add("acme", [*NODES, *(n for n in NODES if n.node_id not in SECRETS)])
    removal.remove(memory, "acme", SECRETS, "asked to")
    now[0] += 99
    assert not removal.purge_due(memory, "acme")
    assert files_with(tmp_path, SECRET)
    now[0] += 1
    assert removal.purge_due(memory, "acme")
    assert files_with(tmp_path, SECRET) == []
    assert [one.purged for one in removal.receipts(memory, "acme")] == [True]
    assert not removal.purge_due(memory, "acme")
    assert memory.vectors.count("acme") == 4
    memory.close()


def test_a_dropped_tenant_leaves_its_receipt_alone(memory: Memory, tmp_path: Path) -> None:
    before = shown(memory, "umbra")
    receipt = removal.drop(memory, "acme", "all of it")
    assert (receipt.vectors, receipt.graph_nodes, receipt.whole_tenant, receipt.snapshot) == (6, 6, True, 0)
    assert shown(memory)["nodes"] == shown(memory)["snapshot"] == {}
    assert memory.vectors.tenants() == ["umbra"]
    assert all("umbra" in path for path in files_with(tmp_path, SECRET))
    assert shown(memory, "umbra") == before
    assert [one.receipt_id for one in removal.receipts(memory, "acme")] == [receipt.receipt_id]
    added = memory.add("acme", NODES)  # and may come back as new
    assert len(added.new) == 6
    assert {key: value for key, value in shown(memory).items() if key != "gone"} == {
        key: value for key, value in before.items() if key != "gone"
    }
    assert memory.graph.all_gone("acme") == []


def test_removing_nothing_and_twice(memory: Memory) -> None:
    assert removal.remove(memory, "nobody", ["a"], "x").vectors == 0
    assert removal.drop(memory, "nobody", "x").vectors == 0
    assert memory.vectors.tenants() == ["acme", "umbra"]
    first = removal.remove(memory, "acme", ["a1"], "x")
    second = removal.remove(memory, "acme", ["a1"], "x")
    assert (first.vectors, second.vectors, second.graph_nodes) == (1, 0, 0)
    kept = [one.receipt_id for one in removal.receipts(memory, "acme")]
    assert kept == [second.receipt_id, first.receipt_id]
    with pytest.raises(Reject, match="tenant"):
        removal.remove(memory, "../umbra", ["a1"], "x")


def test_places_of_removed_nodes_are_free(memory: Memory) -> None:
    removal.remove(memory, "acme", ["a1", "s1"], "x")
    next_turn = node("s2", "Try the drawer", unit(0, 0, 0, 0, 1), kind="interaction", session="s", position=2)
    memory.add("acme", [NODES[1], next_turn])
    assert ("s0", "s2", "next_turn", 1.0) in shown(memory)["edges"]
    assert ("a0", "a1", "next_chunk", 1.0) in shown(memory)["edges"]
    assert ("a1", "a2", "next_chunk", 1.0) in shown(memory)["edges"]
    assert check(memory, "acme").sound


def go(memory: Memory, whole: bool) -> None:
    if whole:
        removal.drop(memory, "acme", "x")
    else:
        removal.remove(memory, "acme", SECRETS, "x", purge=True)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, dict[str, Any]]:
    """What a removal that nothing interrupts leaves: of nodes, of the tenant."""
    memory = build(tmp_path_factory.mktemp("clean"))
    left = {}
    for whole in (False, True):
        memory.add("acme", NODES)
        go(memory, whole)
        left[whole] = shown(memory)
    memory.close()
    return left


@pytest.mark.parametrize("whole", [False, True], ids=["remove", "drop"])
@pytest.mark.parametrize("step", STEPS)
def test_a_crash_at_any_step_is_finished_at_the_next_start(
    tmp_path: Path, step: str, whole: bool, clean: dict[bool, dict[str, Any]]
) -> None:
    root = tmp_path / "torn"
    torn = build(root)
    torn.add("acme", NODES)
    torn.add("umbra", NODES)
    other = shown(torn, "umbra")
    torn.at = dies_at(step)
    with pytest.raises(Crash):
        go(torn, whole)
    assert removal.receipts(torn, "acme") == []
    crash(torn)
    if step != "intent":
        with pytest.raises(Crash):
            build(root, at=dies_at(step))  # finishing may die as well
    healed = build(root)
    assert shown(healed) == clean[whole]
    assert shown(healed, "umbra") == other
    assert check(healed, "acme").sound
    assert not healed.stale("umbra")
    (receipt,) = removal.receipts(healed, "acme")
    assert (receipt.whole_tenant, receipt.purged) == (whole, True)
    assert set(SECRETS) <= set(receipt.node_ids)
    assert list((root / "removing").iterdir()) == []
    assert all("umbra" in path for path in files_with(root, SECRET))
    healed.close()


def test_what_a_killed_publisher_left_goes_with_the_next_publication(memory: Memory, tmp_path: Path) -> None:
    left = tmp_path / "snapshots" / "acme" / "writing-1-99"
    left.mkdir()
    (left / "texts.utf8").write_text(SECRET)
    removal.remove(memory, "acme", SECRETS, "x", purge=True)
    assert not left.exists()


def test_who_waited_for_a_drop_writes_to_the_tenant_that_is_there_now(memory: Memory) -> None:
    began, states = threading.Event(), []

    def wait() -> None:
        began.set()
        with memory.writing("acme") as state:
            states.append(state)

    with memory.writing("acme"):
        thread = threading.Thread(target=wait)
        thread.start()
        began.wait(10)
        removal.drop(memory, "acme", "x")
        memory.add("acme", NODES[:1])
        with memory.writing("acme") as new:
            pass
    thread.join(10)
    assert states == [new]


def test_documents_that_went_are_ingested_again(memory: Memory) -> None:
    """The journal of the ingest job tells what the memory holds; an answer that goes changes nothing there."""
    journal = memory.directory.parent / INGESTED
    journal.write_bytes(b"x")
    answer, document = (next(n.node_id for n in NODES if n.kind == kind) for kind in ("interaction", "document"))
    removal.remove(memory, "acme", [answer, "nobody"], "test")
    assert journal.exists()
    removal.remove(memory, "acme", [document], "test")
    assert not journal.exists()
