"""Fusing what words and what meaning say about a row, and turning the chosen rows into ``Hits``.

    score = (t / max t + (c + a) / 2 + NAMED · s) / (2 + NAMED), at least 0

t is the BM25 of the row together with its neighbours (``strands``), divided by the best row's because BM25 has no
scale; c is the row's own cosine, a the mean cosine of it and its neighbours. So words and meaning count the same. s is
1 if the query names who says the text (``Alma: …``): neighbours share their words, but not their speaker. A score of 1
means the best words, the query's own meaning and the speaker. Scores are fused and not ranks: a rank can't tell a clear
winner from the best of a bad lot.

Modes ``vector`` (score c) and ``text`` (score t / max t of the row alone) rank by the row's own score.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from operators.records import F32, Hit, Hits
from operators.stores.ports import Node, SearchRequest
from operators.stores.resident import Resident

Mode = Literal["hybrid", "vector", "text"]
NAMED = 0.1
"""What the right speaker is worth beside the best words (1)."""
DEPTH = 4
"""Where candidates have to be fetched, each side gives ``DEPTH`` · k (at least 64) of them."""


def depth(k: int) -> int:
    """How many candidates each side contributes for ``k`` hits."""
    return max(64, DEPTH * k)


def fuse(mode: Mode, text: F32, cosine: F32, near: F32, named: npt.NDArray[np.bool_]) -> F32:
    """The formula at the top of this file: float32[n] in [0, 1] from three float32[n] and a bool[n]."""
    if mode == "vector":
        return np.maximum(cosine, 0)
    best = text.max(initial=0)
    words = text / best if best > 0 else np.zeros_like(text)
    if mode == "text":
        return words
    total = words + (cosine + near) / 2 + np.float32(NAMED) * named
    return np.asarray(np.maximum(total / (2 + NAMED), 0), np.float32)


def cosines(nodes: Sequence[Node], vector: F32) -> F32:
    """The cosine of every node to ``vector``, 0 if that has no length: float32[len(nodes)]."""
    if not nodes:
        return np.zeros(0, np.float32)
    vectors = np.stack([node.vector for node in nodes])
    length = np.linalg.norm(vectors, axis=1) * (np.linalg.norm(vector) or 1)
    return np.asarray(vectors @ vector / length, np.float32)


def best(nodes: Sequence[Node], rows: npt.NDArray[np.intp], scores: F32, cosine: F32, k: int) -> list[int]:
    """The ``k`` best of ``rows``, best first; equal scores go by cosine, then by id, never by the store's order."""
    if len(rows) > k:
        least = np.partition(scores[rows], len(rows) - k)[len(rows) - k]
        rows = rows[scores[rows] >= least]
        if len(rows) > k:  # ties at the end, a whole memory of them perhaps: sort only those that may stay
            edge = rows[scores[rows] == least]
            wanted = k - (len(rows) - len(edge))
            limit = np.partition(cosine[edge], len(edge) - wanted)[len(edge) - wanted]
            rows = rows[(scores[rows] > least) | (cosine[rows] >= limit)]
    return sorted(rows.tolist(), key=lambda row: (-scores[row], -cosine[row], nodes[row].node_id))[:k]


def hits(
    nodes: Sequence[Node],
    scores: Sequence[float],
    similarity: Sequence[float],
    text_score: Sequence[float],
    mode: Mode,
    dim: int,
) -> Hits:
    """``Hits`` from nodes in their final order and their three scores."""
    found = tuple(
        Hit(
            node_id=node.node_id,
            kind=node.kind,
            text=node.text,
            source=node.source,
            domain=node.domain,
            created_at=node.created_at,
            quality=node.quality,
            tokens=node.tokens,
            score=float(s),
            similarity=float(c),
            text_score=float(t),
            model=node.model if node.kind == "interaction" else "",
        )
        for node, s, c, t in zip(nodes, scores, similarity, text_score, strict=True)
    )
    vectors = np.stack([node.vector for node in nodes]) if nodes else np.zeros((0, dim), np.float32)
    return Hits(hits=found, vectors=vectors, mode=mode)


def search_resident(rows: Resident, request: SearchRequest, now: float) -> Hits:
    """The best ``k`` of rows that are in memory, at ``now`` (Unix seconds)."""
    hybrid, said = request.mode == "hybrid", request.mode == "text"
    found = rows.search(request.vector, request.text, request.filter, now, passages=hybrid)
    text = found.bm25() if said else found.passage
    scores = fuse(request.mode, text, found.cosine, found.near, found.named)
    picked = best(found.nodes, np.flatnonzero(text > 0 if said else found.passes), scores, found.cosine, request.k)
    return hits(
        [found.nodes[row] for row in picked],
        scores[picked].tolist(),
        found.cosine[picked].tolist(),
        found.bm25_of(picked).tolist(),
        request.mode,
        request.vector.shape[0],
    )
