"""Looking after nodes one by one: list, read with edges, change, expire. Removing is in ``removal``."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from operators.errors import Reject
from operators.records import F32, Filter, record
from operators.stores import removal
from operators.stores.domains import GUESSED
from operators.stores.ports import Edge, Node
from operators.stores.remembering import APPLIED, COUNT, JUDGE, LAST_SEEN
from operators.stores.removal import Receipt

if TYPE_CHECKING:
    from operators.stores.memory import Memory

HISTORY, KEPT = "history", 20
"""Key of a node's metadata: its changes as JSON, oldest first; so many are kept."""
OWN = frozenset({HISTORY, COUNT, LAST_SEEN, APPLIED, JUDGE, GUESSED, "version", "interaction"})
"""Keys of a node's metadata that the memory keeps; a caller's changes leave them as they are."""


@record
class Page:
    """Some nodes, newest first, and where the next page begins (empty: this was the last)."""

    nodes: tuple[Node, ...]
    total: int
    after: str


def page(memory: Memory, tenant: str, where: Filter, limit: int, after: str = "") -> Page:
    """At most ``limit`` nodes that pass ``where`` and are not expired; ``after`` is what the page before gave."""
    found = memory.vectors.listed(tenant, where, expired=False)
    rest = [pair for pair in found if pair < _place(after)] if after else found
    ids = [node_id for _, node_id in rest[:limit]]
    nodes = memory.vectors.get(tenant, ids)
    more = f"{rest[limit - 1][0]!r} {rest[limit - 1][1]}" if len(rest) > limit else ""
    return Page(nodes=tuple(nodes[node_id] for node_id in ids if node_id in nodes), total=len(found), after=more)


def _place(after: str) -> tuple[float, str]:
    created, _, node_id = after.partition(" ")
    try:
        place = float(created), node_id
        if not node_id or not math.isfinite(place[0]):
            raise ValueError
    except ValueError:
        raise Reject("memory", f"after {after[:100]!r}", "give what the page before gave", param="after") from None
    return place


def history(node: Node) -> list[dict[str, Any]]:
    """The changes of a node, oldest first: when (``at``, Unix seconds) and which fields (``changed``)."""
    try:
        past = json.loads((node.metadata or {}).get(HISTORY, "[]"))
    except ValueError:  # who added the document had a key of that name
        return []
    return [one for one in past if isinstance(one, dict)] if isinstance(past, list) else []


def describe(memory: Memory, tenant: str, node_id: str) -> tuple[Node, list[Edge]]:
    """A node, expired or not, and its edges. Raises ``Reject`` (404) if there is none."""
    node = memory.vectors.get(tenant, [node_id]).get(node_id)
    if node is None:
        raise unknown(node_id)
    return node, memory.graph.edges_at(tenant, [node_id])


def unknown(node_id: str) -> Reject:
    """There is no such node, or it is another tenant's: the answer doesn't tell which."""
    return Reject(
        "memory", f"no node {node_id[:100]!r}", "list the nodes to see their ids", 404, "node_id", "no_such_node"
    )


def update(
    memory: Memory,
    tenant: str,
    node_id: str,
    changes: Mapping[str, Any],
    vector: F32 | None = None,
) -> tuple[Node, list[Edge]]:
    """Change fields of a node. A changed ``text`` comes with its ``vector`` (float32[dim]) and ``tokens``; its
    ``similar`` edges are made anew, and a crash before they are loses no more than those. ``metadata`` takes the place
    of all that is there but the memory's own keys. Returns what ``describe`` does.
    """
    if taken := sorted(OWN & (changes.get("metadata") or {}).keys()):
        raise Reject("memory", f"metadata {taken[0]!r} is the memory's own", "leave it out", param="metadata")
    with memory.writing(tenant) as state:
        node, _ = describe(memory, tenant, node_id)
        held = node.metadata or {}
        kept = {key: value for key, value in held.items() if key in OWN}
        past = [*history(node), {"at": memory.clock(), "changed": sorted(changes)}]
        metadata = {**changes.get("metadata", held), **kept, HISTORY: json.dumps(past[-KEPT:])}
        if "domain" in changes:
            metadata.pop(GUESSED, None)  # somebody named it now
        changed = dataclasses.replace(
            node, **{**changes, "metadata": metadata, "vector": node.vector if vector is None else vector}
        )
        memory.vectors.upsert(tenant, [changed])
        memory.at("updated")
        state.maker.forget([node])
        state.maker.place([changed])
        state.domains.learn([node], -1)
        state.domains.learn([changed])
        if vector is not None:
            memory.graph.cut(tenant, node_id, "similar")
            memory.join(tenant, [changed])
        memory.publish(tenant, keep=1)
    return describe(memory, tenant, node_id)


def expire(memory: Memory, tenant: str) -> Receipt | None:
    """Remove what has expired; ``None`` if nothing has."""
    over = [node_id for _, node_id in memory.vectors.listed(tenant, Filter(), expired=True)]
    return removal.remove(memory, tenant, over, "expired") if over else None
