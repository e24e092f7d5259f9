"""Reciprocal rank fusion, and turning fused candidates into ``Hits``.

Cormack, Clarke, Büttcher, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning Methods" (SIGIR
2009): score = Σ over rankings of 1 / (60 + rank), rank from 1. It needs no scale common to cosine and BM25.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from operators.records import Hit, Hits
from operators.stores.ports import Node, SearchRequest
from operators.stores.resident import Resident

RANK_CONSTANT = 60
DEPTH = 4
"""Each ranking is read to ``DEPTH`` · k (at least 64) places: deeper ones change the first k hardly ever."""


def depth(k: int) -> int:
    """How many candidates each ranking contributes for ``k`` hits."""
    return max(64, DEPTH * k)


def fuse(*rankings: Sequence[str]) -> dict[str, float]:
    """Fused score of every id that stands in one of ``rankings`` (best first)."""
    scores: dict[str, float] = {}
    for ranking in rankings:
        for rank, node_id in enumerate(ranking, start=1):
            scores[node_id] = scores.get(node_id, 0.0) + 1 / (RANK_CONSTANT + rank)
    return scores


def best(scores: Mapping[str, float], similarity: Mapping[str, float], k: int) -> list[str]:
    """The ``k`` best ids; equal scores go by cosine, then by id, so that the order never depends on the store."""
    return sorted(scores, key=lambda node_id: (-scores[node_id], -similarity[node_id], node_id))[:k]


def hits(
    nodes: Sequence[Node],
    scores: Sequence[float],
    similarity: Sequence[float],
    text_score: Sequence[float],
    mode: Literal["hybrid", "vector", "text"],
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
        )
        for node, s, c, t in zip(nodes, scores, similarity, text_score, strict=True)
    )
    vectors = np.stack([node.vector for node in nodes]) if nodes else np.zeros((0, dim), np.float32)
    return Hits(hits=found, vectors=vectors, mode=mode)


def search_resident(rows: Resident, request: SearchRequest, now: float) -> Hits:
    """The best ``k`` of rows that are in memory, at ``now`` (Unix seconds)."""
    nodes, cosine, bm25 = rows.search(request.vector, request.text, request.filter, now)
    deep = depth(request.k)
    rankings: list[list[int]] = []
    if request.mode != "text":
        rankings.append(_top(nodes, cosine, bm25, deep, -np.inf))
    if request.mode != "vector":
        rankings.append(_top(nodes, bm25, cosine, deep, 0.0))
    row_of = {nodes[row].node_id: row for ranking in rankings for row in ranking}
    fused = fuse(*([nodes[row].node_id for row in ranking] for ranking in rankings))
    chosen = best(fused, {node_id: float(cosine[row]) for node_id, row in row_of.items()}, request.k)
    picked = [row_of[node_id] for node_id in chosen]
    return hits(
        [nodes[row] for row in picked],
        [fused[node_id] for node_id in chosen],
        cosine[picked].tolist(),
        bm25[picked].tolist(),
        request.mode,
        request.vector.shape[0],
    )


def _top(
    nodes: Sequence[Node], values: npt.NDArray[np.float32], other: npt.NDArray[np.float32], k: int, above: float
) -> list[int]:
    """The rows of the ``k`` largest values that are more than ``above``, largest first.

    Equal values go by the ``other`` score: their places are ranks to be fused, and must not be those of chance.
    """
    rows = np.flatnonzero(values > above)
    if len(rows) > k:
        least = np.partition(values[rows], len(rows) - k)[len(rows) - k]
        rows = rows[values[rows] >= least]
    return sorted(rows.tolist(), key=lambda row: (-values[row], -other[row], nodes[row].node_id))[:k]
