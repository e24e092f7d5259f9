"""Whether the stores of a memory agree, and mending what doesn't.

The vector store is the truth about what a node says, the graph about what was added whole: a node counts as added once
the graph has it. So a row that the graph lacks was added by half, and is added again; a node that has no row was
removed by half, and is removed.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from operators.records import Filter, record

if TYPE_CHECKING:
    from operators.stores.memory import Memory

SHOWN = 20
"""Ids named of each kind of fault; the counts are exact."""


@record
class Consistency:
    """What a check found. ``only_vectors`` and ``only_graph`` count nodes that one store lacks, ``repeated`` rows with
    an id that another row has, ``returned`` nodes that were removed for good. ``examples`` names some of each."""

    tenant: str
    nodes: int
    edges: int
    only_vectors: int = 0
    only_graph: int = 0
    repeated: int = 0
    returned: int = 0
    snapshot_stale: bool = False
    repaired: bool = False
    examples: dict[str, tuple[str, ...]]

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong; a snapshot that waits for its publication is not wrong."""
        return not (self.only_vectors or self.only_graph or self.repeated or self.returned)


def check(memory: Memory, tenant: str, *, repair: bool = False) -> Consistency:
    """Compare the stores; with ``repair`` also mend what differs. Nobody writes to the tenant meanwhile."""
    with memory.writing(tenant):
        rows = [node_id for _, node_id in memory.vectors.listed(tenant, Filter())]
        stored, known = set(rows), memory.graph.node_ids(tenant)
        faults = {
            "only_vectors": sorted(stored - known),
            "only_graph": sorted(known - stored),
            "repeated": sorted(node_id for node_id, often in Counter(rows).items() if often > 1),
            "returned": sorted(memory.graph.gone(tenant, sorted(stored & known))),
        }
        stale = memory.stale(tenant)
        if repair:
            _repair(memory, tenant, faults)
        nodes, edges = memory.graph.count(tenant)
        return Consistency(
            tenant=tenant,
            nodes=nodes,
            edges=edges,
            **{name: len(ids) for name, ids in faults.items()},
            snapshot_stale=stale,
            repaired=repair,
            examples={name: tuple(ids[:SHOWN]) for name, ids in faults.items() if ids},
        )


def _repair(memory: Memory, tenant: str, faults: dict[str, list[str]]) -> None:
    memory.graph.remove(tenant, faults["only_graph"])
    # Of repeated rows one is kept; which one can't be told from the rows, so the newest by their own time.
    for node_id in faults["repeated"]:
        kept = memory.vectors.get(tenant, [node_id])
        memory.vectors.remove(tenant, [node_id])
        memory.vectors.upsert(tenant, list(kept.values()))
    memory.vectors.remove(tenant, faults["returned"])
    memory.graph.remove(tenant, faults["returned"])
    memory.add(tenant, list(memory.vectors.get(tenant, faults["only_vectors"]).values()))
    memory.publish(tenant)
