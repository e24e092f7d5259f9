"""The memory: vectors and full text, the graph, and the snapshot that readers map, kept in step.

Adding is in this order, and every step may be repeated: 1 nodes into the vector store, 2 nodes and edges into the
graph in one transaction, 3 a new snapshot. A node counts as added once the graph has it, so a crash anywhere is
repaired by adding the same nodes again. One process owns a memory; others read its snapshots (``SnapshotReader``).
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from operators.base import Knobs
from operators.records import Hits, record
from operators.stores.edges import EdgeMaker
from operators.stores.ports import Edge, GraphStore, Node, SearchRequest, Subgraph, VectorStore
from operators.stores.snapshot import Snapshot, SnapshotReader, publish
from operators.stores.tenants import check_tenant


@record
class Added:
    """What ``Memory.add`` did: ids that are in now and were not before, ids that were, edges that came to be."""

    new: tuple[str, ...]
    duplicate: tuple[str, ...]
    edges: int


@dataclasses.dataclass(slots=True)
class _Tenant:
    """``dirty_since`` and ``published_at`` are monotonic seconds; ``lock`` is held by whoever adds or publishes."""

    maker: EdgeMaker
    lock: threading.RLock
    dirty_since: float | None = None
    published_at: float = float("-inf")


class Memory:
    """Composes the stores. ``directory`` holds the snapshots; any thread may call any method.

    ``clock`` gives Unix seconds (expiry), ``monotonic`` seconds for the pace of publishing.
    """

    class Config(Knobs):
        """The knobs of the memory."""

        edges: EdgeMaker.Config = EdgeMaker.Config()
        """Which edges new nodes get."""
        optimize_every_s: float = Field(600.0, gt=0)
        """Seconds between two rounds of folding new rows into the vector store's indexes and tidying its files."""
        publish_every_s: float = Field(1.0, ge=0)
        """After a publication the next one waits so long, in seconds; additions meanwhile wait for ``publish_due``."""

    def __init__(
        self,
        config: Config,
        vectors: VectorStore,
        graph: GraphStore,
        directory: Path,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config, self.vectors, self.graph, self.directory = config, vectors, graph, Path(directory)
        self._clock, self._monotonic = clock, monotonic
        self._tenants: dict[str, _Tenant] = {}
        self._readers: dict[str, SnapshotReader] = {}
        self._lock = threading.Lock()
        self._opened = False

    def open(self) -> None:
        """Open both stores and publish every tenant whose snapshot is missing or stale. Raises ``Stop``."""
        self.vectors.open()
        try:
            self.graph.open()
        except BaseException:
            self.vectors.close()
            raise
        self._opened = True
        for tenant in self.vectors.tenants():
            current = self.reader(tenant).current()
            if current is None or current.manifest.get("stamp") != self._stamp(tenant):
                self.publish(tenant)

    def close(self) -> None:
        """Publish what is not published yet and close the stores; safe to call twice."""
        if not self._opened:
            return
        self._opened = False
        try:
            for tenant, state in list(self._tenants.items()):
                if state.dirty_since is not None:
                    self.publish(tenant)
        finally:
            self.graph.close()
            self.vectors.close()

    # ------------------------------------------------------------------------------------------------ reading

    def search(self, request: SearchRequest) -> Hits:
        """Best ``k`` nodes of the request's tenant that pass its filter, best first."""
        return self.vectors.search(request)

    def reader(self, tenant: str) -> SnapshotReader:
        """The reader of the tenant's snapshots."""
        check_tenant("memory", tenant)
        return self._readers.setdefault(tenant, SnapshotReader(self.directory / tenant))

    def expand(
        self, tenant: str, node_ids: Sequence[str], *, hops: int, max_nodes: int, max_edges: int, decay: float
    ) -> Subgraph:
        """The nodes within ``hops`` of ``node_ids`` and the edges among them, from the newest snapshot."""
        snapshot: Snapshot | None = self.reader(tenant).current()
        if snapshot is None:
            return _NOTHING
        return snapshot.expand(node_ids, hops=hops, max_nodes=max_nodes, max_edges=max_edges, decay=decay)

    def staleness(self, tenant: str) -> float:
        """Seconds since the oldest write that no snapshot shows yet; 0 if there is none."""
        state = self._tenants.get(tenant)
        since = state.dirty_since if state is not None else None
        return 0.0 if since is None else self._monotonic() - since

    # ------------------------------------------------------------------------------------------------ writing

    def add(self, tenant: str, nodes: Sequence[Node], edges: Sequence[Edge] = ()) -> Added:
        """Write ``nodes`` with the edges they get, and ``edges`` that the caller knows (``cites``, ``next_turn``).

        Findable when it returns; in the graph's snapshot after the next publication. Adding again adds nothing.
        """
        state = self._state(tenant)
        ids = list(dict.fromkeys(node.node_id for node in nodes))
        with state.lock:
            stored = self.vectors.existing(tenant, ids)
            done = stored & self.graph.expand(tenant, ids, 0)
            todo = [node for node in {node.node_id: node for node in nodes}.values() if node.node_id not in done]
            before = after = self.graph.count(tenant)
            if todo or edges:
                state.dirty_since = self._monotonic() if state.dirty_since is None else state.dirty_since
                # 1
                self.vectors.upsert(tenant, [node for node in todo if node.node_id not in stored])
                # 2
                state.maker.place(todo)
                made = [*self._joinable(tenant, todo, state.maker.edges(tenant, todo)), *edges]
                self.graph.upsert(
                    tenant,
                    [node.node_id for node in todo],
                    [node.kind for node in todo],
                    made,
                    max((node.created_at for node in todo), default=0.0),
                )
                after = self.graph.count(tenant)
            # 3
            self._publish_if_due(tenant, state)
        return Added(
            new=tuple(node.node_id for node in todo),
            duplicate=tuple(node_id for node_id in ids if node_id in done),
            edges=after[1] - before[1],
        )

    def publish(self, tenant: str) -> int:
        """Publish the tenant's snapshot now; returns its version. Nodes that have expired by now are left out."""
        state = self._state(tenant)
        with state.lock:
            stamp, now = self._stamp(tenant), self._clock()
            nodes = [node for batch in self.vectors.scan(tenant) for node in batch if not 0 < node.expires_at <= now]
            version = 0
            if nodes:
                version = publish(self.directory / tenant, nodes, self.graph.edges(tenant), {"stamp": stamp})
            state.dirty_since, state.published_at = None, self._monotonic()
            return version

    def publish_due(self) -> list[str]:
        """Publish the tenants that wait for it and whose time has come; returns them. Call it now and then."""
        return [tenant for tenant, state in list(self._tenants.items()) if self._publish_if_due(tenant, state)]

    def optimize(self, tenant: str) -> None:
        """Let the vector store tidy up; off the hot path."""
        self.vectors.optimize(tenant)

    def _publish_if_due(self, tenant: str, state: _Tenant) -> bool:
        with state.lock:
            waited = self._monotonic() - state.published_at
            if state.dirty_since is None or waited < self.config.publish_every_s:
                return False
            self.publish(tenant)
            return True

    def _joinable(self, tenant: str, todo: Sequence[Node], edges: Sequence[Edge]) -> list[Edge]:
        """``edges`` but those to a node that a crash kept from the graph: it gets them when it is added again."""
        ends = {node_id for edge in edges for node_id in (edge.source_id, edge.target_id)}
        known = {node.node_id for node in todo}
        known |= self.graph.expand(tenant, sorted(ends - known), 0)
        return [edge for edge in edges if edge.source_id in known and edge.target_id in known]

    def _state(self, tenant: str) -> _Tenant:
        check_tenant("memory", tenant)
        with self._lock:
            if tenant not in self._tenants:
                maker = EdgeMaker(self.config.edges, self.vectors.search)
                for batch in self.vectors.scan(tenant):
                    maker.place(batch)
                self._tenants[tenant] = _Tenant(maker, threading.RLock())
            return self._tenants[tenant]

    def _stamp(self, tenant: str) -> dict[str, Any]:
        nodes, edges = self.graph.count(tenant)
        return {"vectors": self.vectors.count(tenant), "nodes": nodes, "edges": edges}


_NOTHING = Subgraph(
    node_ids=(),
    kinds=(),
    texts=(),
    sources=(),
    vectors=np.zeros((0, 0), np.float32),
    tokens=np.zeros(0, np.int32),
    hop=np.zeros(0, np.int32),
    seeds=0,
    edge_from=np.zeros(0, np.int32),
    edge_to=np.zeros(0, np.int32),
    edge_relation=np.zeros(0, np.int8),
    edge_weight=np.zeros(0, np.float32),
    snapshot=0,
    truncated=False,
)
