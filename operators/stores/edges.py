"""Which edges a new node gets: to its neighbours in the session or source, to the source's first chunk, to what is
similar."""

from __future__ import annotations

from bisect import bisect_left
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
        self._places: dict[tuple[str, str], list[tuple[int, str]]] = {}  # session or source → (position, node id)

    def place(self, nodes: Iterable[Node]) -> None:
        """Remember where ``nodes`` stand in their sessions or sources."""
        for node in nodes:
            key, place = strand(node), (node.position, node.node_id)
            if key is None:
                continue
            places = self._places.setdefault(key, [])
            at = bisect_left(places, (node.position, ""))
            if at < len(places) and places[at][0] == node.position:
                places[at] = place
            else:
                places.insert(at, place)

    def forget(self, nodes: Iterable[Node]) -> None:
        """Their places are free."""
        for node in nodes:
            key, place = strand(node), (node.position, node.node_id)
            if key is not None and place in (places := self._places.get(key, [])):
                places.remove(place)
                if not places:
                    del self._places[key]

    def edges(self, tenant: str, nodes: Sequence[Node]) -> list[Edge]:
        """Edges between ``nodes`` (placed and searchable already) and everything that is there."""
        made: dict[tuple[str, str, Relation], Edge] = {}
        for node in nodes:
            for edge in (*self._strand(node), *self._similar(tenant, node)):
                made.setdefault((edge.source_id, edge.target_id, edge.relation), edge)
        return list(made.values())

    def _strand(self, node: Node) -> Iterable[Edge]:
        key = strand(node)
        places = self._places.get(key, []) if key is not None else []
        at = bisect_left(places, (node.position, ""))
        before, after = places[max(at - 1, 0) : at], places[at + 1 : at + 2]
        if not node.session:  # of a session not every turn is remembered, of a document every chunk
            before = [place for place in before if place[0] == node.position - 1]
            after = [place for place in after if place[0] == node.position + 1]
        relation: Relation = "next_turn" if node.session else "next_chunk"
        weight = self.config.next_turn_weight if node.session else self.config.next_chunk_weight
        for _, other in before:
            yield _edge(other, node.node_id, relation, weight, node)
        for _, other in after:
            yield _edge(node.node_id, other, relation, weight, node)
        if places and not node.session:
            position, first = places[0]
            if 0 < node.position - position <= self.config.same_source_max:
                yield _edge(first, node.node_id, "same_source", self.config.same_source_weight, node)

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
