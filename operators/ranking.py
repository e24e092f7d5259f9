"""Scores that rank a neighbourhood for a query: by fused similarity, or by the attention network.

By similarity (no trained network):

    hit        s = its fused score (``stores.fusion``)
    neighbour  s = max(cos, 0) · c,   c = decay · max over the nodes it hangs on of (edge weight · c),   c of a hit = s

A node hangs on those one hop nearer to the hits. The search has weighed a hit's words and neighbours already, so hits
keep its order; what only the graph brought needs a good hit, a strong way to it and a meaning of its own.

By attention the score is the mean weight over layers and heads (``networks.attention``).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from operators.errors import Stop
from operators.networks import attention
from operators.records import Neighbourhood

Ends = tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.intp]]


def similarity_scores(near: Neighbourhood, hop_decay: float) -> npt.NDArray[np.float32]:
    """The formula at the top of this file: float32[n], n ≥ 1."""
    carried = np.where(near.hop == 0, near.score, 0).astype(np.float32)
    far, close, edge = _hanging(near)
    hops = near.hop[far]
    for hop in range(1, int(near.hop.max()) + 1):
        now = hops == hop
        passed = carried[close[now]] * near.edge_weight[edge[now]] * np.float32(hop_decay)
        np.maximum.at(carried, far[now], passed)
    own = np.where(near.hop == 0, 1, np.maximum(near.similarity, 0))
    return np.asarray(carried * own, np.float32)


def attention_scores(
    weights: attention.AttentionWeights,
    vector: npt.NDArray[np.floating],
    near: Neighbourhood,
    network: Callable[..., attention.Floats] = attention.attend,
) -> npt.NDArray[np.floating]:
    """Attention averaged over layers and heads: float[n], sums to 1. Raises ``Stop`` if the vectors' sizes differ.

    ``network`` is what runs the weights, with the arguments and the result of ``attention.attend``.
    """
    if not vector.shape[0] == near.vectors.shape[1] == weights.dim:
        got = f"query vector {vector.shape}, nodes {near.vectors.shape}, checkpoint size {weights.dim}"
        raise Stop("attend", got, "use a checkpoint trained for this encoder, or set ranking: similarity")
    relation, weight = edge_features(near)
    return np.asarray(network(weights, vector, near.vectors, relation, weight, near.hop).mean(axis=(0, 1)))


def edge_features(near: Neighbourhood) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Relation int8[n] and weight float32[n] of the strongest edge by which each node hangs on one nearer to the hits.

    Hits get ``HIT`` and their fused score over the best one's; nodes without such an edge (cut off) ``LOOSE`` and 0.
    """
    relation = np.where(near.hop == 0, attention.HIT, attention.LOOSE).astype(np.int8)
    best = near.score.max()
    weight = np.where(near.hop == 0, near.score / best if best > 0 else 0, 0).astype(np.float32)
    far, _, edge = _hanging(near)
    order = np.argsort(near.edge_weight[edge], kind="stable")  # rising: of several edges the strongest is written last
    relation[far[order]] = near.edge_relation[edge[order]]
    weight[far[order]] = near.edge_weight[edge[order]]
    return relation, weight


def _hanging(near: Neighbourhood) -> Ends:
    """Every edge by which a node hangs on one nearer to the hits: the node, the nearer one, the edge's index."""
    far = np.concatenate([near.edge_from, near.edge_to])
    close = np.concatenate([near.edge_to, near.edge_from])
    hanging = np.flatnonzero(near.hop[close] < near.hop[far])
    return far[hanging], close[hanging], hanging % max(len(near.edge_from), 1)
