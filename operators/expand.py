"""expand: from the hits to their neighbourhood in the memory graph.

Reads the published snapshot, which is mapped into memory: about a tenth of a millisecond, so no thread is used. A hit
that is newer than the snapshot stays as a node without edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from pydantic import Field

from operators.base import Knobs, Operator
from operators.errors import Retry
from operators.records import Embedded, Hits, Neighbourhood, Query, record
from operators.stores.ports import Subgraph


class Expands(Protocol):
    """What this stage needs of the memory; ``Memory`` has it. Any thread may call it."""

    def expand(
        self, tenant: str, node_ids: Sequence[str], *, hops: int, max_nodes: int, max_edges: int, decay: float
    ) -> Subgraph:
        """The nodes within ``hops`` of ``node_ids`` and the edges among them, from the newest snapshot."""


@record
class ExpandInput:
    """What ``expand`` reads."""

    query: Query
    embedded: Embedded
    hits: Hits


class Expand(Operator[ExpandInput, Neighbourhood]):
    """The neighbourhood of every query's hits. ``unavailable`` counts the queries whose graph was away.

    ``vectors=False`` leaves the nodes' vectors out (float32[n, 0]): only a trained attention reads them, and they are
    most of what a hop to another process carries.
    """

    name = "expand"

    class Config(Knobs):
        """The knobs of ``expand``."""

        hops: int = Field(2, ge=0, le=4)
        """How far from the hits the neighbourhood reaches; 0 keeps the hits alone."""
        max_nodes: int = Field(100, ge=1, le=10_000)
        """Most nodes of a neighbourhood, the hits included."""
        max_edges: int = Field(1000, ge=0, le=100_000)
        """Most edges of a neighbourhood; the heaviest stay."""
        decay: float = Field(0.7, gt=0, lt=1)
        """A node counts this much less per hop when a cap decides which nodes stay."""

    def __init__(self, config: Config, memory: Expands, *, vectors: bool = True) -> None:
        super().__init__()
        self.config = config
        self.memory = memory
        self.vectors = vectors
        self.unavailable = 0

    async def run(self, batch: Sequence[ExpandInput]) -> list[Neighbourhood]:
        """One neighbourhood for every query."""
        return [self._one(item) for item in batch]

    def _one(self, item: ExpandInput) -> Neighbourhood:
        config = self.config
        hits = item.hits.hits[: config.max_nodes]
        cut = len(hits) < len(item.hits.hits)
        ids = [hit.node_id for hit in hits]
        room = config.max_nodes
        around: Subgraph | None = None
        degraded: tuple[str, ...] = ()
        if ids:
            try:
                around = self.memory.expand(
                    item.query.tenant,
                    ids,
                    hops=config.hops,
                    max_nodes=room,
                    max_edges=config.max_edges,
                    decay=config.decay,
                )
            except Retry:
                self.unavailable += 1
                degraded = ("graph",)
        return _join(item, ids, around, room, cut, degraded, self.vectors)


def _join(
    item: ExpandInput,
    ids: list[str],
    around: Subgraph | None,
    room: int,
    cut: bool,
    degraded: tuple[str, ...],
    with_vectors: bool,
) -> Neighbourhood:
    """The hits in their order, then the subgraph's other nodes as far as there is room; edges renumbered to match."""
    hits, n = item.hits.hits[: len(ids)], len(ids)
    vectors = item.hits.vectors[:n]
    empty = np.zeros(0, np.int32)
    columns = {
        "node_ids": tuple(ids),
        "kinds": tuple(hit.kind for hit in hits),
        "texts": tuple(hit.text for hit in hits),
        "sources": tuple(hit.source for hit in hits),
    }
    similarity = np.array([hit.similarity for hit in hits], np.float32)
    tokens = np.array([hit.tokens for hit in hits], np.int32)
    hop = np.zeros(n, np.int32)
    edges = (empty, empty, np.zeros(0, np.int8), np.zeros(0, np.float32))
    version = 0
    if around is not None:
        # A hit the snapshot lacks takes a place that the snapshot did not count: the last nodes give way to it.
        new = slice(around.seeds, around.seeds + room - n)
        place = np.full(len(around.node_ids), -1, np.int32)
        where = {node_id: i for i, node_id in enumerate(ids)}
        place[: around.seeds] = [where[node_id] for node_id in around.node_ids[: around.seeds]]
        others = around.node_ids[new]
        place[around.seeds : around.seeds + len(others)] = np.arange(n, n + len(others))
        cut = cut or around.truncated or around.seeds + len(others) < len(around.node_ids)
        columns["node_ids"] += others
        columns["kinds"] += around.kinds[new]
        columns["texts"] += around.texts[new]
        columns["sources"] += around.sources[new]
        if others:
            if with_vectors:
                vectors = np.concatenate([vectors, around.vectors[new]])
            similarity = np.concatenate([similarity, around.vectors[new] @ item.embedded.vector])
            tokens = np.concatenate([tokens, around.tokens[new]])
            hop = np.concatenate([hop, around.hop[new]])
        start, end = place[around.edge_from], place[around.edge_to]
        kept = (start >= 0) & (end >= 0)
        edges = (start[kept], end[kept], around.edge_relation[kept], around.edge_weight[kept])
        version = around.snapshot
    score = np.zeros(len(hop), np.float32)
    score[:n] = [hit.score for hit in hits]
    return Neighbourhood(
        **columns,  # type: ignore[arg-type]
        vectors=vectors if with_vectors else np.zeros((len(hop), 0), np.float32),
        hop=hop,
        score=score,
        similarity=similarity,
        tokens=tokens,
        edge_from=edges[0],
        edge_to=edges[1],
        edge_relation=edges[2],
        edge_weight=edges[3],
        snapshot=version,
        truncated=cut,
        mode=item.hits.mode,
        degraded=degraded,
    )
