"""A graph as compressed sparse rows, and the walk over it.

Row i's entries are ``indptr[i]:indptr[i + 1]``. Every directed edge has two entries, one at each end, so that both
directions can be walked; ``forward`` is true at the entry of its source, so that each edge is counted once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.integer]


class Csr(NamedTuple):
    """n rows, two entries an edge: ``indptr`` int64[n + 1]; per entry ``indices`` int32 (the other end), ``relation``
    int8, ``weight`` float32, ``forward`` bool."""

    indptr: npt.NDArray[np.int64]
    indices: npt.NDArray[np.int32]
    relation: npt.NDArray[np.int8]
    weight: npt.NDArray[np.float32]
    forward: npt.NDArray[np.bool_]


_LEAST, _MOST = np.float32(1e-6), np.float32(1)
"""A weight of 0 or less counts as the least, so that worth still falls with every hop."""


class Walked(NamedTuple):
    """What ``walk`` reached: ``rows`` int64[n] (the seeds first), ``hop`` int32[n], edges as indices into ``rows``."""

    rows: npt.NDArray[np.int64]
    hop: npt.NDArray[np.int32]
    edge_from: npt.NDArray[np.int32]
    edge_to: npt.NDArray[np.int32]
    edge_relation: npt.NDArray[np.int8]
    edge_weight: npt.NDArray[np.float32]
    truncated: bool


def build(n: int, start: Ints, end: Ints, relation: npt.NDArray[np.int8], weight: npt.NDArray[np.float32]) -> Csr:
    """Rows from m directed edges; within a row the order is that of the edges."""
    row = np.concatenate([start, end])
    order = np.argsort(row, kind="stable")
    indptr = np.zeros(n + 1, np.int64)
    np.cumsum(np.bincount(row, minlength=n), out=indptr[1:])
    return Csr(
        indptr,
        np.concatenate([end, start])[order].astype(np.int32),
        np.concatenate([relation, relation])[order],
        np.concatenate([weight, weight])[order],
        order < len(start),
    )


def walk(
    graph: Csr, seeds: npt.NDArray[np.int64], *, hops: int, max_nodes: int, max_edges: int, decay: float
) -> Walked:
    """All nodes within ``hops`` of the distinct ``seeds``, either direction, and the edges among them.

    A node is worth the best product of (weight, at most 1) × ``decay`` along a shortest path from a seed. When more
    than ``max_nodes`` are reached the worthiest stay; as worth falls with every step, each of them keeps its path.
    When more than ``max_edges`` join them the heaviest stay.
    """
    seeds = seeds[:max_nodes]
    room = max_nodes - len(seeds)
    worth = np.zeros(len(graph.indptr) - 1, np.float32)  # 0: not reached yet (worth itself is kept above 0)
    worth[seeds] = 1
    place = np.empty(len(worth), np.int32)  # read only where it was written
    found, hop, frontier = [seeds], [len(seeds)], seeds
    truncated = False
    for _ in range(hops):
        owner, entry = _entries(graph.indptr, frontier)
        reached = graph.indices.take(entry)
        fresh = (worth.take(reached) == 0).nonzero()[0]
        reached, owner, entry = reached.take(fresh), owner.take(fresh), entry.take(fresh)
        weight = np.minimum(np.maximum(graph.weight.take(entry), _LEAST), _MOST)
        np.maximum.at(worth, reached, worth.take(frontier).take(owner) * weight * np.float32(decay))
        # One entry of each node: the one whose number stuck.
        number = np.arange(len(reached), dtype=np.int32)
        place[reached] = number
        frontier = reached[place.take(reached) == number].astype(np.int64)
        if len(frontier) > room:
            # Beyond the cap already within this hop: what is cut here could not come back later.
            frontier, truncated = frontier[_best(worth[frontier], room)], True
        if not len(frontier):
            break
        found.append(frontier)
        hop.append(len(frontier))
    rows, hop_of = np.concatenate(found), np.arange(len(hop), dtype=np.int32).repeat(hop)
    truncated = truncated or len(rows) > max_nodes
    order = _best(worth.take(rows[len(seeds) :]), room) + len(seeds)
    rows = np.concatenate([seeds, rows.take(order)])
    hop_of = np.concatenate([hop_of[: len(seeds)], hop_of.take(order)])

    owner, entry = _entries(graph.indptr, rows)
    other = graph.indices.take(entry)
    place[other] = -1
    place[rows] = np.arange(len(rows), dtype=np.int32)
    end = place.take(other)
    inside = (graph.forward.take(entry) & (end >= 0)).nonzero()[0]
    if len(inside) > max_edges:
        inside, truncated = inside[np.sort(_best(graph.weight[entry[inside]], max_edges))], True
    entry = entry.take(inside)
    return Walked(
        rows,
        hop_of,
        owner.take(inside).astype(np.int32),
        end.take(inside),
        graph.relation.take(entry),
        graph.weight.take(entry),
        truncated,
    )


def _entries(indptr: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> tuple[Ints, Ints]:
    """Every entry of ``rows``: the index into ``rows`` it belongs to, and its place in the entry arrays."""
    start = indptr.take(rows)
    end = indptr.take(rows + 1)
    count = end - start
    owner = np.arange(len(rows)).repeat(count)
    return owner, np.arange(len(owner)) + (end - count.cumsum()).take(owner)


def _best(values: npt.NDArray[np.float32], k: int) -> Ints:
    """Where the ``k`` largest values stand, largest first, equal ones in their order."""
    return (-values).argsort(kind="stable")[:k]
