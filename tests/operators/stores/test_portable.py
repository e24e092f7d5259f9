"""A memory goes out as files and comes back whole: export, import, backups, and a crash while one takes its place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from operators.errors import Reject, Stop
from operators.stores import backups, portable, removal
from operators.stores.consistency import check
from operators.stores.lifecycle import update
from operators.stores.memory import Memory
from tests.operators.stores.memory_kit import NODES, NOW, Crash, build, crash, dies_at, found, node, shown, unit

ENCODER = "test-encoder"
STEPS = ["replace noted", "replaced vectors", "replaced graph"]
LATER = [node("c0", "The bell rings", unit(0, 0, 0, 0, 1), source="c.md"), NODES[0]]


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Memory]:
    made = build(tmp_path / "memory")
    made.add("acme", NODES)
    removal.remove(made, "acme", ["a2"], "x")
    yield made
    made.close()


@pytest.fixture
def export(memory: Memory, tmp_path: Path) -> Path:
    portable.export(memory, "acme", tmp_path / "export", ENCODER)
    return tmp_path / "export"


def but_gone(view: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in view.items() if key != "gone"}


def test_an_export_is_read_by_anything(memory: Memory, export: Path) -> None:
    manifest = json.loads((export / "manifest.json").read_text())
    nodes, edges = pq.read_table(export / "nodes.parquet"), pq.read_table(export / "edges.parquet")
    assert sorted(nodes["id"].to_pylist()) == ["a0", "a1", "b0", "s0", "s1"]
    by_id = {row["id"]: row for row in nodes.to_pylist()}
    assert (by_id["a0"]["text"], by_id["a0"]["vector"][0]) == ("The lamp is green", 1.0)
    assert {(e["source_id"], e["target_id"], e["relation"], e["weight"]) for e in edges.to_pylist()} == set(
        shown(memory)["edges"]
    )
    assert pq.read_table(export / "gone.parquet").to_pylist() == [{"id": "a2", "at": NOW}]
    wanted = {"tenant": "acme", "encoder": ENCODER, "dim": 8, "nodes": 5, "edges": edges.num_rows, "gone": 1}
    assert {key: manifest[key] for key in wanted} == wanted
    assert (manifest["created_at"], set(manifest["sha256"])) == (NOW, set(portable.FILES))


def test_it_comes_back_whole_elsewhere_and_for_another_tenant(memory: Memory, export: Path, tmp_path: Path) -> None:
    other = build(tmp_path / "other")
    assert portable.add_all(other, "acme", export, ENCODER) == (5, 0)
    assert but_gone(shown(other)) == but_gone(shown(memory))
    assert portable.add_all(other, "acme", export, ENCODER) == (0, 5)
    other.add("umbra", LATER)
    assert portable.replace_all(other, "umbra", export, ENCODER).nodes == 5
    assert shown(other, "umbra") == shown(memory)
    assert all(check(other, tenant).sound for tenant in ("acme", "umbra"))
    other.add("umbra", [NODES[2]])  # what is kept of a tenant in the process is of what it has now
    assert ("a1", "a2", "next_chunk", 1.0) in shown(other, "umbra")["edges"]
    other.close()


def test_adding_an_export_keeps_what_is_there(memory: Memory, export: Path) -> None:
    update(memory, "acme", "a0", {"domain": "light"})
    removal.remove(memory, "acme", ["b0"], "x")
    memory.add("acme", LATER[:1])
    assert portable.add_all(memory, "acme", export, ENCODER) == (1, 4)
    kept = memory.vectors.get("acme", ["a0", "c0", "b0"])
    assert (set(kept), kept["a0"].domain) == ({"a0", "c0", "b0"}, "light")
    assert memory.vectors.existing("acme", ["a2"]) == set()


def test_nothing_is_exported_over_something_or_of_nothing(memory: Memory, export: Path, tmp_path: Path) -> None:
    with pytest.raises(Reject, match="exists"):
        portable.export(memory, "acme", export, ENCODER)
    with pytest.raises(Reject, match="nothing is stored"):
        portable.export(memory, "nobody", tmp_path / "deep" / "new", ENCODER)
    with pytest.raises(Reject, match="tenant"):
        portable.export(memory, "../acme", tmp_path / "new", ENCODER)
    (tmp_path / "file").touch()
    with pytest.raises(Stop, match="can't export"):
        portable.export(memory, "acme", tmp_path / "file" / "below", ENCODER)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["export", "file", "memory"]


def rewritten(name: str, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> Callable[[Path], None]:
    """A damage that the checksums don't show."""

    def damage(export: Path) -> None:
        table = pq.read_table(export / name)
        rows = change(table.to_pylist())
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), export / name)
        again(export, sha256={n: portable._digest(export / n) for n in portable.FILES})

    return damage


def again(export: Path, **fields: Any) -> None:
    path = export / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def flipped(export: Path) -> None:
    data = bytearray((export / "nodes.parquet").read_bytes())
    data[len(data) // 2] ^= 1
    (export / "nodes.parquet").write_bytes(data)


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no manifest": (lambda export: (export / "manifest.json").unlink(), "no export in"),
    "no directory": (lambda export: shutil.rmtree(export), "no export in"),
    "a torn manifest": (lambda export: (export / "manifest.json").write_text('{"format": 1'), "is damaged"),
    "a missing file": (lambda export: (export / "gone.parquet").unlink(), "SHA-256 differs"),
    "a flipped bit": (flipped, "SHA-256 differs"),
    "no checksums": (lambda export: again(export, sha256={}), "SHA-256 differs"),
    "another format": (lambda export: again(export, format=2), "format 2"),
    "another encoder": (lambda export: again(export, encoder="other"), "vectors of other"),
    "another dimension": (lambda export: again(export, dim=9), r"\(9\)"),
    "an unknown relation": (
        rewritten("edges.parquet", lambda rows: [{**row, "relation": "loves"} for row in rows]),
        "loves",
    ),
    "an edge to nowhere": (
        rewritten("edges.parquet", lambda rows: [{**rows[0], "target_id": "nowhere"}, *rows[1:]]),
        "nowhere",
    ),
    "an unknown kind": (
        rewritten("nodes.parquet", lambda rows: [{**rows[0], "kind": "evil"}, *rows[1:]]),
        "evil",
    ),
    "a missing text": (
        rewritten("nodes.parquet", lambda rows: [{**rows[0], "text": None}, *rows[1:]]),
        "text of node",
    ),
    "metadata that is none": (
        rewritten("nodes.parquet", lambda rows: [{**rows[0], "metadata": '["x"]'}, *rows[1:]]),
        "metadata of node",
    ),
    "an empty vector": (
        rewritten("nodes.parquet", lambda rows: [{**rows[0], "vector": [0.0] * 8}, *rows[1:]]),
        "length 0",
    ),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Memory, Path]]:
    root = tmp_path_factory.mktemp("exported")
    made = build(root / "memory")
    made.add("acme", NODES)
    portable.export(made, "acme", root / "export", ENCODER)
    made.add("acme", LATER)
    yield made, root / "export"
    made.close()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_export_is_refused_and_changes_nothing(
    exported: tuple[Memory, Path], tmp_path: Path, damage: str
) -> None:
    memory, whole = exported
    export = shutil.copytree(whole, tmp_path / "export")
    before = shown(memory)
    harm, message = DAMAGES[damage]
    harm(export)
    for attempt in (portable.replace_all, portable.add_all):
        with pytest.raises(Reject, match=message):
            attempt(memory, "acme", export, ENCODER)
    assert shown(memory) == before
    assert not list(portable._notes(memory).glob("*"))


@pytest.mark.parametrize("step", STEPS)
def test_a_crash_while_replacing_is_finished_at_the_next_start(
    memory: Memory, export: Path, tmp_path: Path, step: str
) -> None:
    root, want = tmp_path / "memory", shown(memory)
    memory.add("acme", LATER)
    removal.remove(memory, "acme", ["s0"], "x")
    memory.add("umbra", NODES)
    other = shown(memory, "umbra")
    memory.at = dies_at(step)
    with pytest.raises(Crash):
        portable.replace_all(memory, "acme", export, ENCODER)
    crash(memory)
    with pytest.raises(Crash):
        build(root, at=dies_at("replaced graph"))
    healed = build(root)
    assert shown(healed) == want
    assert shown(healed, "umbra") == other
    assert check(healed, "acme").sound
    assert list(portable._notes(healed).iterdir()) == []
    healed.add("acme", [NODES[2]])
    assert "a2" in found(healed, "deep harbour", "text")
    healed.close()


def test_a_replacement_whose_export_is_gone_says_what_to_do(memory: Memory, export: Path, tmp_path: Path) -> None:
    memory.at = dies_at("replaced vectors")
    with pytest.raises(Crash):
        portable.replace_all(memory, "acme", export, ENCODER)
    crash(memory)
    shutil.rmtree(export)
    with pytest.raises(Stop, match=r"was interrupted, and .* is gone; bring it back, or remove .*acme\.json"):
        build(tmp_path / "memory")
    (note,) = portable._notes(memory).iterdir()
    note.unlink()
    healed = build(tmp_path / "memory")
    check(healed, "acme", repair=True)
    assert check(healed, "acme").sound
    healed.close()


def names(memory: Memory, tenant: str = "acme") -> list[str]:
    return [one.name for one in backups.listed(memory, tenant)]


def test_a_backup_brings_its_state_back_and_only_that(tmp_path: Path) -> None:
    now = [NOW]
    memory = build(tmp_path, clock=lambda: now[0])
    memory.add("acme", NODES)
    memory.add("umbra", NODES)
    first = shown(memory)
    assert backups.listed(memory, "acme") == []
    backups.take(memory, "acme", "monday", ENCODER)
    now[0] += 1
    removal.remove(memory, "acme", ["a1", "s1"], "x")
    memory.add("acme", LATER)
    update(memory, "acme", "a0", {"text": "The lamp is red", "tokens": 4}, unit(0, 0, 0, 0, 0, 1))
    second = shown(memory)
    backups.take(memory, "acme", "a-tuesday", ENCODER)
    assert names(memory) == ["monday", "a-tuesday"]  # oldest first
    assert names(memory, "umbra") == []
    backups.restore(memory, "acme", "monday", ENCODER)
    assert shown(memory) == first
    assert backups.restore(memory, "acme", "a-tuesday", ENCODER).manifest.nodes == 5
    assert shown(memory) == second
    assert shown(memory, "umbra") == first
    backups.remove(memory, "acme", "monday")
    assert names(memory) == ["a-tuesday"]
    for call in (
        lambda name: backups.restore(memory, "acme", name, ENCODER),
        lambda name: backups.remove(memory, "acme", name),
    ):
        with pytest.raises(Reject) as caught:
            call("monday")
        assert caught.value.status == 404
    with pytest.raises(Reject, match="exists"):
        backups.take(memory, "acme", "a-tuesday", ENCODER)
    removal.drop(memory, "acme", "x")
    backups.restore(memory, "acme", "a-tuesday", ENCODER)
    assert shown(memory) == second
    memory.close()


@pytest.mark.parametrize("name", ["", ".", "..", ".x", "a/b", "../umbra/x", "a b", "x" * 65, "a\n", "a\0"])
def test_names_that_lead_elsewhere_are_refused(exported: tuple[Memory, Path], name: str) -> None:
    memory, _ = exported
    for call in (
        lambda: backups.take(memory, "acme", name, ENCODER),
        lambda: backups.restore(memory, "acme", name, ENCODER),
        lambda: backups.remove(memory, "acme", name),
        lambda: backups.listed(memory, f"x/{name}"),
    ):
        with pytest.raises(Reject):
            call()
    assert memory.vectors.count("acme") == 7


def test_half_a_backup_goes_at_the_next_start(memory: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backups.take(memory, "acme", "whole", ENCODER)

    def dies(*args: Any, **rest: Any) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr("operators.stores.portable.os.rename", dies)
        patch.setattr("operators.stores.portable.shutil.rmtree", dies)
        with pytest.raises(Crash):
            backups.take(memory, "acme", "half", ENCODER)
    folder = tmp_path / "memory" / "backups" / "acme"
    assert len(list(folder.iterdir())) == 2
    assert names(memory) == ["whole"]
    crash(memory)
    healed = build(tmp_path / "memory")
    assert [path.name for path in folder.iterdir()] == ["whole"]
    backups.take(healed, "acme", "half", ENCODER)
    healed.close()
