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


_LEAST = 1e-6
"""A weight of 0 or less counts as this, so that worth still falls with every hop."""


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
    place = np.full(len(worth), -1, np.int32)
    found, hop, frontier = [seeds[:0]], [np.zeros(0, np.int32)], seeds
    truncated = False
    for step in range(1, hops + 1):
        owner, entry = _entries(graph.indptr, frontier)
        reached = graph.indices[entry]
        fresh = np.flatnonzero(worth[reached] == 0)
        reached, owner, entry = reached[fresh], owner[fresh], entry[fresh]
        value = worth[frontier][owner] * np.clip(graph.weight[entry], _LEAST, 1) * np.float32(decay)
        np.maximum.at(worth, reached, value)
        # One entry of each node: the one whose number stuck.
        number = np.arange(len(reached), dtype=np.int32)
        place[reached] = number
        frontier = reached[place[reached] == number].astype(np.int64)
        if len(frontier) > room:
            # Beyond the cap already within this hop: what is cut here could not come back later.
            frontier, truncated = frontier[_best(worth[frontier], room)], True
        if not len(frontier):
            break
        found.append(frontier)
        hop.append(np.full(len(frontier), step, np.int32))
    rows, hop_of = np.concatenate(found), np.concatenate(hop)
    truncated = truncated or len(rows) > room
    order = _best(worth[rows], room)
    rows = np.concatenate([seeds, rows[order]])
    hop_of = np.concatenate([np.zeros(len(seeds), np.int32), hop_of[order]])

    place.fill(-1)
    place[rows] = np.arange(len(rows), dtype=np.int32)
    owner, entry = _entries(graph.indptr, rows)
    end = place[graph.indices[entry]]
    inside = np.flatnonzero(graph.forward[entry] & (end >= 0))
    if len(inside) > max_edges:
        inside, truncated = inside[np.sort(_best(graph.weight[entry[inside]], max_edges))], True
    entry = entry[inside]
    return Walked(
        rows, hop_of, owner[inside].astype(np.int32), end[inside], graph.relation[entry], graph.weight[entry], truncated
    )


def _entries(indptr: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> tuple[Ints, Ints]:
    """Every entry of ``rows``: the index into ``rows`` it belongs to, and its place in the entry arrays."""
    start = indptr[rows]
    count = indptr[rows + 1] - start
    ends = count.cumsum()
    owner = np.arange(len(rows)).repeat(count)
    return owner, np.arange(len(owner)) + (start - ends + count)[owner]


def _best(values: npt.NDArray[np.float32], k: int) -> Ints:
    """Where the ``k`` largest values stand, largest first, equal ones in their order."""
    return np.argsort(-values, kind="stable")[:k]
