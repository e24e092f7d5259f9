"""A small memory on its real stores for the tests of its lifecycle, a crash in it, and all that it shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from operators.records import RELATIONS, Filter
from operators.stores.edges import EdgeMaker
from operators.stores.kuzu_graph import KuzuGraph
from operators.stores.lance import LanceStore
from operators.stores.memory import Memory
from operators.stores.ports import Node, SearchRequest

DIM = 8
NOW = 1_000_000.0
WALK: dict[str, Any] = {"hops": 2, "max_nodes": 100, "max_edges": 100, "decay": 0.5}
At = Callable[[str], None]


class Crash(BaseException):
    """Raised where a process would die; nothing of ours catches it."""


def build(
    root: Path,
    *,
    at: At = lambda step: None,
    clock: Callable[[], float] = lambda: NOW,
    every: float = 0.0,
    dim: int = DIM,
    purge_after_s: float = 86_400.0,
) -> Memory:
    """An open memory in ``root`` that publishes at once."""
    memory = Memory(
        Memory.Config(
            edges=EdgeMaker.Config(similar_threshold=0.9, similar_top=3),
            publish_every_s=every,
            purge_after_s=purge_after_s,
        ),
        LanceStore(root / "vectors", dim, LanceStore.Config(refresh_s=0), clock=clock),
        KuzuGraph(root / "graph.db", KuzuGraph.Config(buffer_pool_bytes=64 << 20, max_bytes=1 << 30)),
        root / "snapshots",
        clock=clock,
        monotonic=lambda: NOW,  # publishing takes no time, so the next one is due at once
        at=at,
    )
    memory.open()
    return memory


def crash(memory: Memory) -> None:
    """Let go of the files as a killed process does: nothing is published, nothing finished."""
    memory.graph.close()
    memory.vectors.close()


def dies_at(step: str) -> At:
    """An ``at`` that crashes when ``step`` is done."""

    def at(done: str) -> None:
        if done == step:
            raise Crash(step)

    return at


def unit(*values: float) -> Any:
    vector = np.zeros(DIM, np.float32)
    vector[: len(values)] = values
    return vector / np.linalg.norm(vector)


def node(name: str, text: str, vector: Any, **fields: Any) -> Node:
    fields = {"kind": "document", "created_at": NOW, "tokens": len(text.split())} | fields
    return Node(node_id=name, text=text, vector=vector, **fields)


SECRET = "xyzzyplugh"
SECRETS = ["a1", "s1"]
"""Ids of the nodes whose text has ``SECRET``."""
NODES = [
    node("a0", "The lamp is green", unit(1), source="a.md", position=0),
    node("a1", f"The word is {SECRET}", unit(0, 1), source="a.md", position=1, user="ada"),
    node("a2", "The harbour is deep", unit(0, 0, 1), source="a.md", position=2),
    node("s0", "Who has the key?", unit(0, 0, 0, 1), kind="interaction", session="s", position=0, created_at=NOW + 1),
    node("s1", f"Ada has {SECRET}", unit(0, 1, 0, 0.1), kind="interaction", session="s", position=1, user="ada"),
    node("b0", "A lamp, green as grass", unit(1, 0.1), source="b.md", position=0, domain="light"),
]


def shown(memory: Memory, tenant: str = "acme") -> dict[str, Any]:
    """Whatever the stores and the snapshot show of a tenant."""
    stored = {n.node_id: n for batch in memory.vectors.scan(tenant) for n in batch}
    around = memory.expand(tenant, sorted(stored) + SECRETS, **WALK)
    names = around.node_ids
    return {
        "nodes": {name: (n.text, n.source, n.session, n.vector.tolist()) for name, n in stored.items()},
        "listed": sorted(memory.vectors.listed(tenant, Filter())),
        "found": {mode: found(memory, SECRET + " green lamp", mode, tenant) for mode in ("hybrid", "vector", "text")},
        "graph": memory.graph.node_ids(tenant),
        "edges": sorted((s, t, RELATIONS[r], w) for s, t, r, w in memory.graph.edges(tenant)),
        "gone": memory.graph.gone(tenant, memory.graph.all_gone(tenant)),
        "snapshot": dict(zip(names, around.texts, strict=True)),
        "snapshot edges": sorted((names[s], names[t]) for s, t in zip(around.edge_from, around.edge_to, strict=True)),
    }


def found(memory: Memory, text: str, mode: Any, tenant: str = "acme", vector: Any = None) -> list[str]:
    """Ids of the hits, sorted."""
    vector = unit(0, 1) if vector is None else vector
    hits = memory.search(SearchRequest(tenant=tenant, text=text, vector=vector, k=100, mode=mode)).hits
    return sorted(hit.node_id for hit in hits)


def files_with(root: Path, text: str) -> list[str]:
    """The files below ``root`` that hold ``text``."""
    return [
        str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and text.encode() in path.read_bytes()
    ]
