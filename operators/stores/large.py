"""The rows of a large tenant in memory: a search looks at some of them, and scores those exactly as ``Resident`` does.

1 The rows nearest to the query's vector, named by an index (``faiss_index``), and the best by BM25 with all their
neighbours. 2 Of the latter the best by the BM25 of row and neighbours. 3 These and the nearest are scored with their
neighbours by the formulas of ``resident``. The statistics are those of all rows, only the mean length of a passage is
that of a sample. Where few rows pass a filter, step 3 takes all of them.

A row can be found as soon as it is put: what the index does not hold yet is compared one by one.
"""

from __future__ import annotations

import threading
from array import array
from collections import Counter
from collections.abc import Iterable
from typing import Any, cast

import numpy as np

from operators.records import F32, Filter
from operators.stores.faiss_index import SAMPLE, FaissIndex, lists
from operators.stores.large_words import Mask, Rows, Window, among, best, damp, distinct, places_of, times, weigh
from operators.stores.packed import Chosen, PackedNodes
from operators.stores.ports import Node
from operators.stores.resident import K1, PASSAGE_K1, Resident, Scores, Tokenize, Word
from operators.stores.strands import AFTER, BEFORE, REACH

EXACT = 2048
"""Up to so many rows, all that pass are candidates."""
NEAREST = 256
"""Rows that the index names."""
DEEP = 24
"""Of so many of the nearest the neighbours are candidates too."""
SAID = 1000
"""Rows that the words name, to be looked at with their neighbours (step 2)."""
PASSAGES = 600
"""Of these, so many are scored in full."""
STEP = 16
"""Rows put while searches wait: about a millisecond."""


class Large(Resident):
    """``reserve``: rows to have room for; more than that costs a copy of all vectors, during which searches wait.

    While it is loaded from the table (``load``) it may be written to (``put``, ``remove``); ``ready`` ends that.
    """

    def __init__(self, dim: int, tokenize: Tokenize, reserve: int, exact: int | None = None) -> None:
        super().__init__(dim, tokenize)
        self._exact, self._removed = EXACT if exact is None else exact, set[str]()
        self._grow(max(256, reserve))  # the system gives the memory when it is written to
        self._index: FaissIndex | None = None
        self._adding = threading.Lock()
        self._loading, self._mean = True, (0, 1.0)
        self.building: threading.Thread | None = None

    def _clear(self, dim: int) -> None:
        super()._clear(dim)
        self._nodes = cast("list[Node]", PackedNodes(lambda row: self._vectors[row]))
        self._words, self._expiring = 0.0, False

    @property
    def worn(self) -> bool:
        """Whether most rows were replaced or removed: time to load it anew."""
        return len(self._nodes) > max(2 * self._exact, 2 * len(self._row))

    # ------------------------------------------------------------------------------------------------ writing

    def load(self, nodes: Iterable[Node]) -> None:
        """Add what the table holds; what was written meanwhile is newer and stays."""
        with self._lock:
            for node in nodes:
                if node.node_id not in self._row and node.node_id not in self._removed:
                    self._append(node)

    def ready(self) -> None:
        """All is loaded: build the index."""
        self._build()
        with self._lock:
            self._loading, self._removed = False, set()

    def put(self, nodes: Iterable[Node]) -> None:
        """Add ``nodes``, a few at a time; one that is here with the same content stays as it is."""
        every = list(nodes)
        for begin in range(0, len(every), STEP):
            super().put(every[begin : begin + STEP])
        if self._loading:
            return
        self._follow()
        held = 0 if self._index is None else self._index.planned
        if len(self._nodes) > max(self._exact, 2 * held) and (self.building is None or not self.building.is_alive()):
            self.building = threading.Thread(target=self._build, name="memory-index", daemon=True)
            self.building.start()

    def remove(self, node_ids: Iterable[str]) -> None:
        """Drop the rows of ``node_ids``."""
        with self._lock:
            for node_id in node_ids:
                row = self._row.pop(node_id, None)
                if row is not None:
                    self._kill(row)
                if self._loading:
                    self._removed.add(node_id)

    def _build(self) -> None:
        """An index of all rows in the place of the one that is there. Writers and searches go on meanwhile."""
        n = len(self._nodes)
        if n <= self._exact:
            return
        chosen = np.random.default_rng(0).choice(n, min(n, SAMPLE * lists(n)), replace=False)
        index = FaissIndex(self._vectors[np.sort(chosen)], n)
        index.add(self._vectors[:n])
        with self._adding:
            self._index = index
        self._follow()

    def _follow(self) -> None:
        """Take the newest rows into the index."""
        with self._adding:
            if self._index is not None:
                self._index.add(self._vectors[len(self._index) : len(self._nodes)])

    def _append(self, node: Node) -> None:
        super()._append(node)
        self._words += float(self._length[len(self._nodes) - 1])
        self._expiring = self._expiring or node.expires_at > 0

    def _kill(self, row: int) -> None:
        super()._kill(row)
        self._words -= float(self._length[row])

    def _compact_if_due(self) -> None:
        """Never here, it takes minutes: ``worn`` tells when to load anew."""

    # ------------------------------------------------------------------------------------------------ searching

    def search(self, vector: F32, text: str, where: Filter, now: float, passages: bool = True) -> Scores:
        """As ``Resident.search``, of the candidates only."""
        terms = Counter(self._tokenize(text))
        with self._lock:
            n, alive = len(self._nodes), len(self._row)
            postings = [(*map(np.array, self._postings.get(term, _NOTHING)), terms[term]) for term in terms]
            said = [np.array(self._said_by[term]) for term in terms if term in self._said_by]
            mean = self._words / max(alive, 1)
        live = self._live[:n].copy() if alive < n else None
        words, total = weigh(postings, live, alive)
        passes = self._passing(where, n, now, live)
        if (n if passes is None else int(np.count_nonzero(passes))) <= self._exact:
            rows = np.arange(n) if passes is None else np.flatnonzero(passes)
            window = self._window(rows, words, n, now, passages)
        else:
            window = self._candidates(vector, words, passes, n, mean, now, passages)
        rows = window.every[window.own]
        own = self._cosine(window.every, vector) * self._present(window.every, now)
        held = window.often[:, window.own]
        named = np.zeros(len(rows), np.bool_)
        for holders in said:
            named |= among(holders, rows)
        return Scores(
            nodes=cast("list[Node]", Chosen(self._nodes, rows.tolist())),
            passes=np.ones(len(rows), np.bool_),
            cosine=own[window.own],
            near=window.sums(own) / window.weight,
            passage=window.passages(words, self._mean_passage(n)) if passages else np.zeros(len(rows), np.float32),
            most=total * (PASSAGE_K1 + 1),
            says=window.says(),
            named=named,
            created=self._created[rows],
            quality=self._quality[rows],
            words=[
                (at.astype(np.int32), line[at], idf)
                for line, (_, _, idf) in zip(held, words, strict=True)
                if len(at := np.flatnonzero(line))
            ],
            damp=damp(self._length[rows], mean, K1),
        )

    def _passing(self, where: Filter, n: int, now: float, live: Mask | None) -> Mask | None:
        """Which rows may be hits; ``None``: all."""
        passes = live
        if self._expiring:
            passes = self._present(np.s_[:n], now)
        if not where.open:
            wanted = self._passes(where, n)
            passes = wanted if passes is None else passes & wanted
        return passes

    def _present(self, rows: Any, now: float) -> Mask:
        expires = self._expires[rows]
        return np.asarray(self._live[rows] & ((expires == 0) | (expires > now)), np.bool_)

    def _candidates(
        self, vector: F32, words: list[Word], passes: Mask | None, n: int, mean: float, now: float, passages: bool
    ) -> Window:
        """The rows to be scored, with their neighbours if ``passages``."""
        near = self._nearest(vector, passes, n)
        if not passages:
            said = best(words, self._length[:n], mean, NEAREST, passes)
            return self._window(distinct(np.concatenate([near, said])), words, n, now, passages)
        said = self._around(best(words, self._length[:n], mean, SAID, None), n)
        rows = distinct(np.concatenate([near, said.ravel(), self._around(near[:DEEP], n).ravel()]))
        rows = rows[np.searchsorted(rows, 0) :]
        if passes is not None:
            rows = rows[passes[rows]]
        window = self._window(rows, words, n, now, passages)
        kept = among(np.sort(near), rows)
        if len(rows) > PASSAGES:
            scores = window.passages(words, self._mean_passage(n))
            kept[np.argpartition(scores, -PASSAGES)[-PASSAGES:]] = True
        return window.some(np.flatnonzero(kept)) if len(rows) > PASSAGES else window

    def _nearest(self, vector: F32, passes: Mask | None, n: int) -> Rows:
        """The ``NEAREST`` rows to ``vector``, best first."""
        index = self._index
        held = 0 if index is None else min(len(index), n)
        found = np.arange(held, n)
        if index is not None:
            named = index.search(vector, NEAREST, None if passes is None else passes[:held])
            found = np.concatenate([named[named < held], found])
        if passes is not None:
            found = found[passes[found]]
        return np.asarray(found[np.argsort(-self._cosine(found, vector), kind="stable")[:NEAREST]])

    def _cosine(self, rows: Rows, vector: F32) -> F32:
        scale = self._norm[rows] * np.float32(np.linalg.norm(vector))
        return np.asarray(self._vectors[rows] @ vector / np.where(scale > 0, scale, 1), np.float32)

    def _window(self, rows: Rows, words: list[Word], n: int, now: float, passages: bool) -> Window:
        """``rows`` with what the query's words and their neighbours say of them; without ``passages`` each alone."""
        around = self._around(rows, n) if passages else rows[:, None]
        every, places = places_of(around, n)
        here = self._present(every, now) & (every >= 0)
        often = np.array([times(held, tf, every) for held, tf, _ in words], np.float32).reshape(len(words), len(every))
        share = here[places] * WEIGHTS[: around.shape[1]]
        return Window(every, places[:, 0], places, share, self._length[every] * here, often * here)

    def _around(self, rows: Rows, n: int) -> Rows:
        """The rows within reach of each of ``rows``, itself first, -1 for none: int64[m, 1 + 2 · REACH]."""
        columns = [rows]
        for links in (self._strands.before, self._strands.after):
            step = rows
            for _ in range(REACH):
                step = np.where(step >= 0, links[step], -1)
                step = np.where(step < n, step, -1)  # it came after this search began
                columns.append(step)
        return np.stack(columns, 1).astype(np.int64)

    def _mean_passage(self, n: int) -> float:
        """Mean length of a row with its neighbours, of a sample; counted again when the rows grew by a hundredth."""
        counted, mean = self._mean
        if counted != n and not 1000 < counted <= n <= counted * 1.01:
            sample = np.arange(0, n, max(1, n // 4096))
            around = self._around(sample[self._live[sample]], n)
            lengths = self._length[around] * (self._live[around] & (around >= 0))
            mean = float((lengths @ WEIGHTS).mean()) if len(around) else 0.0
            self._mean = (n, mean)
        return mean


WEIGHTS = np.array([1, *(decay**d for decay in (BEFORE, AFTER) for d in range(1, REACH + 1))], np.float32)
"""What each column of ``_around`` counts."""
_NOTHING: tuple[array[int], array[int]] = (array("i"), array("i"))
