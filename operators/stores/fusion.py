"""Fusing what words and what meaning say about a row, and turning the chosen rows into ``Hits``.

    score = (t / max(max t, ENOUGH · m) + (c + a) / 2 + NAMED · s) / (2 + NAMED) · (1 + SAYS · (ℓ - ½)) · prior,
            at least 0 and at most 1

t is the BM25 of the row together with its neighbours (``strands``), divided by the best row's because BM25 has no
scale; but where the best row has few of the query's words, by a share of m, which a row with all of them would come
near. c is the row's own cosine, a the mean cosine of it and its neighbours. So words and meaning count the same, unless
the words are hardly there. s is 1 if the query names who says the text (``Alma: …``): neighbours share their words, but
not their speaker. ℓ in [0, 1) is how long the row is beside its neighbours, ½ for one that stands alone: the evidence
rarely stands in "Oh, really?". Scores are fused and not ranks: a rank can't tell a clear winner from the best of a bad
lot.

    prior = (1 - r + r · 2^(-age / half_life_s)) · (1 - q + q · quality),   r = recency, q = quality of the ``Prior``

age is counted at the time of the search, and is 0 for what claims to come from the future. Weights 0 change nothing;
at weight 1 a node of one half-life has half the score, and one without quality none.

Modes ``vector`` (score c) and ``text`` (score t / max t of the row alone) rank by the row's own score, without a prior.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from operators.records import F32, Hit, Hits, Mode
from operators.stores.ports import Node, Prior, SearchRequest
from operators.stores.resident import Resident

NAMED = 0.3
"""What the right speaker is worth beside the best words (1). It and the next two were chosen on the tuning halves of
two families of invented conversations and of real monologues; see DECISIONS.md."""
ENOUGH = 0.5
"""Share of the query's words (weighted by idf) with which the best row's words count in full."""
SAYS = 0.3
"""What a row gains that says all of what it and its neighbours say, twice what one of usual length does."""
DEPTH = 4
"""Where candidates have to be fetched, each side gives ``DEPTH`` · k (at least 64) of them."""


def depth(k: int) -> int:
    """How many candidates each side contributes for ``k`` hits."""
    return max(64, DEPTH * k)


def fuse(
    mode: Mode,
    text: F32,
    cosine: F32,
    near: F32,
    named: npt.NDArray[np.bool_],
    *,
    most: float = 0.0,
    says: F32 | float = 0.5,
    prior: F32 | float = 1.0,
) -> F32:
    """The formula at the top of this file: float32[n] in [0, 1] from three float32[n] and a bool[n].

    ``most`` is m, 0 where nobody knows it; ``says`` is ℓ, float32[n] or the same for all, and so is ``prior``.
    """
    if mode == "vector":
        return np.maximum(cosine, 0)
    best = max(float(text.max(initial=0)), ENOUGH * most if mode == "hybrid" else 0.0)
    words = text / np.float32(best) if best > 0 else np.zeros_like(text)
    if mode == "text":
        return words
    total = words + (cosine + near) / 2 + np.float32(NAMED) * named
    weight = (1 + SAYS * (says - 0.5)) * prior / (2 + NAMED)
    return np.asarray(np.clip(total * weight, 0, 1), np.float32)


def prior_of(wanted: Prior, created: npt.NDArray[np.float64], quality: F32, now: float) -> F32 | float:
    """``prior`` of the formula at the top of this file: float32[n], or 1.0 if all weights are 0."""
    if not wanted.recency and not wanted.quality:
        return 1.0
    age = np.maximum(now - created, 0)
    fresh = 1 - wanted.recency + wanted.recency * np.exp2(-age / wanted.half_life_s)
    return np.asarray(fresh * (1 - wanted.quality + wanted.quality * quality), np.float32)


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
    prior = prior_of(request.prior, found.created, found.quality, now)
    scores = fuse(
        request.mode, text, found.cosine, found.near, found.named, most=found.most, says=found.says, prior=prior
    )
    picked = best(found.nodes, np.flatnonzero(text > 0 if said else found.passes), scores, found.cosine, request.k)
    return hits(
        [found.nodes[row] for row in picked],
        scores[picked].tolist(),
        found.cosine[picked].tolist(),
        found.bm25_of(picked).tolist(),
        request.mode,
        request.vector.shape[0],
    )
