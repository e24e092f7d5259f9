"""expand: the published snapshot against Kùzu, Ladybug and networkx on the same graph, equal results asserted.

    OMP_NUM_THREADS=1 PYTHONPATH=. python tests/bench/bench_expand.py [rounds]

Every round times each variant once, in an order of its own, on the same 20 seeds, so a busy machine slows all alike;
ratios are taken a round. The databases and "networkx" name the nodes that are reached, "networkx, edges" the edges
among them, too, as "walk" does, the numpy walk alone; "subgraph" also fetches ids, texts and vectors of at most 100.
Ladybug can't share a process with Kùzu, so it has one of its own, which takes the time itself.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: spinning threads collapse on a small machine

import numpy as np

from operators.records import RELATIONS
from operators.stores.csr import walk
from operators.stores.kuzu_graph import KuzuGraph
from operators.stores.ports import Edge, Node
from operators.stores.snapshot import SnapshotReader, publish

NODES, EDGES, DIM, SEEDS = 20_000, 100_000, 384, 20
PEERS, OURS = ("kuzu", "ladybug", "networkx", "networkx, edges"), ("walk", "walk capped", "subgraph")
FREE: dict[str, Any] = {"max_nodes": NODES, "max_edges": EDGES, "decay": 0.7}
CAPPED: dict[str, Any] = {"max_nodes": 100, "max_edges": 1000, "decay": 0.7}


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds that ``work`` took, and what it gave."""
    began = time.perf_counter()
    out = work()
    return (time.perf_counter() - began) * 1e3, out


def summary(values: list[float]) -> dict[str, float]:
    """Median and the 5 % and 95 % quantiles."""
    low, median, high = np.quantile(values, [0.05, 0.5, 0.95])
    return {"p05": float(low), "p50": float(median), "p95": float(high)}


def edges_of(ids: list[str]) -> list[Edge]:
    """The same random edges in every process."""
    rng = np.random.default_rng(1)
    ends, relations = rng.integers(0, NODES, (EDGES, 2)), rng.integers(0, len(RELATIONS), EDGES)
    return [
        Edge(source_id=ids[s], target_id=ids[t], relation=RELATIONS[r], weight=float(w), created_at=0.0)
        for (s, t), r, w in zip(ends, relations, rng.random(EDGES), strict=True)
    ]


def filled(module: str, path: Path, ids: list[str]) -> KuzuGraph:
    """An open graph with everything in it."""
    graph = KuzuGraph(path, KuzuGraph.Config(module=module))
    graph.open()
    graph.upsert("bench", ids, ["document"] * len(ids), edges_of(ids), 0.0)
    return graph


def ladybug(path: Path, ids: list[str], asked: Any) -> None:
    """Answer (hops, seeds) with (milliseconds, reached) until there is no more."""
    graph = filled("ladybug", path, ids)
    asked.send("ready")
    while (question := asked.recv()) is not None:
        hops, seeds = question
        asked.send(timed(lambda h=hops, s=seeds: graph.expand("bench", s, h)))
    graph.close()


def reach(graph: Any, seeds: list[str], hops: int) -> set[str]:
    """All within ``hops`` of ``seeds`` in a graph of networkx, both directions, level by level."""
    seen = frontier = set(seeds)
    for _ in range(hops):
        around = (chain(graph.succ[node], graph.pred[node]) for node in frontier)
        frontier = set(chain.from_iterable(around)) - seen
        seen = seen | frontier
    return seen


def among(graph: Any, nodes: set[str]) -> list[tuple[str, str, str]]:
    """The edges among ``nodes`` in a graph of networkx: (source, target, relation)."""
    return [
        (source, target, relation)
        for source in nodes
        for target, relations in graph.succ[source].items()
        if target in nodes
        for relation in relations
    ]


def main(rounds: int = 30) -> dict[str, Any]:
    """Build the graphs, run the rounds, print a table and return the numbers."""
    import networkx

    ids = [f"{i:032x}" for i in range(NODES)]
    multi = networkx.MultiDiGraph()
    multi.add_nodes_from(ids)
    multi.add_edges_from((edge.source_id, edge.target_id, edge.relation) for edge in edges_of(ids))
    with tempfile.TemporaryDirectory() as root:
        here, there = multiprocessing.get_context("spawn").Pipe()
        child = multiprocessing.get_context("spawn").Process(target=ladybug, args=(Path(root) / "lady.db", ids, there))
        child.start()
        there.close()
        try:
            here.recv()  # ends with the child, should it die
            times = _rounds(rounds, Path(root), ids, multi, here)
            here.send(None)
            child.join()
        finally:
            child.kill()
    return _report(times, rounds)


def _rounds(rounds: int, root: Path, ids: list[str], multi: Any, lady: Any) -> dict[str, list[float]]:
    """Milliseconds of every round by "hops, name"."""
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((NODES, DIM)).astype(np.float32)
    nodes = [
        Node(node_id=name, kind="document", text="a chunk of text " * 20, vector=v, created_at=0.0)
        for name, v in zip(ids, vectors, strict=True)
    ]
    graph = filled("kuzu", root / "graph.db", ids)
    publish(root / "bench", nodes, graph.edges("bench"), {})
    snapshot = SnapshotReader(root / "bench").current()
    if snapshot is None:
        raise RuntimeError("nothing was published")
    times: dict[str, list[float]] = {}
    for turn in range(rounds + 2):
        seeds = [ids[i] for i in rng.choice(NODES, SEEDS, replace=False)]
        rows = snapshot.rows(seeds)
        for hops in (1, 2):

            def lady_expand(question: Any = (hops, seeds)) -> Any:
                lady.send(question)
                return lady.recv()

            works: dict[str, Callable[[], tuple[float, Any]]] = {
                "ladybug": lady_expand,
                "kuzu": lambda h=hops, s=seeds: timed(lambda: graph.expand("bench", s, h)),
                "networkx": lambda h=hops, s=seeds: timed(lambda: reach(multi, s, h)),
                "networkx, edges": lambda h=hops, s=seeds: timed(lambda: among(multi, reach(multi, s, h))),
                "walk": lambda h=hops, r=rows: timed(lambda: walk(snapshot.graph, r, hops=h, **FREE)),
                "walk capped": lambda h=hops, r=rows: timed(lambda: walk(snapshot.graph, r, hops=h, **CAPPED)),
                "subgraph": lambda h=hops, s=seeds: timed(lambda: snapshot.expand(s, hops=h, **CAPPED)),
            }
            order = rng.permutation(list(works)).tolist()
            got = {name: works[name]() for name in order}
            free = got["walk"][1]
            found = snapshot.text("ids", free.rows)
            ends = zip(free.edge_from.tolist(), free.edge_to.tolist(), free.edge_relation.tolist(), strict=True)
            edges = {(found[s], found[t], RELATIONS[r]) for s, t, r in ends}
            for peer in PEERS:
                if set(got[peer][1]) != (edges if peer == "networkx, edges" else set(found)):
                    raise AssertionError(f"{hops} hops from {seeds}: the snapshot and {peer} disagree")
            if turn >= 2:  # the first two warm up
                for name in works:
                    times.setdefault(f"{hops} hops, {name}", []).append(got[name][0])
    graph.close()
    return times


def _report(times: dict[str, list[float]], rounds: int) -> dict[str, Any]:
    out: dict[str, Any] = {"nodes": NODES, "edges": EDGES, "seeds": SEEDS, "rounds": rounds, "ms": {}, "over": {}}
    print(f"{'':26} {'p05 ms':>9} {'p50 ms':>9} {'p95 ms':>9}")
    for name, values in times.items():
        ms = out["ms"][name] = summary(values)
        print(f"{name:26} {ms['p05']:9.3f} {ms['p50']:9.3f} {ms['p95']:9.3f}")
    print(f"\n{'times as fast, p50 (p05-p95)':30}" + "".join(f"{ours:>24}" for ours in OURS))
    for hops in (1, 2):
        for peer in PEERS:
            line = f"{f'{hops} hops, than {peer}':30}"
            for ours in OURS:
                pairs = zip(times[f"{hops} hops, {peer}"], times[f"{hops} hops, {ours}"], strict=True)
                ratio = out["over"][f"{hops} hops, {peer} / {ours}"] = summary([theirs / own for theirs, own in pairs])
                line += f"{ratio['p50']:12.1f} ({ratio['p05']:.1f}-{ratio['p95']:.1f})".rjust(24)
            print(line)
    print(json.dumps(out))
    return out


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
