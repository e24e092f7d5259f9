"""Nodes in LanceDB: one database directory a tenant, table ``nodes``; the only file that knows ``lancedb``.

Searches are answered from rows in memory where a tenant's size allows it (``kept``), ten times faster at 20,000 rows;
else from LanceDB's own indexes (``lance_search``): full text always, HNSW from ``index_rows`` on. All ways pass the
same tests. Writes go to LanceDB first, always.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic import Field

from operators.base import Knobs
from operators.errors import Reject, Stop
from operators.records import Filter, Hits
from operators.stores import fusion, lance_rows
from operators.stores.kept import Kept
from operators.stores.lance_search import search_table
from operators.stores.ports import Node, SearchRequest
from operators.stores.tenants import check_nodes, check_tenant, check_vector
from operators.stores.vendor import translate

TABLE = "nodes"
BATCH = 1024
"""Rows in one batch of ``scan``."""


@dataclasses.dataclass(slots=True)
class _Tenant:
    """An open table. ``lock`` is held by whoever writes or reloads; searches take it only to look at the version."""

    table: Any
    lock: threading.RLock
    kept: Kept
    version: int
    checked: float


class LanceStore:
    """``VectorStore`` on LanceDB. ``dim``: length of the vectors; ``clock`` gives Unix seconds (expiry)."""

    class Config(Knobs):
        """The knobs of the vector store."""

        resident_rows: int = Field(50_000, ge=0)
        """Tenants up to this many rows are searched in memory, every row; 0: none are."""
        approximate_rows: int = Field(2_000_000, ge=0)
        """Larger tenants up to this many rows are searched in memory with an index (2.4 kB a row of 384 dimensions)."""
        index_rows: int = Field(50_000, ge=256)
        """``optimize`` builds the HNSW index from this many rows on; below it a scan is exact and fast enough."""
        ef: int = Field(256, ge=1)
        """Candidates that HNSW looks at; more is slower and finds more."""
        refresh_s: float = Field(1.0, ge=0)
        """Seconds after which rows that another process wrote are seen at the latest."""
        keep_versions_s: float = Field(600.0, ge=1)
        """``optimize`` removes table versions older than this, in seconds; a reader must not take longer."""

    def __init__(
        self, root: Path, dim: int, config: Config | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self.root, self.dim, self.config, self.clock = Path(root), dim, config or self.Config(), clock
        self._open: dict[str, _Tenant] = {}
        self._opening: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()
        self._lancedb: Any = None

    def open(self) -> None:
        """Load the library and make the directory. Raises ``Stop`` when it can't be used."""
        os.environ.setdefault("LANCEDB_LOG", "error")  # before the import: the library reads it once
        import lancedb

        with self._door():
            self.root.mkdir(parents=True, exist_ok=True)
            if not os.access(self.root, os.W_OK | os.X_OK):
                raise PermissionError(f"Permission denied: {self.root}")
        self._lancedb = lancedb

    def upsert(self, tenant: str, nodes: Sequence[Node]) -> int:
        """Write ``nodes`` by id; durable and findable when it returns. Returns how many ids were new."""
        check_tenant("memory", tenant)
        unique = check_nodes("memory", nodes, self.dim)
        if not unique:
            return 0
        with self._door():
            opened = self._tenant(tenant) or self._create(tenant)
            with opened.lock:
                self._refresh(opened, always=True)
                merge = opened.table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
                result = merge.execute(lance_rows.table(unique, self.dim))
                opened.kept.put(unique)
                opened.version = result.version
                return int(result.num_inserted_rows)

    def search(self, request: SearchRequest) -> Hits:
        """Best ``k`` nodes of the request's tenant that pass its filter, best first."""
        check_tenant("memory", request.tenant)
        if request.mode != "text" or request.vector.shape != (self.dim,):
            check_vector("memory", request.vector, self.dim, "the query")
        where = lance_rows.sql(request.filter, self.clock())  # also refuses a filter that can't be
        if request.k < 1:
            raise Reject("memory", f"k = {request.k}", "ask for at least one hit", param="k")
        with self._door():
            opened = self._tenant(request.tenant)
            if opened is None:
                return fusion.hits([], [], [], [], request.mode, self.dim)
            self._refresh(opened)
            rows = opened.kept.answering(request.k)
            if rows is not None:
                return fusion.search_resident(rows, request, self.clock())
            ef = self.config.ef if self._has_hnsw(opened.table) else 0
            return search_table(opened.table, request, where, ef, self._tokenize)

    def existing(self, tenant: str, node_ids: Sequence[str]) -> set[str]:
        """Which of ``node_ids`` are stored."""
        with self._door():
            opened = self._tenant(check_tenant("memory", tenant))
            if opened is None or not node_ids:
                return set()
            self._refresh(opened)
            rows = opened.kept.rows
            if rows is not None:
                return {node_id for node_id in node_ids if node_id in rows}
            query = opened.table.search().where(lance_rows.one_of("id", sorted(set(node_ids)))).select(["id"])
            return set(query.to_arrow()["id"].to_pylist())

    def get(self, tenant: str, node_ids: Sequence[str]) -> dict[str, Node]:
        """The nodes among ``node_ids`` that are stored, expired ones too."""
        with self._door():
            opened = self._tenant(check_tenant("memory", tenant))
            if opened is None or not node_ids:
                return {}
            self._refresh(opened)
            where = lance_rows.one_of("id", sorted(set(node_ids)))
            rows = opened.table.search().where(where).select(lance_rows.COLUMNS).to_arrow()
            return {node.node_id: node for node in lance_rows.nodes(rows)}

    def listed(self, tenant: str, where: Filter, *, expired: bool | None = None) -> list[tuple[float, str]]:
        """(created_at, id) of every node that passes ``where``, newest first; ``expired`` asks for one sort only."""
        with self._door():
            opened = self._tenant(check_tenant("memory", tenant))
            if opened is None:
                return []
            self._refresh(opened)
            condition = lance_rows.sql(where, self.clock(), expired)
            rows = opened.table.search().where(condition).select(["id", "created_at"]).to_arrow()
            pairs = zip(rows["created_at"].to_pylist(), rows["id"].to_pylist(), strict=True)
            return sorted(pairs, reverse=True)

    def remove(self, tenant: str, node_ids: Sequence[str]) -> int:
        """Remove nodes by id, durably; returns how many there were."""
        with self._door():
            opened = self._tenant(check_tenant("memory", tenant))
            if opened is None or not node_ids:
                return 0
            with opened.lock:
                self._refresh(opened, always=True)
                before = opened.table.count_rows()
                for begin in range(0, len(node_ids), BATCH):
                    opened.table.delete(lance_rows.one_of("id", node_ids[begin : begin + BATCH]))
                opened.kept.remove(node_ids)
                opened.version = opened.table.version
                return int(before - opened.table.count_rows())

    def scan(self, tenant: str) -> Iterator[Sequence[Node]]:
        """Every node in batches, ordered by nothing in particular."""
        with self._door():
            opened = self._tenant(check_tenant("memory", tenant))
            if opened is not None:
                self._refresh(opened)
                yield from self._read(opened.table)

    def tenants(self) -> list[str]:
        """Tenants that have a database, sorted."""
        with self._door():
            return sorted(path.name for path in self.root.glob("*") if self._written(path.name))

    def count(self, tenant: str) -> int:
        """Number of nodes."""
        with self._door():
            opened = self._tenant(check_tenant("memory", tenant))
            if opened is None:
                return 0
            self._refresh(opened)
            return int(opened.table.count_rows())

    def version(self, tenant: str) -> int:
        """A number that rises with every write; 0 if there never was one."""
        with self._door():
            opened = self._tenant(check_tenant("memory", tenant))
            if opened is None:
                return 0
            self._refresh(opened)
            return int(opened.table.version)

    def optimize(self, tenant: str, *, purge: bool = False) -> None:
        """Fold recent writes into the indexes, compact, remove old versions, build HNSW when it is due. One process
        at a time may do this: two rewrites conflict. ``purge`` leaves nothing of removed nodes in any file."""
        from lancedb.index import HnswSq

        with self._door():
            opened = self._tenant(check_tenant("memory", tenant))
            if opened is None:
                return
            if purge:  # compacting leaves removed rows where they are few, and their words in the index
                with opened.lock:
                    self._refresh(opened, always=True)
                    self.replace(tenant, self._read(opened.table))
                opened = self._create(tenant)
            with opened.lock:
                self._refresh(opened, always=True)
                if opened.table.count_rows() >= self.config.index_rows and not self._has_hnsw(opened.table):
                    opened.table.create_index(
                        "vector", config=HnswSq(distance_type="cosine", num_partitions=1, m=32, ef_construction=200)
                    )
                keep = timedelta(seconds=0 if purge else self.config.keep_versions_s)
                with warnings.catch_warnings():  # of readers of old versions: only this process reads them
                    warnings.filterwarnings("ignore", "optimize\\(cleanup_older_than=0\\)", UserWarning)
                    opened.table.optimize(cleanup_older_than=keep)
                opened.version = opened.table.version

    def replace(self, tenant: str, nodes: Iterable[Sequence[Node]]) -> int:
        """Make ``nodes`` (in batches) all that the tenant has, in one step; returns how many."""
        import pyarrow as pa

        with self._door():
            opened = self._tenant(check_tenant("memory", tenant)) or self._create(tenant)
            with opened.lock:
                rows = (
                    batch
                    for some in nodes
                    for batch in lance_rows.table(check_nodes("memory", some, self.dim), self.dim).to_batches()
                )
                schema = lance_rows.schema(self.dim)
                opened.table.add(pa.RecordBatchReader.from_batches(schema, rows), mode="overwrite")
                self._open.pop(tenant)  # opened anew, with new indexes and rows in memory
            return int(self._create(tenant).table.count_rows())

    def drop(self, tenant: str) -> None:
        """Remove the tenant, its files and all."""
        with self._door(), self._lock:
            self._open.pop(check_tenant("memory", tenant), None)
            table = self.root / tenant / f"{TABLE}.lance"
            if (table / "_versions").exists():  # in one step: whatever a crash leaves of it is no table any more
                os.rename(table / "_versions", table / "dropped")
            if (self.root / tenant).exists():
                shutil.rmtree(self.root / tenant)

    def close(self) -> None:
        """Release handles; safe to call twice."""
        with self._lock:
            for opened in self._open.values():
                opened.kept.close()
            self._open.clear()
            self._lancedb = None

    # ------------------------------------------------------------------------------------------------ tables

    def _tenant(self, tenant: str) -> _Tenant | None:
        """The tenant's open table; ``None`` if nothing was ever written."""
        if tenant in self._open:
            return self._open[tenant]
        return self._create(tenant) if self._written(tenant) else None

    def _written(self, tenant: str) -> bool:
        """Whether the tenant's table was ever committed; a crash while making it may leave a directory without."""
        return any((self.root / tenant / f"{TABLE}.lance" / "_versions").glob("*.manifest"))

    def _create(self, tenant: str) -> _Tenant:
        """Open the tenant's table, made if there is none. Two threads may come here at once: one waits."""
        with self._lock:
            if self._lancedb is None:
                raise Stop("memory", "the store is not open", "call open() first")
            lock = self._opening.setdefault(tenant, threading.Lock())
        with lock:
            if tenant not in self._open:
                self._open[tenant] = self._open_table(tenant)
            return self._open[tenant]

    def _open_table(self, tenant: str) -> _Tenant:
        from lancedb.index import FTS

        database = self._lancedb.connect(self.root / tenant)
        if self._written(tenant):
            table = database.open_table(TABLE)
        else:
            table = database.create_table(TABLE, schema=lance_rows.schema(self.dim), mode="overwrite")
        if not table.list_indices():  # new, or a crash came between the table and its index
            table.create_index("text", config=FTS(with_position=False, stem=True))
        missing = set(lance_rows.COLUMNS) - set(table.schema.names)
        if missing:
            got = f"tenant {tenant!r} has no column {', '.join(sorted(missing))}: another version of RuvLLM wrote it"
            raise Stop("memory", got, f"ingest its documents anew, into another directory than {self.root}")
        held = table.schema.field("vector").type.list_size
        if held != self.dim:
            got = f"tenant {tenant!r} holds vectors of {held}, the encoder makes vectors of {self.dim}"
            raise Stop("memory", got, f"use the encoder it was made with, or another directory than {self.root}")
        limits = self.config.resident_rows, self.config.approximate_rows
        kept = Kept(self.dim, self._tokenize, *limits, lambda size: self._read(table, size))
        opened = _Tenant(table, threading.RLock(), kept, table.version, time.monotonic())
        kept.open(table.count_rows())
        return opened

    def _refresh(self, opened: _Tenant, always: bool = False) -> None:
        """Take over what other processes wrote, at most every ``refresh_s``."""
        if not always and time.monotonic() - opened.checked < self.config.refresh_s:
            return
        if not opened.lock.acquire(blocking=always):
            return  # somebody writes or tidies up: no search waits for that
        try:
            opened.checked = time.monotonic()
            opened.table.checkout_latest()
            version = opened.table.version
            if version == opened.version:
                return
            opened.kept.refresh(opened.table.count_rows())
            opened.version = version
        finally:
            opened.lock.release()

    def _tokenize(self, text: str) -> list[str]:
        return [token.text for token in self._lancedb.tokenize(text, stem=True)]

    @staticmethod
    def _has_hnsw(table: Any) -> bool:
        return any("vector" in index.columns for index in table.list_indices())

    @staticmethod
    def _read(table: Any, size: int = BATCH) -> Iterator[list[Node]]:
        for batch in table.search().select(lance_rows.COLUMNS).to_batches(size):
            yield lance_rows.nodes(batch)

    @contextmanager
    def _door(self) -> Iterator[None]:
        """The one place where LanceDB's errors become ours."""
        try:
            yield
        except (OSError, RuntimeError) as e:
            raise translate("memory", e, self.root) from e
