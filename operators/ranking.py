"""Scores that rank a neighbourhood for a query: by similarity, or by the attention network.

By similarity (no trained network) the score is the cosine, discounted by what else is known:

    hit        s = max(cos, 0) · (1 − φ·(1 − f)),   f = its fused score / the best hit's fused score
    neighbour  s = max(cos, 0) · decay^hop

The fused score (``stores.fusion``) says little about relevance by itself: half of it compares the words with those of
the best hit, and the best hit of a useless search has f = 1 too. So it scales the cosine and never replaces it.

By attention the score is the mean weight over layers and heads (``networks.attention``).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from operators.errors import Stop
from operators.networks import attention
from operators.records import Neighbourhood


def similarity_scores(near: Neighbourhood, fusion: float, hop_decay: float) -> npt.NDArray[np.floating]:
    """The formula at the top of this file: float32[n], n ≥ 1."""
    best = near.score.max()
    fused = near.score / best if best > 0 else np.ones_like(near.score)
    trust = np.where(near.hop == 0, 1 - fusion * (1 - fused), hop_decay ** near.hop.astype(np.float32))
    return np.asarray(np.maximum(near.similarity, 0) * trust, np.float32)


def attention_scores(
    weights: attention.AttentionWeights, vector: npt.NDArray[np.floating], near: Neighbourhood
) -> npt.NDArray[np.floating]:
    """Attention averaged over layers and heads: float[n], sums to 1. Raises ``Stop`` if the vectors' sizes differ."""
    if not vector.shape[0] == near.vectors.shape[1] == weights.dim:
        got = f"query vector {vector.shape}, nodes {near.vectors.shape}, checkpoint size {weights.dim}"
        raise Stop("attend", got, "use a checkpoint trained for this encoder, or set ranking: similarity")
    relation, weight = edge_features(near)
    return np.asarray(attention.attend(weights, vector, near.vectors, relation, weight, near.hop).mean(axis=(0, 1)))


def edge_features(near: Neighbourhood) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Relation int8[n] and weight float32[n] of the strongest edge by which each node hangs on one nearer to the hits.

    Hits get ``HIT`` and their fused score over the best one's; nodes without such an edge (cut off) ``LOOSE`` and 0.
    """
    relation = np.where(near.hop == 0, attention.HIT, attention.LOOSE).astype(np.int8)
    best = near.score.max()
    weight = np.where(near.hop == 0, near.score / best if best > 0 else 0, 0).astype(np.float32)
    far = np.concatenate([near.edge_from, near.edge_to])
    close = np.concatenate([near.edge_to, near.edge_from])
    hanging = np.flatnonzero(near.hop[close] < near.hop[far])
    strength = np.tile(near.edge_weight, 2)[hanging]
    order = hanging[
        np.argsort(strength, kind="stable")
    ]  # rising: of several edges to a node the strongest is written last
    relation[far[order]] = np.tile(near.edge_relation, 2)[order]
    weight[far[order]] = np.tile(near.edge_weight, 2)[order]
    return relation, weight
