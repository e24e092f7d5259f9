"""The memory: vectors and full text, the graph, and the snapshot that readers map, kept in step.

Adding is in this order, and every step may be repeated: 1 nodes into the vector store, 2 nodes and edges into the
graph in one transaction, 3 a new snapshot. A node counts as added once the graph has it, so a crash anywhere is
repaired by adding the same nodes again. Removing is in ``removal``, remembering answers in ``remembering``. One process
owns a memory; others read its snapshots (``SnapshotReader``).
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import Field

from operators.base import Knobs
from operators.records import Hits, record
from operators.stores import portable, removal
from operators.stores.domains import Domains
from operators.stores.edges import EdgeMaker
from operators.stores.ports import Edge, GraphStore, Node, SearchRequest, Subgraph, VectorStore
from operators.stores.remembering import RememberingConfig
from operators.stores.snapshot import KEEP, NOTHING, Snapshot, SnapshotReader, publish
from operators.stores.tenants import check_tenant


@record
class Added:
    """What ``Memory.add`` did: ids that are in now and were not before, ids that were, edges that came to be."""

    new: tuple[str, ...]
    duplicate: tuple[str, ...]
    edges: int


@dataclasses.dataclass(slots=True)
class Tenant:
    """``dirty_since``, ``published_at`` and ``due_after`` are monotonic seconds; ``lock`` is held by whoever writes."""

    maker: EdgeMaker
    domains: Domains
    lock: threading.RLock
    dirty_since: float | None = None
    published_at: float = float("-inf")
    took: float = 0.0


INGESTED = "ingest.sqlite"
"""File beside the snapshots in which the ingest job notes what it has brought in."""
SHARE = 0.2
"""Publishing takes at most this share of the time: a large tenant's snapshots come less often."""


class Memory:
    """Composes the stores. ``directory`` holds the snapshots; any thread may call any method.

    ``clock`` gives Unix seconds (expiry), ``monotonic`` seconds for the pace of publishing. ``at`` is called with the
    name of every numbered step that is done; fault tests end the process in it.
    """

    class Config(Knobs):
        """The knobs of the memory."""

        edges: EdgeMaker.Config = EdgeMaker.Config()
        """Which edges new nodes get."""
        domains: Domains.Config = Domains.Config()
        """How answers without a domain get one."""
        remembering: RememberingConfig = RememberingConfig()
        """When an answer is one that is remembered already."""
        purge_after_s: float = Field(86_400.0, ge=0)
        """Seconds after which maintenance leaves nothing of a removed node in the vector store's files, which means
        writing them anew. A removal may ask for it at once."""
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
        at: Callable[[str], None] = lambda step: None,
    ) -> None:
        self.config, self.vectors, self.graph, self.directory = config, vectors, graph, Path(directory)
        self.clock, self._monotonic, self.at = clock, monotonic, at
        self._tenants: dict[str, Tenant] = {}
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
        try:
            portable.resume(self)
            removal.resume(self)
            for tenant in self.vectors.tenants():
                if self.stale(tenant):
                    self.publish(tenant)
        except BaseException:
            self.graph.close()
            self.vectors.close()
            raise
        self._opened = True

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
            return NOTHING
        return snapshot.expand(node_ids, hops=hops, max_nodes=max_nodes, max_edges=max_edges, decay=decay)

    def stale(self, tenant: str) -> bool:
        """Whether the newest snapshot shows something else than the stores hold."""
        current = self.reader(tenant).current()
        return current is None or current.manifest.get("stamp") != self._stamp(tenant)

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
        ids = list(dict.fromkeys(node.node_id for node in nodes))
        with self.writing(tenant) as state:
            stored = self.vectors.existing(tenant, ids)
            done = stored & self.graph.expand(tenant, ids, 0)
            todo = [node for node in {node.node_id: node for node in nodes}.values() if node.node_id not in done]
            before = after = self.graph.count(tenant)
            if todo or edges:
                self.touch(tenant)
                # 1
                self.vectors.upsert(tenant, [node for node in todo if node.node_id not in stored])
                self.at("vectors")
                # 2
                state.maker.place(todo)
                state.domains.learn(todo)
                made = [*self._joinable(tenant, todo, state.maker.edges(tenant, todo)), *edges]
                self.graph.upsert(
                    tenant,
                    [node.node_id for node in todo],
                    [node.kind for node in todo],
                    made,
                    max((node.created_at for node in todo), default=0.0),
                )
                self.at("graph")
                after = self.graph.count(tenant)
            # 3
            self._publish_if_due(tenant, state)
        return Added(
            new=tuple(node.node_id for node in todo),
            duplicate=tuple(node_id for node_id in ids if node_id in done),
            edges=after[1] - before[1],
        )

    @contextmanager
    def writing(self, tenant: str) -> Iterator[Tenant]:
        """What is kept of the tenant, and nobody else writes to it meanwhile."""
        while True:
            state = self._state(tenant)
            with state.lock:
                if self._tenants.get(tenant) is state:  # else it was forgotten while we waited
                    yield state
                    return

    def link(self, tenant: str, edges: Sequence[Edge]) -> None:
        """Write edges between nodes that are there; others are left out."""
        with self.writing(tenant):
            self.touch(tenant)
            self.graph.upsert(tenant, [], [], self._joinable(tenant, [], edges), 0.0)

    def join(self, tenant: str, nodes: Sequence[Node]) -> None:
        """Make the edges that ``nodes``, which are there, should have."""
        with self.writing(tenant) as state:
            self.link(tenant, state.maker.edges(tenant, nodes))

    def publish(self, tenant: str, keep: int = KEEP) -> int:
        """Publish the tenant's snapshot now; returns its version, 0 if nothing is left to show. Expired nodes are left
        out. ``keep`` snapshots stay on disk."""
        with self.writing(tenant) as state:
            began = self._monotonic()
            stamp, now = self._stamp(tenant), self.clock()
            nodes = [node for batch in self.vectors.scan(tenant) for node in batch if not 0 < node.expires_at <= now]
            version = publish(self.directory / tenant, nodes, self.graph.edges(tenant), {"stamp": stamp}, keep)
            state.dirty_since, state.published_at = None, self._monotonic()
            state.took = state.published_at - began
            return version

    def forget_ingested(self) -> None:
        """Documents went: the journal of what was ingested no longer holds, and the next ingest reads everything."""
        for tail in ("", "-wal", "-shm", "-journal"):
            (self.directory.parent / f"{INGESTED}{tail}").unlink(missing_ok=True)

    def touch(self, tenant: str) -> None:
        """Something changed that the next snapshot has to show."""
        with self.writing(tenant) as state:
            state.dirty_since = self._monotonic() if state.dirty_since is None else state.dirty_since

    def forget(self, tenant: str) -> None:
        """Drop what is kept of the tenant in this process; it is made anew from the stores when it is needed."""
        with self._lock:
            self._tenants.pop(tenant, None)

    def publish_due(self) -> list[str]:
        """Publish the tenants that wait for it and whose time has come; returns them. Call it now and then."""
        return [tenant for tenant, state in list(self._tenants.items()) if self._publish_if_due(tenant, state)]

    def optimize(self, tenant: str, *, purge: bool = False) -> None:
        """Let the vector store tidy up; off the hot path."""
        self.vectors.optimize(tenant, purge=purge)

    def _publish_if_due(self, tenant: str, state: Tenant) -> bool:
        with state.lock:
            waited = self._monotonic() - state.published_at
            if state.dirty_since is None or waited < max(self.config.publish_every_s, state.took / SHARE):
                return False
            self.publish(tenant)
            return True

    def _joinable(self, tenant: str, todo: Sequence[Node], edges: Sequence[Edge]) -> list[Edge]:
        """``edges`` but those to a node that a crash kept from the graph: it gets them when it is added again."""
        ends = {node_id for edge in edges for node_id in (edge.source_id, edge.target_id)}
        known = {node.node_id for node in todo}
        known |= self.graph.expand(tenant, sorted(ends - known), 0)
        return [edge for edge in edges if edge.source_id in known and edge.target_id in known]

    def _state(self, tenant: str) -> Tenant:
        check_tenant("memory", tenant)
        with self._lock:
            if tenant not in self._tenants:
                maker, domains = EdgeMaker(self.config.edges, self.vectors.search), Domains(self.config.domains)
                for batch in self.vectors.scan(tenant):
                    maker.place(batch)
                    domains.learn(batch)
                self._tenants[tenant] = Tenant(maker, domains, threading.RLock())
            return self._tenants[tenant]

    def _stamp(self, tenant: str) -> dict[str, Any]:
        nodes, edges = self.graph.count(tenant)
        return {"version": self.vectors.version(tenant), "nodes": nodes, "edges": edges}
