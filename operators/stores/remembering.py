"""Remembering answers: each once, and what says the same as one that is there strengthens that one.

For every item, in order:

    1 gone?       removed for good: it stays away, unless its user vouched for it afterwards
    2 there?      written before, perhaps by half before a crash: written again, which changes nothing
    3 duplicate?  a remembered answer with the same figures, a cosine of at least ``min_similarity`` and a Jaccard
                  similarity (MinHash of three-word shingles) of at least ``min_jaccard``: that one is strengthened
    4 new         a node with its edges: similar, next_turn in its session, cites to what the answer was made from

Everything may be done twice. A strengthened node keeps, for every partition of the topic, the offset of the last event
that strengthened it; an event at or before that offset was counted already. Events of a partition come in order.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from operators.base import Knobs
from operators.dedupe import signature
from operators.records import Filter, record
from operators.stores.domains import GUESSED, Domains
from operators.stores.ports import Edge, Node, SearchRequest

if TYPE_CHECKING:  # the memory uses this module
    from operators.stores.memory import Memory

CANDIDATES = 8
"""Nearest answers that are compared word by word."""
COUNT, LAST_SEEN, APPLIED = "count", "last_seen", "applied"
"""Keys of a node's metadata: answers it stands for, when the last came (Unix seconds), partition → offset as JSON."""
JUDGE, USER = "judge", "user"
"""Key of a node's metadata: who rated the answer; and the user's own name there."""
_FIGURE = re.compile(r"\d+(?:[.,:/-]\d+)*")


class RememberingConfig(Knobs):
    """When an answer is one that is remembered already."""

    min_similarity: float = Field(0.9, ge=-1, le=1)
    """Least cosine of a duplicate."""
    min_jaccard: float = Field(0.7, gt=0, le=1)
    """Least Jaccard similarity of a duplicate's three-word shingles."""
    cites_weight: float = Field(0.8, gt=0, le=1)
    """Weight of the edge from an answer to a node it was made from."""


@record
class Memo:
    """An answer to remember: its node, the nodes it cites, and the event it came with.

    ``rated_at`` is when its verdict was given, in Unix seconds. ``partition`` names a topic's partition, ``offset`` the
    event's place there.
    """

    node: Node
    cites: tuple[str, ...] = ()
    rated_at: float
    partition: str
    offset: int


@record
class Remembered:
    """What became of a memo: ``written``; ``duplicate`` of ``partner``, with cosine and Jaccard similarity; ``gone``:
    it was removed for good and stays away."""

    node_id: str
    outcome: Literal["written", "duplicate", "gone"]
    partner: str = ""
    similarity: float = 0.0
    jaccard: float = 0.0


def remember(memory: Memory, tenant: str, memos: Sequence[Memo]) -> list[Remembered]:
    """Remember ``memos`` in their order; durable and findable when it returns."""
    results: list[Remembered] = []
    fresh: dict[str, Node] = {}  # written or strengthened by this call, not stored yet
    new: dict[str, Memo] = {}
    with memory.writing(tenant) as state:
        ids = [memo.node.node_id for memo in memos]
        gone, stored = memory.graph.gone(tenant, ids), memory.vectors.get(tenant, ids)
        for memo in memos:
            node_id = memo.node.node_id
            if node_id in gone and not (_by_user(memo) and memo.rated_at > gone[node_id]):  # 1
                results.append(Remembered(node_id=node_id, outcome="gone"))
                continue
            known = fresh.get(node_id) or stored.get(node_id)
            if known is not None:  # 2
                new.setdefault(node_id, memo)
                fresh[node_id] = _rated(known, memo)
                results.append(Remembered(node_id=node_id, outcome="written"))
                continue
            found = _duplicate(memory, tenant, memo.node, fresh)
            if found is not None:  # 3
                partner, similarity, jaccard = found
                fresh[partner.node_id] = _strengthened(partner, memo)
                results.append(
                    Remembered(
                        node_id=node_id,
                        outcome="duplicate",
                        partner=partner.node_id,
                        similarity=similarity,
                        jaccard=jaccard,
                    )
                )
                continue
            # 4
            new[node_id] = memo
            fresh[node_id] = _with_domain(_begun(memo), state.domains)
            results.append(Remembered(node_id=node_id, outcome="written"))
        held = {**stored, **memory.vectors.get(tenant, [node_id for node_id in fresh if node_id not in stored])}
        changed = [node for node_id, node in fresh.items() if node_id in held and node is not held[node_id]]
        if changed:
            memory.vectors.upsert(tenant, changed)
            memory.touch(tenant)
            memory.at("strengthened")
        if new:
            memory.add(tenant, [fresh[node_id] for node_id in new], _cites(memory, tenant, list(new.values())))
    return results


def _duplicate(memory: Memory, tenant: str, node: Node, fresh: Mapping[str, Node]) -> tuple[Node, float, float] | None:
    """The remembered answer that says the same, with cosine and Jaccard similarity: the nearest one that does."""
    config = memory.config.remembering
    request = SearchRequest(
        tenant=tenant, text="", vector=node.vector, k=CANDIDATES, mode="vector", filter=Filter(kinds=("interaction",))
    )
    hits = [hit.node_id for hit in memory.search(request).hits if hit.similarity >= config.min_similarity]
    candidates = {**memory.vectors.get(tenant, hits), **fresh}
    near = [
        (float(np.dot(other.vector, node.vector)), other)
        for other in candidates.values()
        if other.node_id != node.node_id
    ]
    sketch, figures = signature(node.text), _figures(node.text)
    for similarity, other in sorted(near, key=lambda pair: (-pair[0], pair[1].node_id)):
        if similarity < config.min_similarity:
            break
        jaccard = float(sketch.jaccard(signature(other.text)))
        # Two answers that differ in a number alone look alike to both measures, and are not the same.
        if jaccard >= config.min_jaccard and _figures(other.text) == figures:
            return other, similarity, jaccard
    return None


def _figures(text: str) -> list[str]:
    return sorted(set(_FIGURE.findall(text)))


def _begun(memo: Memo) -> Node:
    """The memo's node, standing for one answer."""
    begun = {COUNT: "1", LAST_SEEN: repr(memo.node.created_at), APPLIED: json.dumps({memo.partition: memo.offset})}
    return dataclasses.replace(memo.node, metadata={**(memo.node.metadata or {}), **begun})


def _applied(node: Node, memo: Memo) -> dict[str, str] | None:
    """The node's metadata with the memo's event counted; ``None`` if it was counted already."""
    metadata = dict(node.metadata or {})
    applied: dict[str, int] = json.loads(metadata.get(APPLIED, "{}"))
    if applied.get(memo.partition, -1) >= memo.offset:
        return None
    return {**metadata, APPLIED: json.dumps({**applied, memo.partition: memo.offset}, sort_keys=True)}


def _strengthened(node: Node, memo: Memo) -> Node:
    """``node`` standing for one answer more."""
    metadata = _applied(node, memo)
    if metadata is None:
        return node
    count = int(metadata.get(COUNT, "1"))
    metadata[COUNT] = str(count + 1)
    metadata[LAST_SEEN] = repr(max(float(metadata.get(LAST_SEEN, node.created_at)), memo.node.created_at))
    quality = (node.quality * count + memo.node.quality) / (count + 1)
    return dataclasses.replace(node, quality=quality, metadata=metadata)


def _rated(node: Node, memo: Memo) -> Node:
    """``node``, of the same interaction, with a later verdict: a user's stands against a model's, and may correct."""
    metadata, judge = _applied(node, memo), (memo.node.metadata or {}).get(JUDGE, "")
    if metadata is None or (metadata.get(JUDGE) == USER and judge != USER):
        return node
    metadata, new = {**metadata, JUDGE: judge}, memo.node
    if judge != USER:
        return dataclasses.replace(node, quality=new.quality, metadata=metadata)
    return dataclasses.replace(
        node,
        text=new.text,
        vector=new.vector,
        tokens=new.tokens,
        model=new.model,
        quality=new.quality,
        metadata=metadata,
    )


def _by_user(memo: Memo) -> bool:
    return (memo.node.metadata or {}).get(JUDGE) == USER


def _with_domain(node: Node, domains: Domains) -> Node:
    if node.domain:
        return node
    domain, similarity = domains.nearest(node.vector)
    if not domain:
        return node
    return dataclasses.replace(node, domain=domain, metadata={**(node.metadata or {}), GUESSED: f"{similarity:.3f}"})


def _cites(memory: Memory, tenant: str, memos: Sequence[Memo]) -> list[Edge]:
    """Edges to the cited nodes that are still there, or come with the same batch."""
    cited = {node_id for memo in memos for node_id in memo.cites}
    known = memory.graph.expand(tenant, sorted(cited), 0) | {memo.node.node_id for memo in memos}
    return [
        Edge(
            source_id=memo.node.node_id,
            target_id=node_id,
            relation="cites",
            weight=memory.config.remembering.cites_weight,
            created_at=memo.node.created_at,
        )
        for memo in memos
        for node_id in dict.fromkeys(memo.cites)
        if node_id in known and node_id != memo.node.node_id
    ]
