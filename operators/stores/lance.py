"""Nodes in LanceDB: one database directory a tenant, table ``nodes``; the only file that knows ``lancedb``.

Searches are answered from rows in memory where a tenant's size allows it (``kept``), ten times faster at 20,000 rows;
else from LanceDB's own indexes (``lance_search``): full text always, HNSW from ``index_rows`` on. All ways pass the
same tests. Writes go to LanceDB first, always.
"""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr

from operators.base import Knobs
from operators.errors import Reject, Stop
from operators.records import Filter, Hits
from operators.stores import fusion, lance_rows
from operators.stores.lance_search import search_table
from operators.stores.lance_table import OpenTable, check_schema
from operators.stores.places import Place
from operators.stores.ports import Node, SearchRequest
from operators.stores.tenants import check_nodes, check_tenant, check_vector
from operators.stores.vendor import translate

TABLE = "nodes"
SLICE = 1024
"""Ids named in one statement."""


class LanceStore:
    """``VectorStore`` on LanceDB. ``root`` holds the tenants' directories, unless ``config.uri`` names another place.

    ``dim``: length of the vectors; ``clock`` gives Unix seconds (expiry)."""

    class Config(Knobs):
        """The knobs of the vector store."""

        uri: str = Field("", pattern=r"^(s3://.+)?$")
        """Where the vectors are kept instead of the data directory: ``s3://bucket/prefix``, in a bucket that exists and
        whose storage honours conditional writes. The graph stays in the data directory."""
        storage: dict[str, SecretStr] = Field(default_factory=dict)
        """How to reach ``uri``, in LanceDB's words: ``aws_access_key_id``, ``aws_secret_access_key``, ``aws_region``,
        ``aws_endpoint``, ``allow_http``. What is missing comes from the environment or the machine's role."""
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
        self.dim, self.config, self.clock = dim, config or self.Config(), clock
        options = {name: value.get_secret_value() for name, value in self.config.storage.items()}
        self.place = Place(self.config.uri or root, options)
        self._open: dict[str, OpenTable] = {}
        self._opening: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()
        self._lancedb: Any = None

    def open(self) -> None:
        """Load the library and make the directory. Raises ``Stop`` when it can't be used."""
        os.environ.setdefault("LANCEDB_LOG", "error")  # before the import: the library reads it once
        import lancedb

        with self._door():
            self.place.prepare()
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
                opened.refresh(always=True)
                merge = opened.table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
                result = merge.execute(lance_rows.table(unique, self.dim))
                opened.kept.put(unique)
                opened.written()
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
            opened.refresh()
            rows = opened.kept.answering(request.k)
            if rows is not None:
                return fusion.search_resident(rows, request, self.clock())
            ef = self.config.ef if opened.has_hnsw() else 0
            return search_table(opened.table, request, where, ef, self._tokenize, self.clock())

    def existing(self, tenant: str, node_ids: Sequence[str]) -> set[str]:
        """Which of ``node_ids`` are stored."""
        with self._door():
            opened = self._tenant(check_tenant("memory", tenant))
            if opened is None or not node_ids:
                return set()
            opened.refresh()
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
            opened.refresh()
            where = lance_rows.one_of("id", sorted(set(node_ids)))
            rows = opened.table.search().where(where).select(lance_rows.COLUMNS).to_arrow()
            return {node.node_id: node for node in lance_rows.nodes(rows)}

    def listed(self, tenant: str, where: Filter, *, expired: bool | None = None) -> list[tuple[float, str]]:
        """(created_at, id) of every node that passes ``where``, newest first; ``expired`` asks for one sort only."""
        with self._door():
            opened = self._tenant(check_tenant("memory", tenant))
            if opened is None:
                return []
            opened.refresh()
            condition = lance_rows.sql(where, self.clock(), expired)
            rows = opened.table.search().where(condition).select(["id", "created_at"]).to_arrow()
            return sorted(zip(rows["created_at"].to_pylist(), rows["id"].to_pylist(), strict=True), reverse=True)

    def remove(self, tenant: str, node_ids: Sequence[str]) -> int:
        """Remove nodes by id, durably; returns how many there were."""
        with self._door():
            opened = self._tenant(check_tenant("memory", tenant))
            if opened is None or not node_ids:
                return 0
            with opened.lock:
                opened.refresh(always=True)
                before = opened.table.count_rows()
                for begin in range(0, len(node_ids), SLICE):
                    opened.table.delete(lance_rows.one_of("id", node_ids[begin : begin + SLICE]))
                opened.kept.remove(node_ids)
                opened.written()
                return int(before - opened.table.count_rows())

    def scan(self, tenant: str) -> Iterator[Sequence[Node]]:
        """Every node in batches, ordered by nothing in particular."""
        with self._door():
            opened = self._tenant(check_tenant("memory", tenant))
            if opened is not None:
                opened.refresh()
                yield from opened.read()

    def tenants(self) -> list[str]:
        """Tenants that have a database, sorted."""
        with self._door():
            return self.place.tenants(TABLE)

    def count(self, tenant: str) -> int:
        """Number of nodes."""
        with self._door():
            opened = self._tenant(check_tenant("memory", tenant))
            if opened is None:
                return 0
            opened.refresh()
            return int(opened.table.count_rows())

    def version(self, tenant: str) -> int:
        """A number that rises with every write; 0 if there never was one."""
        with self._door():
            opened = self._tenant(check_tenant("memory", tenant))
            if opened is None:
                return 0
            opened.refresh()
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
                    opened.refresh(always=True)
                    self.replace(tenant, opened.read())
                opened = self._create(tenant)
            with opened.lock:
                opened.refresh(always=True)
                if opened.table.count_rows() >= self.config.index_rows and not opened.has_hnsw():
                    opened.table.create_index(
                        "vector", config=HnswSq(distance_type="cosine", num_partitions=1, m=32, ef_construction=200)
                    )
                keep = timedelta(seconds=0 if purge else self.config.keep_versions_s)
                with warnings.catch_warnings():  # of readers of old versions: only this process reads them
                    warnings.filterwarnings("ignore", "optimize\\(cleanup_older_than=0\\)", UserWarning)
                    opened.table.optimize(cleanup_older_than=keep)
                opened.written()

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
            self.place.remove(tenant, TABLE)

    def close(self) -> None:
        """Release handles; safe to call twice."""
        with self._lock:
            for opened in self._open.values():
                opened.kept.close()
            self._open.clear()
            self._lancedb = None

    def _tenant(self, tenant: str) -> OpenTable | None:
        """The tenant's open table; ``None`` if nothing was ever written."""
        if tenant in self._open:
            return self._open[tenant]
        return self._create(tenant) if self.place.holds(tenant, TABLE) else None

    def _create(self, tenant: str) -> OpenTable:
        """Open the tenant's table, made if there is none. Two threads may come here at once: one waits."""
        with self._lock:
            if self._lancedb is None:
                raise Stop("memory", "the store is not open", "call open() first")
            lock = self._opening.setdefault(tenant, threading.Lock())
        with lock:
            if tenant not in self._open:
                limits = self.config.resident_rows, self.config.approximate_rows
                table = self._open_table(tenant)
                self._open[tenant] = OpenTable(table, self.dim, limits, self.config.refresh_s, self._tokenize)
            return self._open[tenant]

    def _open_table(self, tenant: str) -> Any:
        from lancedb.index import FTS

        database = self._lancedb.connect(self.place.of(tenant), storage_options=self.place.options or None)
        if self.place.holds(tenant, TABLE):
            table = database.open_table(TABLE)
        else:
            table = database.create_table(TABLE, schema=lance_rows.schema(self.dim), mode="overwrite")
        if not table.list_indices():  # new, or a crash came between the table and its index
            table.create_index("text", config=FTS(with_position=False, stem=True))
        check_schema(table, tenant, self.dim, str(self.place))
        return table

    def _tokenize(self, text: str) -> list[str]:
        return [token.text for token in self._lancedb.tokenize(text, stem=True)]

    @contextmanager
    def _door(self) -> Iterator[None]:
        """The one place where LanceDB's errors become ours."""
        try:
            yield
        except (OSError, RuntimeError) as e:
            raise translate("memory", e, self.place) from e
