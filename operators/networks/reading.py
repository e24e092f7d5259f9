"""Read the features of a turn: the raw values in the order of ``features.TABLE``, then scaled by it.

Plain Python over the few hits and numpy over the many nodes: at these sizes that is the faster of the two for each.
What the learned exemplars say of a turn belongs to the weights, so it stays 0 here (``Snapshot.recall`` adds it).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from operators.networks import form
from operators.networks.features import GAIN, LOG, NEARNESS, PROJECTED, TIERS, Vector, projection
from operators.records import FEATURES, Embedded, Hits, Load, Neighbourhood, Query, SessionState

_NO_EXEMPLARS = (0.0,) * (len(NEARNESS) * TIERS)


def slots(tiers: Mapping[str, int], models: Mapping[str, str]) -> dict[str, int]:
    """Everything that can name a tier → its slot: tier names, and model ids that only one tier uses.

    ``tiers`` maps tier → slot, ``models`` tier → model id. Stored turns are known by either.
    """
    ids = list(models.values())
    return {model: tiers[tier] for tier, model in models.items() if ids.count(model) == 1} | dict(tiers)


def read(
    query: Query,
    session: SessionState,
    load: Load,
    embedded: Embedded,
    hits: Hits,
    neighbourhood: Neighbourhood,
    slots: Mapping[str, int],
) -> Vector:
    """The features of a turn: float32[128] in [-1, 1] as ``TABLE`` lays out. ``slots`` maps tier names → 0…3.

    Names that ``slots`` does not know (a tier that left the profile) count as absent.
    """
    raw = np.array(
        [
            *_of_hits(query, hits),
            *_of_neighbourhood(neighbourhood),
            *_of_evidence(hits, slots),
            *_NO_EXEMPLARS,
            *form.of(query.text, embedded.tokens, sum(len(message.content) for message in query.messages)),
            *_of_session(session, load, slots),
            *_of_system(query, load, slots),
        ]
    )
    scaled = raw * GAIN
    scaled[LOG] = np.log1p(raw[LOG]) * GAIN[LOG]
    out = np.empty(FEATURES, np.float32)
    out[:PROJECTED] = projection(embedded.vector.shape[0]) @ embedded.vector
    out[PROJECTED:] = scaled
    np.minimum(out, 1.0, out=out)
    np.maximum(out, -1.0, out=out)
    return out


def _relevance(cosine: float) -> float:
    """How relevant a text of that cosine is: 0 below 0.3, 1 above 0.7, linear between (MiniLM: chance … a match)."""
    return min(max((cosine - 0.3) / 0.4, 0.0), 1.0)


def _of_hits(query: Query, found: Hits) -> list[float]:
    hits, degraded = found.hits, float(bool(found.degraded))
    n = len(hits)
    if not n:
        return [0.0] * 15 + [degraded]
    cosines, sources = [], set()
    scores = best_score = matches = best_text = quality = documents = interactions = relevant = 0.0
    for hit in hits:  # one loop: this runs for every query, and eight generators cost four times as much
        cosine, score, text_score, kind = hit.similarity, hit.score, hit.text_score, hit.kind
        cosines.append(cosine)
        sources.add(hit.source)
        scores += score
        best_score = max(best_score, score)
        matches += text_score > 0.0
        best_text = max(best_text, text_score)
        quality += hit.quality
        documents += kind == "document"
        interactions += kind == "interaction"
        relevant += hit.tokens * _relevance(cosine)
    cosines.sort(reverse=True)
    mean = sum(cosines) / n
    weights = [math.exp((cosine - cosines[0]) / 0.1) for cosine in cosines]
    # H(w / Σw) = ln Σw − Σ w ln w / Σw, and ln w is the exponent
    total = sum(weights)
    spread = sum([w * (cosine - cosines[0]) for w, cosine in zip(weights, cosines, strict=True)]) / 0.1
    return [
        n,
        cosines[0],
        mean,
        math.sqrt(sum([(cosine - mean) ** 2 for cosine in cosines]) / n),
        cosines[0] - cosines[1] if n > 1 else max(cosines[0], 0.0),
        (math.log(total) - spread / total) / math.log(n) if n > 1 else 0.0,
        best_score / scores if scores > 0.0 else 0.0,
        matches / n,
        best_text,
        quality / n,
        documents / n,
        interactions / n,
        len(sources) / n,
        max(query.created_at - hits[0].created_at, 0.0) / 86_400.0,
        relevant,
        degraded,
    ]


def _of_neighbourhood(around: Neighbourhood) -> list[float]:
    n, m = len(around.node_ids), len(around.edge_weight)
    cut = float(around.truncated or bool(around.degraded))
    if not n:
        return [0.0] * 10 + [cut]
    hops = np.bincount(np.minimum(around.hop, 2), minlength=3).tolist()
    relevance = np.minimum(np.maximum((around.similarity - 0.3) / 0.4, 0.0), 1.0)
    beyond = n - hops[0]
    return [
        n,
        m,
        math.sqrt(m / (n * (n - 1))) if n > 1 else 0.0,
        float(around.edge_weight.sum()) / m if m else 0.0,
        float(around.edge_weight.max()) if m else 0.0,
        (m - int(np.count_nonzero(around.edge_relation))) / m if m else 0.0,  # `similar` is relation 0
        hops[1] / n,
        hops[2] / n,
        float(around.similarity[hops[0] :].sum()) / beyond if beyond else 0.0,  # the hits come first
        float(relevance @ around.tokens),
        cut,
    ]


def _of_evidence(found: Hits, slots: Mapping[str, int]) -> list[float]:
    sums, counts = [0.0] * TIERS, [0.0] * TIERS
    for hit in found.hits:
        slot = slots.get(hit.model) if hit.kind == "interaction" else None
        if slot is not None:
            sums[slot] += hit.quality
            counts[slot] += 1.0
    return [2.0 * s / c - 1.0 if c else 0.0 for s, c in zip(sums, counts, strict=True)] + counts


def _of_session(session: SessionState, load: Load, slots: Mapping[str, int]) -> list[float]:
    last, warm = [0.0] * TIERS, [0.0] * TIERS
    if session.last_tier is not None and session.last_tier in slots:
        last[slots[session.last_tier]] = 1.0
    for tier in load.tiers:
        if tier.tier in slots:
            warm[slots[tier.tier]] = tier.warm
    verdict = session.last_verdict
    return [session.turn, 0.0 if verdict is None else 2.0 * verdict - 1.0, float(verdict is not None), *last, *warm]


def _of_system(query: Query, load: Load, slots: Mapping[str, int]) -> list[float]:
    queue = [0.0] * TIERS
    for tier in load.tiers:
        if tier.tier in slots:
            queue[slots[tier.tier]] = tier.queue
    budget = load.latency_budget_s
    return [*queue, 0.0 if budget is None else 1.0 / (1.0 + max(budget, 0.0)), 1.0 - 2.0 * query.quality_bias]
