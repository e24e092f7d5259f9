"""The durable graph in Kùzu (or its fork Ladybug); the only file that knows ``kuzu``.

One file for all tenants; a node's id there is ``<tenant>/<node id>``, and as no tenant's name holds a slash, tenants
can never meet. Kùzu lets one process open a file for writing and one transaction write at a time, and a connection must
never be used by two threads at once (silent corruption). So there is one connection behind one lock: callers queue up
there as they would for a writer thread, without a hop to it. Reads are rare: the hot path reads the snapshot.

Rows go in by COPY: a MERGE or MATCH of single rows scans the node table, seconds for a thousand edges.
"""

from __future__ import annotations

import importlib
import importlib.util  # kuzu's COPY from arrow reads importlib.util without importing it
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from operators.base import Knobs
from operators.errors import RuvError, Skip, Stop
from operators.records import RELATIONS, Kind
from operators.stores.ports import Edge
from operators.stores.tenants import check_tenant
from operators.stores.vendor import translate

FEW = 1000
"""Up to this many ids are looked up by list; for more it is faster to read all of the tenant."""
_SCHEMA = (
    "CREATE NODE TABLE IF NOT EXISTS Node(id STRING PRIMARY KEY, tenant STRING, kind STRING, created_at DOUBLE)",
    "CREATE REL TABLE IF NOT EXISTS Edge(FROM Node TO Node, rel INT8, weight DOUBLE, created_at DOUBLE, "
    "valid_from DOUBLE, valid_to DOUBLE, source STRING)",
)
_owned: set[Path] = set()
"""Files open in this process: Kùzu's own lock does not keep a process from opening a file twice."""


class KuzuGraph:
    """``GraphStore`` on Kùzu. ``module`` is the Python module to use: the two have the same interface and different
    files, and refuse each other's. Any thread may call it."""

    class Config(Knobs):
        """The knobs of the graph store."""

        module: Literal["kuzu", "ladybug"] = "kuzu"
        """Which implementation to use; ``ladybug`` is the maintained fork (``pip install ladybug==0.22.0``). Neither
        opens the other's files."""
        buffer_pool_bytes: int = Field(256 << 20, ge=32 << 20)
        """Memory for pages, in bytes."""
        max_bytes: int = Field(64 << 30, ge=1 << 30)
        """Largest size of the file, in bytes; so much address space is reserved. A power of two."""
        threads: int = Field(1, ge=1, le=64)
        """Threads a query may use."""

    def __init__(self, path: Path, config: Config | None = None) -> None:
        self.path, self.config = Path(path).resolve(), config or self.Config()
        self._database: Any = None
        self._connection: Any = None
        self._lock = threading.RLock()

    def open(self) -> None:
        """Open or create. Raises ``Stop`` when another process owns it or the file can't be used."""
        try:
            with _private_symbols():
                module = importlib.import_module(self.config.module)
        except ImportError as e:
            raise Stop("graph", f"can't import {self.config.module!r}: {e}", "install it, or set module: kuzu") from e
        with self._lock:
            if self._connection is not None:
                return
            if self.path in _owned:
                raise Stop("graph", f"{self.path} is open in this process already", "share the one that has it open")
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with _private_symbols():  # ladybug loads its library only here
                    self._database = module.Database(
                        str(self.path),
                        buffer_pool_size=self.config.buffer_pool_bytes,
                        max_db_size=self.config.max_bytes,
                        max_num_threads=self.config.threads,
                    )
                self._connection = module.Connection(self._database, num_threads=self.config.threads)
                for statement in _SCHEMA:
                    self._connection.execute(statement).close()
            except (RuntimeError, OSError) as e:
                self._release()
                if "lock on file" in str(e):
                    remedy = "let the process that has it open do the work, or end it"
                    raise Stop("graph", f"another process has {self.path} open", remedy) from e
                remedy = f"give a file that it may write, made by {self.config.module}"
                raise Stop("graph", f"can't open {self.path}: {e}", remedy) from e
            _owned.add(self.path)

    def upsert(
        self, tenant: str, node_ids: Sequence[str], kinds: Sequence[Kind], edges: Sequence[Edge], created_at: float
    ) -> None:
        """Write nodes and edges in one transaction; edges whose ends are unknown raise ``Skip`` and write nothing.

        ``created_at`` (Unix seconds) is that of the nodes. What is there already stays, but for an edge's weight.
        """
        kind_of = dict(zip((_key(tenant, node_id) for node_id in node_ids), kinds, strict=True))
        edge_of = {
            (_key(tenant, e.source_id), _key(tenant, e.target_id), RELATIONS.index(e.relation)): e for e in edges
        }
        with self._door(), self._transaction():
            ends = {key for s, t, _ in edge_of for key in (s, t)}
            known = self._known(tenant, ends | kind_of.keys())
            lost = sorted(ends - known - kind_of.keys())
            if lost:
                got = f"{len(lost)} ends of edges are no nodes of tenant {tenant!r}, e.g. {lost[0]!r}"
                raise Skip("graph", got, "write the nodes first")
            self._copy_nodes(tenant, {key: kind for key, kind in kind_of.items() if key not in known}, created_at)
            weights = self._weights(tenant, {s for s, _, _ in edge_of} & known)
            self._copy_edges({key: edge for key, edge in edge_of.items() if key not in weights})
            changed = {k: e.weight for k, e in edge_of.items() if weights.get(k, e.weight) != e.weight}
            if changed:
                self._run(
                    "UNWIND $rows AS r MATCH (a:Node {id: r.s})-[e:Edge]->(b:Node {id: r.t}) WHERE e.rel = r.rel "
                    "SET e.weight = r.weight",
                    rows=[{"s": s, "t": t, "rel": rel, "weight": float(w)} for (s, t, rel), w in changed.items()],
                )

    def edges(self, tenant: str) -> Iterable[tuple[str, str, int, float]]:
        """Every live edge as (source_id, target_id, relation index, weight)."""
        cut = len(_key(tenant, ""))
        with self._door():
            rows = self._run(
                "MATCH (a:Node)-[e:Edge]->(b:Node) WHERE a.tenant = $tenant AND e.valid_to = 0.0 "
                "RETURN a.id, b.id, e.rel, e.weight",
                tenant=tenant,
            )
        return [(s[cut:], t[cut:], relation, weight) for s, t, relation, weight in rows]

    def expand(self, tenant: str, node_ids: Sequence[str], hops: int) -> set[str]:
        """Known nodes among ``node_ids`` and all within ``hops`` of them, both ways. The slow, exact reference."""
        cut, keys = len(_key(tenant, "")), sorted({_key(tenant, node_id) for node_id in node_ids})
        path = f"-[e:Edge*0..{int(hops)} (r, n | WHERE r.valid_to = 0.0)]-(b:Node)" if hops else ""
        with self._door():
            rows = self._run(
                f"MATCH (a:Node){path} WHERE a.id IN $keys RETURN DISTINCT {'b' if hops else 'a'}.id", keys=keys
            )
        return {key[cut:] for (key,) in rows}

    def count(self, tenant: str) -> tuple[int, int]:
        """(nodes, edges)."""
        check_tenant("graph", tenant)
        with self._door():
            nodes = self._run("MATCH (a:Node) WHERE a.tenant = $tenant RETURN count(*)", tenant=tenant)
            edges = self._run(
                "MATCH (a:Node)-[e:Edge]->(b:Node) WHERE a.tenant = $tenant AND e.valid_to = 0.0 RETURN count(*)",
                tenant=tenant,
            )
        return int(nodes[0][0]), int(edges[0][0])

    def close(self) -> None:
        """Checkpoint and release the file; safe to call twice."""
        with self._lock:
            if self._connection is None:
                return
            try:
                with self._door():
                    self._run("CHECKPOINT")
            finally:
                self._release()
                _owned.discard(self.path)

    def _release(self) -> None:
        for handle in (self._connection, self._database):
            if handle is not None:
                handle.close()
        self._connection = self._database = None

    # ------------------------------------------------------------------------------------------------ statements

    def _run(self, statement: str, **parameters: Any) -> list[list[Any]]:
        result = self._connection.execute(statement, parameters)
        try:
            rows: list[list[Any]] = result.get_all()
            return rows
        finally:
            result.close()

    def _known(self, tenant: str, keys: set[str]) -> set[str]:
        if not keys:
            return set()
        if len(keys) <= FEW:
            rows = self._run("MATCH (a:Node) WHERE a.id IN $keys RETURN a.id", keys=sorted(keys))
        else:
            rows = self._run("MATCH (a:Node) WHERE a.tenant = $tenant RETURN a.id", tenant=tenant)
        return {key for (key,) in rows} & keys

    def _weights(self, tenant: str, sources: set[str]) -> dict[tuple[str, str, int], float]:
        """The stored edges that start at ``sources``, with their weights."""
        if not sources:
            return {}
        where, parameters = ("a.id IN $keys", {"keys": sorted(sources)})
        if len(sources) > FEW:
            where, parameters = ("a.tenant = $tenant", {"tenant": tenant})  # type: ignore[dict-item]
        rows = self._run(
            f"MATCH (a:Node)-[e:Edge]->(b:Node) WHERE {where} RETURN a.id, b.id, e.rel, e.weight", **parameters
        )
        return {(s, t, relation): weight for s, t, relation, weight in rows}

    def _copy_nodes(self, tenant: str, kind_of: dict[str, Kind], created_at: float) -> None:
        import pyarrow as pa

        if not kind_of:
            return
        n = len(kind_of)
        columns = {"id": list(kind_of), "tenant": [tenant] * n, "kind": list(kind_of.values())}
        table = pa.table({**columns, "created_at": [float(created_at)] * n})
        self._run("COPY Node FROM $rows", rows=table)

    def _copy_edges(self, edge_of: dict[tuple[str, str, int], Edge]) -> None:
        import pyarrow as pa

        if not edge_of:
            return
        edges, created = list(edge_of.values()), [float(edge.created_at) for edge in edge_of.values()]
        table = pa.table(
            {
                "from": [key[0] for key in edge_of],
                "to": [key[1] for key in edge_of],
                "rel": pa.array([key[2] for key in edge_of], pa.int8()),
                "weight": [float(edge.weight) for edge in edges],
                "created_at": created,
                "valid_from": created,
                "valid_to": [0.0] * len(edges),
                "source": [""] * len(edges),
            }
        )
        self._run("COPY Edge FROM $rows", rows=table)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._run("BEGIN TRANSACTION")
        try:
            yield
            self._run("COMMIT")
        except BaseException:
            # Kùzu has already rolled back after some errors of its own, and says so with an error here.
            try:
                self._run("ROLLBACK")
            except RuntimeError as e:
                if "No active transaction" not in str(e):
                    raise
            raise

    @contextmanager
    def _door(self) -> Iterator[None]:
        """The lock, and the one place where Kùzu's errors become ours."""
        with self._lock:
            if self._connection is None:
                raise Stop("graph", f"{self.path} is not open", "call open() first")
            try:
                yield
            except RuvError:
                raise
            except RuntimeError as e:
                raise translate("graph", e, self.path) from e


@contextmanager
def _private_symbols() -> Iterator[None]:
    """Both load themselves with RTLD_GLOBAL for their extensions, which we don't use. Their C++ symbols would then
    stand in for those of libraries that load later: importing xllamacpp after it ends the process (bad_alloc)."""
    real = sys.setdlopenflags
    sys.setdlopenflags = lambda flags: None
    try:
        yield
    finally:
        sys.setdlopenflags = real


def _key(tenant: str, node_id: str) -> str:
    return f"{check_tenant('graph', tenant)}/{node_id}"
