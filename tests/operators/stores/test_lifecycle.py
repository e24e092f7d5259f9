"""Nodes one by one: list, read, change, expire."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from operators.errors import Reject
from operators.records import Filter
from operators.stores import lifecycle, removal
from operators.stores.consistency import check
from operators.stores.domains import GUESSED
from operators.stores.lifecycle import describe, page, update
from operators.stores.memory import Memory
from operators.stores.remembering import APPLIED, COUNT
from tests.operators.stores.memory_kit import (
    NODES,
    NOW,
    SECRET,
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


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Memory]:
    made = build(tmp_path)
    made.add("acme", NODES)
    yield made
    made.close()


def walked(memory: Memory, where: Filter, limit: int) -> list[str]:
    """The ids of all pages, one after the other."""
    names: list[str] = []
    after = ""
    while True:
        one = page(memory, "acme", where, limit, after)
        assert len(one.nodes) <= limit
        names += [n.node_id for n in one.nodes]
        after = one.after
        if not after:
            assert one.total == len(names)
            return names


def test_pages_show_every_node_once_newest_first(memory: Memory) -> None:
    memory.add("acme", [node("old one", "gone by", unit(1, 5), expires_at=NOW - 1)])
    want = ["s0", "s1", "b0", "a2", "a1", "a0"]
    for limit in (1, 2, 6, 100):
        assert walked(memory, Filter(), limit) == want
    assert walked(memory, Filter(sessions=("s",)), 1) == ["s0", "s1"]
    assert walked(memory, Filter(users=("nobody",)), 1) == []
    first = page(memory, "acme", Filter(), 3)
    removal.remove(memory, "acme", ["b0", "a2"], "x")  # what the next page would have begun at
    assert [n.node_id for n in page(memory, "acme", Filter(), 3, first.after).nodes] == ["a1", "a0"]
    assert page(memory, "nobody", Filter(), 3).total == 0


@pytest.mark.parametrize("after", ["x", "1.0", "nan a", "inf a", " a", "1e999 a", "\0"])
def test_a_place_that_no_page_gave_is_refused(memory: Memory, after: str) -> None:
    with pytest.raises(Reject, match="give what the page before gave") as caught:
        page(memory, "acme", Filter(), 3, after)
    assert (caught.value.status, caught.value.param) == (400, "after")


def test_a_node_is_described_with_its_edges(memory: Memory) -> None:
    memory.add("umbra", [node("theirs", "x", unit(1))])
    one, edges = describe(memory, "acme", "a1")
    assert (one.text, one.user) == (NODES[1].text, "ada")
    assert {(e.source_id, e.target_id, e.relation) for e in edges} == {
        ("a0", "a1", "next_chunk"),
        ("a1", "a2", "next_chunk"),
        ("a0", "a1", "same_source"),
        ("a1", "s1", "similar"),
    }
    for name in ("theirs", "nope"):
        for call in (
            lambda name=name: describe(memory, "acme", name),
            lambda name=name: change(memory, name, source=""),
        ):
            with pytest.raises(Reject, match="no node") as caught:
                call()
            assert (caught.value.status, caught.value.code) == (404, "no_such_node")


def change(memory: Memory, name: str, vector: Any = None, **changes: Any) -> Any:
    return update(memory, "acme", name, changes, vector)


def test_a_changed_text_is_what_everything_shows(memory: Memory) -> None:
    new = unit(1, 0.05)
    now, edges = change(memory, "a1", new, text="The lamp burns oil", tokens=4)
    assert (now.text, now.tokens, now.vector.tolist()) == ("The lamp burns oil", 4, new.tolist())
    assert "a1" not in found(memory, SECRET, "text")
    assert "a1" in found(memory, "oil burning", "text")
    around = memory.expand("acme", ["a1"], **WALK)
    assert around.texts[0] == "The lamp burns oil"
    assert around.vectors[0].tolist() == new.tolist()
    # its place in the document stays; what it is similar to is found anew
    assert {(e.source_id, e.target_id, e.relation) for e in edges} == {
        ("a0", "a1", "next_chunk"),
        ("a1", "a2", "next_chunk"),
        ("a0", "a1", "same_source"),
        ("a0", "a1", "similar"),
        ("a1", "b0", "similar"),
    }
    assert check(memory, "acme").sound
    assert not memory.stale("acme")


def test_other_fields_change_and_the_history_says_which(tmp_path: Path) -> None:
    now = [NOW]
    memory = build(tmp_path, clock=lambda: now[0])
    memory.add("acme", NODES)
    change(memory, "a0", source="new.md", quality=0.5, domain="light", metadata={"by": "me"})
    now[0] += 1
    one, _ = change(memory, "a0", expires_at=now[0] + 5)
    assert (one.source, one.quality, one.domain, one.expires_at) == ("new.md", 0.5, "light", NOW + 6)
    assert one.text == NODES[0].text
    assert lifecycle.history(one) == [
        {"at": NOW, "changed": ["domain", "metadata", "quality", "source"]},
        {"at": NOW + 1, "changed": ["expires_at"]},
    ]
    assert (one.metadata or {})["by"] == "me"
    for i in range(lifecycle.KEPT):
        one, _ = change(memory, "a0", quality=i / 100)
    assert len(lifecycle.history(one)) == lifecycle.KEPT
    one, _ = change(memory, "a0", metadata={"other": "x"})
    assert "by" not in (one.metadata or {})
    assert len(lifecycle.history(one)) == lifecycle.KEPT
    now[0] += 5
    assert "a0" not in found(memory, "lamp", "text")
    memory.close()


def test_the_memory_s_own_metadata_stays(memory: Memory) -> None:
    own = {COUNT: "3", APPLIED: '{"p": 7}', "version": "v1", "mine": "old"}
    memory.add("acme", [node("w", "words", unit(0, 0, 0, 0, 1), metadata=own)])
    one, _ = change(memory, "w", metadata={"mine": "new"})
    kept = {key: (one.metadata or {})[key] for key in own}
    assert kept == {**own, "mine": "new"}
    for key in sorted(lifecycle.OWN):
        with pytest.raises(Reject, match="memory's own"):
            change(memory, "w", metadata={key: "x"})


def test_a_domain_that_somebody_names_is_no_guess_any_more(memory: Memory) -> None:
    memory.add("acme", [node("g", "glow", unit(1, 0.2), domain="light", metadata={GUESSED: "0.9"})])
    one, _ = change(memory, "g", domain="colour")
    assert GUESSED not in (one.metadata or {})
    with memory.writing("acme") as state:
        assert {name: count for name, count in state.domains._count.items() if count} == {"light": 1, "colour": 1}


@pytest.mark.parametrize("text", ["not json", "5", '"x"', '[1, {"at": 1}]'])
def test_a_document_s_own_history_does_no_harm(memory: Memory, text: str) -> None:
    memory.add("acme", [node("h", "words", unit(0, 0, 0, 0, 1), metadata={"history": text})])
    assert all(isinstance(one, dict) for one in lifecycle.history(describe(memory, "acme", "h")[0]))
    one, _ = change(memory, "h", quality=0.1)
    assert json.loads((one.metadata or {})["history"])[-1] == {"at": NOW, "changed": ["quality"]}


def test_after_a_crash_no_snapshot_shows_the_old_text(memory: Memory, tmp_path: Path) -> None:
    memory.at = dies_at("updated")
    with pytest.raises(Crash):
        change(memory, "a1", unit(0, 0, 0, 0, 1), text="Nothing to see", tokens=3)
    assert SECRET in memory.expand("acme", ["a1"], **WALK).texts[0], "the crash came before the publication"
    crash(memory)
    healed = build(tmp_path)
    assert healed.expand("acme", ["a1"], **WALK).texts[0] == "Nothing to see"
    assert found(healed, "nothing", "text") == ["a1"]
    assert check(healed, "acme").sound
    version = healed.expand("acme", [], **WALK).snapshot
    healed.close()
    again = build(tmp_path)
    assert again.expand("acme", [], **WALK).snapshot == version  # and it is stale no more
    again.close()


def test_what_has_expired_goes_with_all_it_had(tmp_path: Path) -> None:
    now = [NOW]
    memory = build(tmp_path, clock=lambda: now[0])
    memory.add("acme", NODES)
    want = shown(memory)
    memory.add("acme", [node("x", "gone soon", unit(0, 0, 0, 0, 1), source="a.md", position=3, expires_at=NOW + 5)])
    assert lifecycle.expire(memory, "acme") is None
    now[0] += 5
    receipt = lifecycle.expire(memory, "acme")
    assert receipt is not None
    assert (receipt.node_ids, receipt.reason, receipt.vectors) == (("x",), "expired", 1)
    assert {**shown(memory), "gone": {}} == want
    assert lifecycle.expire(memory, "acme") is None
    assert lifecycle.expire(memory, "nobody") is None
    memory.optimize("acme", purge=True)
    assert files_with(tmp_path, "gone soon") == []
    memory.close()
