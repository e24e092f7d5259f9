"""A tenant's rows in memory: exact cosine and exact BM25 over all of them in numpy.

LanceDB needs about 4 ms to plan any query, so up to some ten thousand rows a scan of arrays that are already here is
several times faster than asking it, gives both scores for every hit, and sees a row as soon as it is put. LanceDB
stays the durable truth; this is rebuilt from it.

BM25 as in Robertson & Zaragoza, "The Probabilistic Relevance Framework" (2009), with Lucene's idf, which is never
negative, k1 = 1.2 and b = 0.75: the same formula, constants and tokenizer as LanceDB's full-text index.
"""

from __future__ import annotations

import dataclasses
import math
import re
import threading
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from operators.records import F32, Filter
from operators.stores.ports import Node
from operators.stores.strands import Layout, Strands

K1, B = 1.2, 0.75
PASSAGE_K1 = 0.5
"""k1 for a row together with its neighbours."""
BLOCK = 16
"""Words scored at a time for passages; bounds the memory a long query takes."""
Tokenize = Callable[[str], list[str]]
_FILTERED = ("kind", "domain", "source", "session", "user")
"""Fields of a node that a filter may name."""
_SPEAKER = re.compile(r"\s*([^\s:][^:\n]{0,39}):\s")


Word = tuple[npt.NDArray[np.int32], F32, np.float32]
"""A word of the query: the rows that hold it, rising; how often it is in each; its idf times its count in the query."""


@dataclasses.dataclass(frozen=True, slots=True)
class Scores:
    """All n rows and what a query says of them. Only rows that ``passes`` (bool[n]) may be hits; the others score 0.

    ``cosine`` float32[n] is the row's own, ``near`` and ``passage`` (BM25) those of the row and its neighbours;
    ``most`` is the ``passage`` that a row with all words of the query would come near, words held nowhere included.
    ``says`` float32[n] in [0, 1): how long the row is beside itself and its neighbours; ½ for one as long as they.
    ``named`` bool[n]: the query names who says it (``speaker``). ``created`` float64[n] (Unix seconds) and ``quality``
    float32[n] are the nodes'. ``words`` and ``damp`` are what ``bm25`` needs.
    """

    nodes: list[Node]
    passes: npt.NDArray[np.bool_]
    cosine: F32
    near: F32
    passage: F32
    most: float
    says: F32
    named: npt.NDArray[np.bool_]
    created: npt.NDArray[np.float64]
    quality: F32
    words: list[Word]
    damp: F32

    def bm25(self) -> F32:
        """The rows' own BM25: float32[n], Σ over words of idf · tf · (k1 + 1) / (tf + damp)."""
        scores = np.zeros(len(self.damp), np.float32)
        for rows, tf, idf in self.words:
            scores[rows] += idf * np.float32(K1 + 1) * tf / (tf + self.damp[rows])
        return scores * self.passes

    def bm25_of(self, some: Sequence[int]) -> F32:
        """``bm25`` of a few rows that pass, much faster: float32[len(some)]."""
        wanted, scores = np.asarray(some, np.int32), np.zeros(len(some), np.float32)
        for rows, tf, idf in self.words:
            at = np.minimum(np.searchsorted(rows, wanted), len(rows) - 1)
            often = tf[at] * (rows[at] == wanted)
            scores += idf * np.float32(K1 + 1) * often / (often + self.damp[wanted])
        return scores


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
        self._said_by: dict[str, array[int]] = {}  # term of a speaker's name → rows
        self._codes: dict[tuple[str, str], int] = {}  # (column, value) → number, for the columns that filters name
        self._vectors = np.zeros((0, dim), np.float32)
        self._norm, self._length = np.zeros(0, np.float32), np.zeros(0, np.float32)
        self._created, self._expires = np.zeros(0), np.zeros(0)
        self._kind, self._domain, self._source, self._session, self._user = (np.zeros(0, np.int32) for _ in range(5))
        self._quality, self._live = np.zeros(0, np.float32), np.zeros(0, np.bool_)
        self._strands = Strands()

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
                    self._kill(old)
                self._append(node)
            self._compact_if_due()

    def keep(self, node_ids: set[str]) -> None:
        """Drop every row whose id is not in ``node_ids``."""
        with self._lock:
            for node_id in self._row.keys() - node_ids:
                self._kill(self._row.pop(node_id))
            self._compact_if_due()

    def remove(self, node_ids: Iterable[str]) -> None:
        """Drop the rows of ``node_ids``."""
        self.keep(self._row.keys() - set(node_ids))

    def search(self, vector: F32, text: str, where: Filter, now: float, passages: bool = True) -> Scores:
        """Every row's cosine to ``vector`` and BM25 for ``text``; only with ``passages`` also those with neighbours.

        A row that is dead or expired at ``now`` (Unix seconds) counts for nothing, a neighbour's score included. One
        outside the filter can't be a hit, but still tells what its neighbours are about. (Of expired rows one thing
        remains until they are deleted: how many rows hold a word, as in LanceDB's index.)
        """
        terms = Counter(self._tokenize(text))
        with self._lock:
            n = len(self._nodes)
            nodes, vectors, norm, length = self._nodes, self._vectors[:n], self._norm[:n], self._length[:n]
            live = self._live[:n].copy()
            present = live & ((self._expires[:n] == 0) | (self._expires[:n] > now))
            passes = present & self._passes(where, n)
            layout = self._strands.layout(n) if passages else None
            created, quality = self._created[:n], self._quality[:n]
            named = np.zeros(n, np.bool_)
            for term in terms:
                named[self._said_by.get(term, _NOBODY)] = True
            postings = [
                (np.array(rows), np.array(often), count)
                for term, count in terms.items()
                for rows, often in [self._postings.get(term, _NOTHING)]
            ]
        cosine: F32 = np.zeros(n, np.float32)
        scale = norm * np.float32(np.linalg.norm(vector))
        # vecdot: OpenBLAS's product of a matrix and a vector takes twice as long where the rows don't fit the cache.
        np.divide(np.vecdot(vectors, vector), scale, out=cosine, where=present & (scale > 0))
        words, most = _weigh(postings, live)
        near, passage, says = cosine, np.zeros(n, np.float32), np.full(n, 0.5, np.float32)
        if layout is not None:
            near, passage, says = _passages(words, cosine, length, present, layout)
            passage *= passes
        damp = _damp(length, live, K1)
        cosine, near, named = cosine * passes, near * passes, named & passes
        most *= PASSAGE_K1 + 1
        return Scores(nodes, passes, cosine, near, passage, most, says, named, created, quality, words, damp)

    def _passes(self, where: Filter, n: int) -> npt.NDArray[np.bool_]:
        passes = np.ones(n, np.bool_)
        for column, values, codes in (
            ("kind", where.kinds, self._kind),
            ("domain", where.domains, self._domain),
            ("source", where.sources, self._source),
            ("session", where.sessions, self._session),
            ("user", where.users, self._user),
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
        for term in set(self._tokenize(speaker(node.text))):
            self._said_by.setdefault(term, array("i")).append(row)
        self._vectors[row] = node.vector
        self._norm[row] = np.linalg.norm(node.vector)
        self._length[row] = terms.total()
        self._created[row], self._expires[row], self._quality[row] = node.created_at, node.expires_at, node.quality
        for column in _FILTERED:
            key = (column, getattr(node, column))
            getattr(self, f"_{column}")[row] = self._codes.setdefault(key, len(self._codes))
        self._live[row] = True
        self._nodes.append(node)
        self._row[node.node_id] = row
        self._strands.add(node, row)

    def _kill(self, row: int) -> None:
        self._live[row] = False
        self._strands.remove(self._nodes[row], row)

    def _grow(self, size: int) -> None:
        """Room for ``size`` rows. New arrays, so a search under way keeps its own."""
        scalars = ("_vectors", "_norm", "_length", "_created", "_expires", "_quality", "_live")
        for name in (*scalars, *(f"_{column}" for column in _FILTERED)):
            old = getattr(self, name)
            new = np.zeros((size, *old.shape[1:]), old.dtype)
            new[: len(old)] = old
            setattr(self, name, new)
        self._strands.grow(size)

    def _compact_if_due(self) -> None:
        if len(self._nodes) <= max(64, 2 * len(self._row)):
            return
        nodes = [self._nodes[row] for row in self._row.values()]
        self._clear(self._vectors.shape[1])
        for node in nodes:
            self._append(node)


_NOBODY = array("i")
_NOTHING: tuple[array[int], array[int]] = (array("i"), array("i"))


def speaker(text: str) -> str:
    """Who says ``text``, if it is written as in a transcript, ``Name: …``; else the empty string."""
    found = _SPEAKER.match(text)
    return found[1] if found else ""


def _weigh(
    postings: Sequence[tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], int]], live: npt.NDArray[np.bool_]
) -> tuple[list[Word], float]:
    """The words that occur, with Lucene's idf, and the sum of all words' idf; dead rows not counted."""
    n, words, total = int(np.count_nonzero(live)), [], 0.0
    for rows, often, count in postings:
        if n < len(live):
            alive = live[rows]
            rows, often = rows[alive], often[alive]
        tf = often.astype(np.float32)
        idf = count * math.log(1 + (n - len(rows) + 0.5) / (len(rows) + 0.5))
        total += idf
        if len(rows):
            words.append((rows, tf, np.float32(idf)))
    return words, total


def _passages(
    words: Sequence[Word], cosine: F32, length: F32, present: npt.NDArray[np.bool_], layout: Layout
) -> tuple[F32, F32, F32]:
    """Mean cosine and BM25 of each row together with its neighbours, and ``says`` of ``Scores``: three float32[n]."""
    here = layout.spread(present.astype(np.float32))
    weight = layout.around(here)
    near = np.asarray(layout.around(layout.spread(cosine)) / np.maximum(weight, 1), np.float32)
    lengths = layout.around(layout.spread(length * present))
    damp, scores = _damp(lengths, here > 0, PASSAGE_K1), np.zeros(layout.size, np.float32)
    for begin in range(0, len(words), BLOCK):
        block = words[begin : begin + BLOCK]
        often = np.zeros((len(block), layout.size), np.float32)
        for line, (rows, tf, _) in zip(often, block, strict=True):
            line[layout.place.take(rows)] = tf * present.take(rows)  # an expired row's words count for nothing
        often = layout.around(often)
        often /= often + damp
        scores += np.array([idf for _, _, idf in block], np.float32) @ often * np.float32(PASSAGE_K1 + 1)
    usual = (lengths / np.maximum(weight, 1)).take(layout.place)
    says = np.asarray(length / np.maximum(length + usual, 1), np.float32)
    return near.take(layout.place), scores.take(layout.place), says


def _damp(length: F32, counted: npt.NDArray[np.bool_], k1: float) -> F32:
    """What damps a word's count in each row: k1 · (1 - b + b · length / mean length of the ``counted`` rows)."""
    mean = float(length[counted].mean()) if counted.any() else 0.0
    return np.asarray(k1 * (1 - B + B * length / (mean or 1)), np.float32)


def _same(a: Node, b: Node) -> bool:
    names = [field.name for field in dataclasses.fields(Node) if field.name != "vector"]
    return all(getattr(a, name) == getattr(b, name) for name in names) and np.array_equal(a.vector, b.vector)
