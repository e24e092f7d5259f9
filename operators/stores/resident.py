"""A tenant's rows in memory: exact cosine and exact BM25 over all of them in numpy.

LanceDB needs about 4 ms to plan any query, so up to some ten thousand rows a scan of arrays that are already here is
several times faster than asking it, gives both scores for every hit, and sees a row as soon as it is put. LanceDB
stays the durable truth; this is rebuilt from it.

BM25 as in Robertson & Zaragoza, "The Probabilistic Relevance Framework" (2009), with Lucene's idf, which is never
negative, k1 = 1.2 and b = 0.75: the same formula, constants and tokenizer as LanceDB's full-text index.
"""

from __future__ import annotations

import dataclasses
import threading
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from operators.records import F32, Filter
from operators.stores.ports import Node

K1, B = 1.2, 0.75
Tokenize = Callable[[str], list[str]]


class Resident:
    """Rows only ever grow: a row that is written again is marked dead and added anew. Any thread may call it."""

    def __init__(self, dim: int, tokenize: Tokenize) -> None:
        self._tokenize = tokenize
        self._lock = threading.Lock()
        self._clear(dim)

    def _clear(self, dim: int) -> None:
        self._nodes: list[Node] = []
        self._row: dict[str, int] = {}
        self._postings: dict[str, tuple[array[int], array[int]]] = {}  # term → rows, how often in each
        self._codes: dict[tuple[str, str], int] = {}  # (column, value) → number, for the columns that filters name
        self._vectors = np.zeros((0, dim), np.float32)
        self._norm, self._length = np.zeros(0, np.float32), np.zeros(0, np.float32)
        self._created, self._expires = np.zeros(0), np.zeros(0)
        self._kind, self._domain, self._source = (np.zeros(0, np.int32) for _ in range(3))
        self._live = np.zeros(0, np.bool_)

    def __len__(self) -> int:
        return len(self._row)

    def __contains__(self, node_id: str) -> bool:
        return node_id in self._row

    def put(self, nodes: Iterable[Node]) -> None:
        """Add ``nodes``; one that is here with the same content stays as it is."""
        with self._lock:
            for node in nodes:
                old = self._row.get(node.node_id)
                if old is not None:
                    if _same(self._nodes[old], node):
                        continue
                    self._live[old] = False
                self._append(node)
            if len(self._nodes) > 64 and len(self._nodes) > 2 * len(self._row):
                self._compact()

    def keep(self, node_ids: set[str]) -> None:
        """Drop every row whose id is not in ``node_ids``."""
        with self._lock:
            for node_id in self._row.keys() - node_ids:
                self._live[self._row.pop(node_id)] = False

    def search(
        self, vector: F32, text: str, where: Filter, now: float
    ) -> tuple[list[Node], npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        """All rows, and for each its cosine to ``vector`` and its BM25 for ``text``: float32[n].

        A row that is dead, expired at ``now`` (Unix seconds) or outside the filter has -inf and 0.
        """
        terms = Counter(self._tokenize(text))
        with self._lock:
            n = len(self._nodes)
            nodes, vectors, norm, length = self._nodes, self._vectors[:n], self._norm[:n], self._length[:n]
            live = self._live[:n].copy()
            passes = live & self._passes(where, now, n)
            postings = [
                (np.array(rows), np.array(often), count)
                for term, count in terms.items()
                for rows, often in [self._postings.get(term, _NOTHING)]
            ]
        cosine = np.full(n, -np.inf, np.float32)
        scale = norm * np.float32(np.linalg.norm(vector))
        np.divide(vectors @ vector, scale, out=cosine, where=passes & (scale > 0))
        return nodes, cosine, _bm25(postings, length, live) * passes

    def _passes(self, where: Filter, now: float, n: int) -> npt.NDArray[np.bool_]:
        passes: npt.NDArray[np.bool_] = (self._expires[:n] == 0) | (self._expires[:n] > now)
        for column, values, codes in (
            ("kind", where.kinds, self._kind),
            ("domain", where.domains, self._domain),
            ("source", where.sources, self._source),
        ):
            if values:
                passes &= np.isin(codes[:n], [self._codes.get((column, value), -1) for value in values])
        if where.created_from is not None:
            passes &= self._created[:n] >= where.created_from
        if where.created_to is not None:
            passes &= self._created[:n] <= where.created_to
        return passes

    def _append(self, node: Node) -> None:
        row = len(self._nodes)
        if row == len(self._live):
            self._grow(max(256, 2 * row))
        terms = Counter(self._tokenize(node.text))
        for term, count in terms.items():
            rows, often = self._postings.setdefault(term, (array("i"), array("i")))
            rows.append(row)
            often.append(count)
        self._vectors[row] = node.vector
        self._norm[row] = np.linalg.norm(node.vector)
        self._length[row] = terms.total()
        self._created[row], self._expires[row] = node.created_at, node.expires_at
        self._kind[row], self._domain[row], self._source[row] = (
            self._codes.setdefault(key, len(self._codes))
            for key in (("kind", node.kind), ("domain", node.domain), ("source", node.source))
        )
        self._live[row] = True
        self._nodes.append(node)
        self._row[node.node_id] = row

    def _grow(self, size: int) -> None:
        """Room for ``size`` rows. New arrays, so a search under way keeps its own."""
        for name in ("_vectors", "_norm", "_length", "_created", "_expires", "_kind", "_domain", "_source", "_live"):
            old = getattr(self, name)
            new = np.zeros((size, *old.shape[1:]), old.dtype)
            new[: len(old)] = old
            setattr(self, name, new)

    def _compact(self) -> None:
        nodes = [self._nodes[row] for row in self._row.values()]
        self._clear(self._vectors.shape[1])
        for node in nodes:
            self._append(node)


_NOTHING: tuple[array[int], array[int]] = (array("i"), array("i"))


def _bm25(
    postings: Sequence[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], int]],
    length: npt.NDArray[np.float32],
    live: npt.NDArray[np.bool_],
) -> npt.NDArray[np.float32]:
    """Σ over terms of idf · tf · (k1 + 1) / (tf + k1 · (1 - b + b · length / mean length)), dead rows not counted."""
    scores = np.zeros(len(length), np.float32)
    n = int(live.sum())
    mean = float(length[live].mean()) if n else 0.0
    if mean == 0:
        return scores
    for rows, often, count in postings:
        alive = live[rows]
        rows, tf = rows[alive], often[alive].astype(np.float32)
        idf = np.float32(count * np.log(1 + (n - len(rows) + 0.5) / (len(rows) + 0.5)))
        scores[rows] += idf * tf * (K1 + 1) / (tf + K1 * (1 - B + B * length[rows] / mean))
    return scores


def _same(a: Node, b: Node) -> bool:
    names = [field.name for field in dataclasses.fields(Node) if field.name != "vector"]
    return all(getattr(a, name) == getattr(b, name) for name in names) and np.array_equal(a.vector, b.vector)
