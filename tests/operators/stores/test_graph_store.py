"""Every graph store passes these; another one is added by a line in SUBJECTS."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.errors import Reject, Retry, Skip, Stop
from operators.records import RELATIONS
from operators.stores.kuzu_graph import KuzuGraph
from operators.stores.ports import Edge, GraphStore
from operators.stores.vendor import translate

MODULE: Any = os.environ.get("RUVLLM_TEST_GRAPH", "kuzu")
"""The two can't be loaded into one process (their C++ types have the same names), so a run has one of them."""
CONFIG = KuzuGraph.Config(module=MODULE, buffer_pool_bytes=64 << 20, max_bytes=1 << 30)
SUBJECTS = {MODULE: lambda path: KuzuGraph(path, CONFIG)}


@pytest.mark.slow
@pytest.mark.skipif(MODULE != "kuzu", reason="this is the other run")
def test_ladybug_passes_them_too() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", __file__, "-p", "no:cacheprovider"],
        env={**os.environ, "RUVLLM_TEST_GRAPH": "ladybug"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "[ladybug]" in done.stdout
    assert "skipped" in done.stdout  # this very test
    assert "failed" not in done.stdout


def edge(source: str, target: str, relation: Any = "similar", weight: float = 0.5) -> Edge:
    return Edge(source_id=source, target_id=target, relation=relation, weight=weight, created_at=1.0)


def write(graph: GraphStore, names: str | list[str], edges: list[Edge] | None = None, tenant: str = "acme") -> None:
    graph.upsert(tenant, list(names), ["document"] * len(names), edges or [], 1.0)


@pytest.fixture(params=SUBJECTS)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    made: list[GraphStore] = []

    def one(path: Path = tmp_path / "graph.db") -> GraphStore:
        graph: GraphStore = SUBJECTS[request.param](path)
        graph.open()
        made.append(graph)
        return graph

    yield one
    for graph in made:
        graph.close()
        graph.close()


@pytest.fixture
def graph(make: Any) -> GraphStore:
    return make()  # type: ignore[no-any-return]


def test_an_empty_graph_is_empty(graph: GraphStore) -> None:
    assert graph.count("acme") == (0, 0)
    assert list(graph.edges("acme")) == []
    assert graph.expand("acme", ["a"], 2) == set()
    assert graph.expand("acme", [], 0) == set()


def test_edges_come_back_as_written(graph: GraphStore) -> None:
    wrote = [edge("a", "b", relation, 0.25) for relation in RELATIONS] + [
        edge("b", "a", weight=1.0),
        edge("c'日", "c'日"),
    ]
    write(graph, ["a", "b", "c'日"], wrote)
    want = {("a", "b", code, 0.25) for code in range(len(RELATIONS))} | {("b", "a", 0, 1.0), ("c'日", "c'日", 0, 0.5)}
    assert set(graph.edges("acme")) == want
    assert graph.count("acme") == (3, 7)


def test_writing_again_changes_nothing_but_the_weight(graph: GraphStore) -> None:
    write(graph, "ab", [edge("a", "b"), edge("a", "b", "cites")])
    write(graph, "ab", [edge("a", "b"), edge("a", "b", "cites")])
    assert graph.count("acme") == (2, 2)
    write(graph, "b", [edge("a", "b", weight=0.75), edge("a", "b", weight=0.875)])
    assert set(graph.edges("acme")) == {("a", "b", 0, 0.875), ("a", "b", RELATIONS.index("cites"), 0.5)}


def test_expand_goes_both_ways_and_no_further(graph: GraphStore) -> None:
    write(graph, "abcdex", [edge("a", "b"), edge("c", "b", "next_chunk"), edge("c", "d", "cites"), edge("d", "e")])
    assert graph.expand("acme", ["a", "nope"], 0) == {"a"}
    assert graph.expand("acme", ["a"], 1) == {"a", "b"}
    assert graph.expand("acme", ["a"], 2) == {"a", "b", "c"}
    assert graph.expand("acme", ["a", "x"], 3) == {"a", "b", "c", "d", "x"}
    assert graph.expand("acme", ["e"], 2) == {"e", "d", "c"}


def test_an_unknown_end_skips_and_writes_nothing(graph: GraphStore) -> None:
    write(graph, "a")
    with pytest.raises(Skip, match="nope"):
        write(graph, "b", [edge("b", "a"), edge("a", "nope")])
    assert graph.count("acme") == (1, 0)
    write(graph, "b", [edge("b", "a")])
    assert graph.count("acme") == (2, 1)
    with pytest.raises(Skip):  # known, but another tenant's
        write(graph, "z", [edge("z", "a")], tenant="umbra")
    assert graph.count("umbra") == (0, 0)


def test_a_batch_of_thousands(graph: GraphStore) -> None:
    names = [f"n{i}" for i in range(3000)]
    chain = [edge(a, b, "next_chunk", 1.0) for a, b in itertools.pairwise(names)]
    write(graph, names, chain)
    write(graph, names, chain)
    assert graph.count("acme") == (3000, 2999)
    assert graph.expand("acme", ["n1500"], 2) == {"n1498", "n1499", "n1500", "n1501", "n1502"}


@pytest.mark.parametrize("tenant", ["", ".x", "a/b", "a b", "x" * 65, "a/../b"])
def test_bad_tenant_names_are_rejected(graph: GraphStore, tenant: str) -> None:
    for call in (
        lambda: write(graph, "a", tenant=tenant),
        lambda: list(graph.edges(tenant)),
        lambda: graph.expand(tenant, ["a"], 1),
        lambda: graph.count(tenant),
    ):
        with pytest.raises(Reject, match="tenant"):
            call()


def test_all_is_there_after_a_restart(make: Any) -> None:
    first = make()
    write(first, "abc", [edge("a", "b"), edge("b", "c", "cites")])
    first.close()
    second = make()
    assert set(second.edges("acme")) == {("a", "b", 0, 0.5), ("b", "c", RELATIONS.index("cites"), 0.5)}
    write(second, "abc", [edge("a", "b")])
    assert second.count("acme") == (3, 2)


def test_many_threads_may_write(graph: GraphStore) -> None:
    errors: list[BaseException] = []

    def work(mine: int) -> None:
        try:
            for i in range(4):
                write(graph, [f"{mine}-{i}", "hub"], [edge(f"{mine}-{i}", "hub")])
                assert "hub" in graph.expand("acme", [f"{mine}-{i}"], 1)
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=work, args=(mine,)) for mine in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert graph.count("acme") == (13, 12)


def test_a_closed_graph_stops_and_opens_again(make: Any) -> None:
    graph = make()
    write(graph, "a")
    graph.close()
    with pytest.raises(Stop, match="open"):
        graph.count("acme")
    graph.open()
    assert graph.count("acme") == (1, 0)


OPENER = """
import os, sys
from operators.errors import Stop
from operators.stores.kuzu_graph import KuzuGraph
try:
    KuzuGraph(sys.argv[1], KuzuGraph.Config(module=os.environ.get("RUVLLM_TEST_GRAPH", "kuzu"))).open()
except Stop as e:
    print("Stop:", e)
"""


def test_only_one_may_have_it_open(make: Any, tmp_path: Path) -> None:
    make()
    with pytest.raises(Stop, match="in this process already"):
        make()
    command = [sys.executable, "-c", OPENER, str(tmp_path / "graph.db")]
    other = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert other.stdout.startswith("Stop: graph: another process has")


def test_what_cannot_be_opened_stops(make: Any, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("this is no database at all" * 200)
    for path in (tmp_path, tmp_path / "other", tmp_path / "other" / "below"):
        with pytest.raises(Stop, match="can't open"):
            make(path)


def test_a_module_that_is_not_installed_stops(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ladybug", None)
    with pytest.raises(Stop, match="ladybug"):
        KuzuGraph(tmp_path / "g", KuzuGraph.Config(module="ladybug")).open()


def test_other_native_libraries_load_after_it(tmp_path: Path) -> None:
    """Kùzu's own import makes its symbols global, and xllamacpp then dies in std::bad_alloc."""
    code = OPENER + "import xllamacpp\nprint('both')"
    command = [sys.executable, "-c", code, str(tmp_path / "graph.db")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "both\n", "")


@pytest.mark.parametrize(
    ("message", "want"),
    [  # as Kùzu 0.11.3 words them
        ("IO exception: Cannot write to file. path: g.wal numBytesWritten: -1. Error: No space left on device", Stop),
        ("Runtime exception: Cannot start a new write transaction in the system.", Retry),
    ],
)
def test_vendor_errors_become_ours(message: str, want: type[Exception]) -> None:
    assert type(translate("graph", RuntimeError(message), Path("g"))) is want


def test_removed_nodes_take_their_edges_along(graph: GraphStore) -> None:
    assert graph.remove("acme", ["a"]) == (0, 0)
    write(graph, "abc", [edge("a", "b"), edge("b", "c", "cites"), edge("c", "a", "next_turn")])
    write(graph, "abc", [edge("a", "b")], tenant="umbra")
    assert graph.remove("acme", ["b", "nope", "b"]) == (1, 2)
    assert graph.node_ids("acme") == {"a", "c"}
    assert set(graph.edges("acme")) == {("c", "a", RELATIONS.index("next_turn"), 0.5)}
    assert graph.remove("acme", []) == (0, 0)
    assert graph.gone("acme", ["a", "b", "nope"]) == {}
    assert graph.count("umbra") == (3, 1)
    many = [f"n{i}" for i in range(2500)]
    write(graph, many)
    assert graph.remove("acme", many) == (2500, 0)
    assert graph.count("acme") == (2, 1)


def test_gone_ids_are_remembered_until_they_are_written_again(make: Any) -> None:
    graph = make()
    assert (graph.gone("acme", ["a"]), graph.all_gone("acme")) == ({}, [])
    write(graph, "ab", [edge("a", "b")])
    write(graph, "ab", [edge("a", "b")], tenant="umbra")
    assert graph.remove("acme", ["b", "never"], gone_at=5.0) == (1, 1)
    assert graph.remove("acme", ["b"], gone_at=6.0) == (0, 0)
    graph.close()
    graph = make()
    assert graph.gone("acme", ["a", "b", "never"]) == {"b": 6.0, "never": 5.0}
    assert graph.all_gone("acme") == ["b", "never"]
    assert (graph.gone("umbra", ["b", "never"]), graph.all_gone("umbra")) == ({}, [])
    write(graph, "b", [edge("a", "b")])
    assert (graph.all_gone("acme"), graph.count("acme")) == (["never"], (2, 1))
    graph.remove("acme", [f"n{i}" for i in range(2500)], gone_at=7.0)
    assert len(graph.gone("acme", [f"n{i}" for i in range(3000)])) == 2500


def test_replace_is_all_that_is_there(graph: GraphStore) -> None:
    write(graph, "abc", [edge("a", "b"), edge("b", "c")])
    write(graph, "abc", [edge("a", "b")], tenant="umbra")
    graph.remove("acme", ["x"], gone_at=1.0)
    graph.remove("umbra", ["x"], gone_at=1.0)
    nodes: list[Any] = [("b", "document", 1.0), ("d", "summary", 2.0)]
    for _ in range(2):
        graph.replace("acme", nodes, [edge("d", "b", "cites", 0.25)], {"y": 3.0, "a": 4.0})
        assert graph.node_ids("acme") == {"b", "d"}
        assert list(graph.edges("acme")) == [("d", "b", RELATIONS.index("cites"), 0.25)]
        assert graph.all_gone("acme") == ["a", "y"]
        assert graph.gone("acme", ["a", "y", "x"]) == {"a": 4.0, "y": 3.0}
    with pytest.raises(Skip, match="without their nodes"):
        graph.replace("acme", nodes, [edge("d", "a")])
    assert graph.count("acme") == (2, 1)  # all or nothing
    assert (graph.count("umbra"), graph.all_gone("umbra")) == ((3, 1), ["x"])
    graph.replace("acme", [], [])
    assert (graph.count("acme"), graph.all_gone("acme")) == ((0, 0), [])
    write(graph, "ab", [edge("a", "b")])
    assert graph.count("acme") == (2, 1)


def test_edges_at_a_node_start_or_end_there(graph: GraphStore) -> None:
    wrote = [edge("a", "b"), edge("c", "a", "cites", 0.25), edge("b", "c"), edge("a", "a", "next_turn")]
    write(graph, "abcd", wrote)
    write(graph, "abcd", [edge("a", "d")], tenant="umbra")

    def at(*names: str) -> set[tuple[str, str, str, float, float]]:
        found = graph.edges_at("acme", list(names))
        assert len(found) == len({(e.source_id, e.target_id, e.relation) for e in found})
        return {(e.source_id, e.target_id, e.relation, e.weight, e.created_at) for e in found}

    def of(edges: list[Edge]) -> set[tuple[str, str, str, float, float]]:
        return {(e.source_id, e.target_id, e.relation, e.weight, e.created_at) for e in edges}

    assert at("a") == of([wrote[0], wrote[1], wrote[3]])
    assert at("a", "b", "nope") == of(wrote)
    assert at("d") == at() == set()


def test_cut_takes_one_relation_of_one_node(graph: GraphStore) -> None:
    wrote = [edge("a", "b"), edge("c", "a"), edge("a", "b", "cites"), edge("b", "c"), edge("a", "a")]
    write(graph, "abc", wrote)
    write(graph, "abc", [edge("a", "b")], tenant="umbra")
    assert graph.cut("acme", "a", "similar") == 3
    assert {(s, t) for s, t, _, _ in graph.edges("acme")} == {("a", "b"), ("b", "c")}
    assert graph.cut("acme", "a", "similar") == graph.cut("acme", "nope", "cites") == 0
    assert (graph.count("acme"), graph.count("umbra")) == ((3, 2), (3, 1))


def test_a_checkpoint_loses_nothing(make: Any, tmp_path: Path) -> None:
    graph = make()
    write(graph, "abc", [edge("a", "b")])
    graph.remove("acme", ["c"], gone_at=1.0)
    graph.checkpoint()
    write(graph, "d", [edge("d", "a")])
    graph.close()
    graph = make()
    assert (graph.node_ids("acme"), graph.count("acme")[1], graph.all_gone("acme")) == ({"a", "b", "d"}, 2, ["c"])


@pytest.mark.parametrize("tenant", ["", ".x", "a/b", "a/../b"])
def test_bad_tenant_names_remove_nothing(graph: GraphStore, tenant: str) -> None:
    for call in (
        lambda: graph.remove(tenant, ["a"]),
        lambda: graph.gone(tenant, ["a"]),
        lambda: graph.all_gone(tenant),
        lambda: graph.replace(tenant, [], []),
        lambda: graph.node_ids(tenant),
        lambda: graph.edges_at(tenant, ["a"]),
        lambda: graph.cut(tenant, "a", "similar"),
    ):
        with pytest.raises(Reject, match="tenant"):
            call()


names = st.sampled_from("abc")
batches = st.lists(
    st.tuples(st.sampled_from(["acme", "umbra"]), st.lists(st.tuples(names, names), max_size=3)), max_size=4
)


@given(batches=batches)
@settings(max_examples=8, deadline=None)
def test_tenants_never_mix_and_writing_twice_changes_nothing(batches: list[tuple[str, list[tuple[str, str]]]]) -> None:
    with tempfile.TemporaryDirectory() as root:
        graph = SUBJECTS[MODULE](Path(root) / "g.db")
        graph.open()
        want: dict[str, set[tuple[str, str]]] = {"acme": set(), "umbra": set()}
        for tenant, pairs in batches:
            for _ in range(2):
                write(graph, sorted({name for pair in pairs for name in pair}), [edge(*p) for p in pairs], tenant)
            want[tenant] |= set(pairs)
        for tenant, pairs_ in want.items():
            assert {(s, t) for s, t, _, _ in graph.edges(tenant)} == pairs_
            assert graph.count(tenant) == (len({name for pair in pairs_ for name in pair}), len(pairs_))
            assert graph.expand(tenant, list("abc"), 2) == {name for pair in pairs_ for name in pair}
        graph.close()


WRITER = """
import os, sys
from operators.stores.kuzu_graph import KuzuGraph
from operators.stores.ports import Edge
graph = KuzuGraph(sys.argv[1], KuzuGraph.Config(module=os.environ.get("RUVLLM_TEST_GRAPH", "kuzu")))
graph.open()
for i in range(10_000):
    edges = [Edge(source_id=f"n{i}", target_id="hub", relation="cites", weight=1.0, created_at=1.0)]
    graph.upsert("acme", [f"n{i}", "hub"], ["document"] * 2, edges, 1.0)
    print(i, flush=True)
"""


def test_acknowledged_edges_survive_kill_9(tmp_path: Path, make: Any) -> None:
    path = tmp_path / "graph.db"
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        acknowledged = [int(writer.stdout.readline()) for _ in range(3)]
        writer.send_signal(signal.SIGKILL)
        acknowledged += [int(line) for line in writer.stdout.read().split("\n") if line.strip()]
    assert writer.returncode == -signal.SIGKILL
    graph = make(path)
    there = {source for source, target, _, _ in graph.edges("acme") if target == "hub"}
    assert there >= {f"n{i}" for i in acknowledged}
    nodes, edges = graph.count("acme")
    assert (nodes - 1, len(there)) == (edges, edges)  # never a node without its edge: one transaction
