"""expand: the published snapshot against Kùzu's Cypher on the same graph, 20 seeds, equal results asserted.

    OMP_NUM_THREADS=1 python tests/bench/bench_expand.py [rounds]

Every round times each variant once after another on the same seeds, so a busy machine slows all alike; the ratio is
taken a round. "walk" is the numpy walk alone, "subgraph" also fetches ids, texts and vectors of at most 100 nodes.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
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


def main(rounds: int = 30) -> dict[str, Any]:
    """Build the graph, run the rounds, print a table and return the numbers."""
    rng = np.random.default_rng(0)
    ids = [f"{i:032x}" for i in range(NODES)]
    vectors = rng.standard_normal((NODES, DIM)).astype(np.float32)
    nodes = [
        Node(node_id=name, kind="document", text="a chunk of text " * 20, vector=v, created_at=0.0)
        for name, v in zip(ids, vectors, strict=True)
    ]
    ends, relations = rng.integers(0, NODES, (EDGES, 2)), rng.integers(0, len(RELATIONS), EDGES)
    edges = [
        Edge(source_id=ids[s], target_id=ids[t], relation=RELATIONS[r], weight=float(w), created_at=0.0)
        for (s, t), r, w in zip(ends, relations, rng.random(EDGES), strict=True)
    ]
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as root:
        graph = KuzuGraph(Path(root) / "graph.db")
        graph.open()
        graph.upsert("bench", ids, ["document"] * NODES, edges, 0.0)
        publish(Path(root) / "bench", nodes, graph.edges("bench"), {})
        snapshot = SnapshotReader(Path(root) / "bench").current()
        if snapshot is None:
            raise RuntimeError("nothing was published")
        for turn in range(rounds + 2):
            seeds = [ids[i] for i in rng.choice(NODES, SEEDS, replace=False)]
            rows = snapshot.rows(seeds)
            for hops in (1, 2):
                took = {}
                took["kuzu"], reference = timed(lambda h=hops, s=seeds: graph.expand("bench", s, h))
                took["walk"], free = timed(lambda h=hops, r=rows: walk(snapshot.graph, r, hops=h, **FREE))
                took["walk capped"], _ = timed(lambda h=hops, r=rows: walk(snapshot.graph, r, hops=h, **CAPPED))
                took["subgraph"], _ = timed(lambda h=hops, s=seeds: snapshot.expand(s, hops=h, **CAPPED))
                if set(snapshot.text("ids", free.rows)) != reference:
                    raise AssertionError(f"{hops} hops from {seeds}: the snapshot and Kùzu disagree")
                if turn >= 2:  # the first two warm up
                    for name, ms in took.items():
                        times.setdefault(f"{hops} hops, {name}", []).append(ms)
        graph.close()
    out: dict[str, Any] = {"nodes": NODES, "edges": EDGES, "seeds": SEEDS, "rounds": rounds, "ms": {}, "kuzu_over": {}}
    print(f"{'':24} {'p05 ms':>9} {'p50 ms':>9} {'p95 ms':>9} {'Kùzu / this (p05 p50 p95)':>30}")
    for name, values in times.items():
        kuzu = times[f"{name.split(',')[0]}, kuzu"]
        ratio = summary([k / v for k, v in zip(kuzu, values, strict=True)])
        ms = out["ms"][name] = summary(values)
        out["kuzu_over"][name] = ratio
        ratios = " ".join(f"{x:9.1f}" for x in ratio.values())
        print(f"{name:24} {ms['p05']:9.3f} {ms['p50']:9.3f} {ms['p95']:9.3f} {ratios:>30}")
    print(json.dumps(out))
    return out


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
