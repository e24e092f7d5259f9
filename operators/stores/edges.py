"""Which edges a new node gets: to its neighbours in the session or source, to the source's first chunk, to what is
similar."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from pydantic import Field

from operators.base import Knobs
from operators.records import Filter, Hits, Relation
from operators.stores.ports import Edge, Node, SearchRequest
from operators.stores.strands import strand


class EdgeMaker:
    """The places of a tenant's turns in their sessions and chunks in their sources, and the edges that follow. One
    thread at a time.

    A node with a session counts as a turn of it, whatever its source. Nodes with neither get only ``similar`` edges.
    ``cites`` comes from those who know it.
    """

    class Config(Knobs):
        """The knobs of edge making."""

        similar_threshold: float = Field(0.6, ge=-1, le=1)
        """Least cosine for a ``similar`` edge; the cosine is its weight."""
        similar_top: int = Field(4, ge=0, le=100)
        """Most ``similar`` edges that a new node makes; later nodes may add more to it."""
        next_turn_weight: float = Field(1.0, gt=0, le=1)
        """Weight of the edge from a turn to the next one of its session."""
        next_chunk_weight: float = Field(1.0, gt=0, le=1)
        """Weight of the edge from a chunk to the next one of its source."""
        same_source_weight: float = Field(0.5, gt=0, le=1)
        """Weight of the edge from the first chunk of a source to another of its chunks."""
        same_source_max: int = Field(64, ge=0)
        """Only chunks at most so many positions after the first get a ``same_source`` edge: a star without hubs."""

    def __init__(self, config: Config, search: Callable[[SearchRequest], Hits]) -> None:
        self.config = config
        self._search = search
        self._places: dict[tuple[str, str] | None, dict[int, str]] = {}  # session or source → position → node id

    def place(self, nodes: Iterable[Node]) -> None:
        """Remember where ``nodes`` stand in their sessions or sources."""
        for node in nodes:
            key = strand(node)
            if key is not None:
                self._places.setdefault(key, {})[node.position] = node.node_id

    def edges(self, tenant: str, nodes: Sequence[Node]) -> list[Edge]:
        """Edges between ``nodes`` (placed and searchable already) and everything that is there."""
        made: dict[tuple[str, str, Relation], Edge] = {}
        for node in nodes:
            for edge in (*self._strand(node), *self._similar(tenant, node)):
                made.setdefault((edge.source_id, edge.target_id, edge.relation), edge)
        return list(made.values())

    def _strand(self, node: Node) -> Iterable[Edge]:
        places = self._places.get(strand(node), {})
        before, after = places.get(node.position - 1), places.get(node.position + 1)
        relation: Relation = "next_turn" if node.session else "next_chunk"
        weight = self.config.next_turn_weight if node.session else self.config.next_chunk_weight
        if before is not None:
            yield _edge(before, node.node_id, relation, weight, node)
        if after is not None:
            yield _edge(node.node_id, after, relation, weight, node)
        if places and not node.session:
            first = min(places)
            if 0 < node.position - first <= self.config.same_source_max:
                yield _edge(places[first], node.node_id, "same_source", self.config.same_source_weight, node)

    def _similar(self, tenant: str, node: Node) -> Iterable[Edge]:
        top = self.config.similar_top
        if not top:
            return
        found = self._search(
            SearchRequest(tenant=tenant, text="", vector=node.vector, k=top + 1, mode="vector", filter=Filter())
        )
        others = [hit for hit in found.hits if hit.node_id != node.node_id][:top]
        for hit in others:
            if hit.similarity >= self.config.similar_threshold:
                # Similar is mutual: one edge, from the smaller id, whichever of the two came first.
                start, end = sorted((node.node_id, hit.node_id))
                yield _edge(start, end, "similar", min(hit.similarity, 1.0), node)


def _edge(start: str, end: str, relation: Relation, weight: float, node: Node) -> Edge:
    return Edge(source_id=start, target_id=end, relation=relation, weight=weight, created_at=node.created_at)
