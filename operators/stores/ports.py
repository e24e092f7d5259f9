"""The ports of the stores. Each has a conformance kit under ``tests/operators/stores``; what passes it may stand in.

Methods are plain (blocking) calls and each implementation says which thread may call it; the async world wraps them at
one door. A tenant is always an explicit argument and comes from the authenticated request, never from the query's text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from operators.records import F32, I8, I32, Filter, Hits, Kind, Mode, Relation, record


@record
class Node:
    """One memory node. ``node_id`` is deterministic, so writing it again changes nothing (design §7).

    ``vector`` float32[dim], L2-normalised. ``tokens`` counts ``text`` in the encoder's tokens. ``position`` orders the
    turns of one session, and the chunks of one source. ``quality`` in [0, 1]. ``expires_at`` 0 means never.
    """

    node_id: str
    kind: Kind
    text: str
    vector: F32
    domain: str = ""
    source: str = ""
    session: str = ""
    user: str = ""
    position: int = 0
    tokens: int = 0
    created_at: float
    quality: float = 1.0
    model: str = ""
    expires_at: float = 0.0
    metadata: dict[str, str] | None = None


@record
class Edge:
    """One directed edge. Its ends and relation are its identity; writing it again updates the weight."""

    source_id: str
    target_id: str
    relation: Relation
    weight: float
    created_at: float


@record
class Prior:
    """What a hybrid search thinks of nodes before it reads them (``fusion`` has the formula): weights in [0, 1] for
    being new and for ``Node.quality``, and the age in seconds at which newness has halved."""

    recency: float = 0.0
    half_life_s: float = 2_592_000.0
    quality: float = 0.0


@record
class SearchRequest:
    """One search: ``vector`` float32[dim], L2-normalised; ``k`` hits at most."""

    tenant: str
    text: str
    vector: F32
    k: int
    mode: Mode = "hybrid"
    filter: Filter = Filter()
    prior: Prior = Prior()


@record
class Subgraph:
    """What lies around some seed nodes: n nodes, the ``seeds`` known ones first in the order asked, m edges.

    Fields as in ``Neighbourhood``: ``vectors`` float32[n, dim], ``tokens`` and ``hop`` int32[n], edges as indices into
    the nodes. ``snapshot`` is the version read, 0 if nothing was ever published. Unknown seeds are left out.
    """

    node_ids: tuple[str, ...]
    kinds: tuple[Kind, ...]
    texts: tuple[str, ...]
    sources: tuple[str, ...]
    vectors: F32
    tokens: I32
    hop: I32
    seeds: int
    edge_from: I32
    edge_to: I32
    edge_relation: I8
    edge_weight: F32
    snapshot: int
    truncated: bool


class VectorStore(Protocol):
    """Durable nodes with vector and full-text search. Any thread may call it. ``dim``: length of the vectors."""

    dim: int

    def open(self) -> None:
        """Open or create. Raises ``Stop`` when the directory can't be used."""

    def upsert(self, tenant: str, nodes: Sequence[Node]) -> int:
        """Write ``nodes`` by id; durable and findable when it returns. Returns how many ids were new."""

    def search(self, request: SearchRequest) -> Hits:
        """Best ``k`` nodes of the request's tenant that pass its filter, best first."""

    def existing(self, tenant: str, node_ids: Sequence[str]) -> set[str]:
        """Which of ``node_ids`` are stored."""

    def get(self, tenant: str, node_ids: Sequence[str]) -> dict[str, Node]:
        """The nodes among ``node_ids`` that are stored, expired ones too."""

    def listed(self, tenant: str, where: Filter, *, expired: bool | None = None) -> list[tuple[float, str]]:
        """(created_at, id) of every node that passes ``where``, newest first; ``expired`` asks for one sort only."""

    def remove(self, tenant: str, node_ids: Sequence[str]) -> int:
        """Remove nodes by id, durably; returns how many there were. Their bytes go with the old versions, which
        ``optimize`` removes."""

    def scan(self, tenant: str) -> Iterator[Sequence[Node]]:
        """Every node in batches, ordered by nothing in particular."""

    def tenants(self) -> list[str]:
        """Tenants that have a database, sorted."""

    def count(self, tenant: str) -> int:
        """Number of nodes."""

    def version(self, tenant: str) -> int:
        """A number that rises with every write; 0 if there never was one."""

    def optimize(self, tenant: str, *, purge: bool = False) -> None:
        """Fold recent writes into the indexes and compact; off the hot path. ``purge`` leaves nothing of removed
        nodes in any file."""

    def replace(self, tenant: str, nodes: Iterable[Sequence[Node]]) -> int:
        """Make ``nodes`` (in batches) all that the tenant has, in one step; returns how many."""

    def drop(self, tenant: str) -> None:
        """Remove the tenant, its files and all."""

    def close(self) -> None:
        """Release handles; safe to call twice."""


class GraphStore(Protocol):
    """Durable graph. One process opens it; all writes go through one thread of that process."""

    def open(self) -> None:
        """Open or create. Raises ``Stop`` when another process owns it or the file can't be used."""

    def upsert(
        self, tenant: str, node_ids: Sequence[str], kinds: Sequence[Kind], edges: Sequence[Edge], created_at: float
    ) -> None:
        """Write nodes and edges in one transaction; edges whose ends are unknown raise ``Skip`` and write nothing."""

    def remove(self, tenant: str, node_ids: Sequence[str], *, gone_at: float | None = None) -> tuple[int, int]:
        """Remove nodes and their edges in one transaction; returns how many of each. With ``gone_at`` (Unix seconds)
        the ids are remembered as ``gone``, whether they were there or not."""

    def gone(self, tenant: str, node_ids: Sequence[str]) -> dict[str, float]:
        """Which of ``node_ids`` were removed for good and must not come back by themselves, and when (Unix seconds)."""

    def all_gone(self, tenant: str) -> list[str]:
        """Every id that was removed for good, sorted."""

    def replace(
        self,
        tenant: str,
        nodes: Sequence[tuple[str, Kind, float]],
        edges: Sequence[Edge],
        gone: Mapping[str, float] | None = None,
    ) -> None:
        """Make ``nodes`` (id, kind, created_at), ``edges`` and ``gone`` (id → when) all that the tenant has, in one
        transaction."""

    def node_ids(self, tenant: str) -> set[str]:
        """Every node's id."""

    def edges_at(self, tenant: str, node_ids: Sequence[str]) -> list[Edge]:
        """Every live edge that starts or ends at one of ``node_ids``."""

    def cut(self, tenant: str, node_id: str, relation: Relation) -> int:
        """Remove the node's edges of one relation, both ways; returns how many."""

    def edges(self, tenant: str) -> Iterable[tuple[str, str, int, float]]:
        """Every live edge as (source_id, target_id, relation index, weight)."""

    def expand(self, tenant: str, node_ids: Sequence[str], hops: int) -> set[str]:
        """Node ids within ``hops`` of ``node_ids``, both directions, themselves included. The slow, exact reference."""

    def count(self, tenant: str) -> tuple[int, int]:
        """(nodes, edges)."""

    def checkpoint(self) -> None:
        """Fold the write-ahead log into the file."""

    def close(self) -> None:
        """Checkpoint and release the file; safe to call twice."""


@record
class Event:
    """One event of a topic. ``key`` orders: events with equal keys share a partition. ``headers`` are CloudEvents
    attributes and ``traceparent``. ``timestamp`` is Unix seconds at append."""

    topic: str
    partition: int
    offset: int
    key: str
    value: bytes
    headers: Mapping[str, str]
    timestamp: float


class EventLog(Protocol):
    """Topics with partitions and offsets; at-least-once, ordered within a partition. Any thread may call it.

    Offsets in a partition rise by one from 0 and are never used twice, also after retention removed the oldest. In a
    compacted topic, and where other programs write in transactions, some are left out.
    """

    def open(self) -> None:
        """Open or create; a log behind a network connects at the first call. ``Stop`` when the log can't be used."""

    def create_topic(self, topic: str, partitions: int) -> None:
        """Create ``topic``, or raise ``Reject`` if it exists with another number of partitions."""

    def topics(self) -> dict[str, int]:
        """Topic → number of partitions."""

    def append(self, topic: str, key: str, value: bytes, headers: Mapping[str, str] | None = None) -> tuple[int, int]:
        """Durable when it returns; gives (partition, offset). An unknown topic raises ``Reject``."""

    def append_many(self, topic: str, items: Sequence[tuple[str, bytes, Mapping[str, str]]]) -> list[tuple[int, int]]:
        """``append`` for many, in order. All are durable when it returns; of what can't be written none is.

        After ``Retry`` a file has none of them, a broker perhaps some: they are written at least once, and readers drop
        repeats by event id.
        """

    def read(self, topic: str, partition: int, offset: int, limit: int) -> list[Event]:
        """Events from ``offset`` on, in order, at most ``limit``; empty at the end. Removed ones are skipped over."""

    def end(self, topic: str, partition: int) -> int:
        """The offset the next event will get."""

    def commit(self, group: str, topic: str, partition: int, offset: int) -> None:
        """Record that ``group`` has dealt with everything below ``offset``; never moves back."""

    def committed(self, group: str, topic: str, partition: int) -> int:
        """The offset ``group`` goes on from; 0 if it never committed."""

    def retain(self, topic: str, *, max_age_s: float | None = None, max_events: int | None = None) -> int:
        """Remove the oldest events beyond either limit in every partition now; returns how many went.

        A broker also removes what is old by itself, as it was told when the topic was created.
        """

    def close(self) -> None:
        """Release the log; safe to call twice."""
