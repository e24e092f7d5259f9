"""Which rows of a tenant are in memory, by its size: all, scored one and all (``Resident``); all, with an index that
names candidates (``Large``); or none, and LanceDB answers.

A ``Large`` is loaded in the background; meanwhile searches are answered as before. It takes half of the time of one
core at most, so that requests do not wait for it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from operators.stores.large import NEAREST, Large
from operators.stores.ports import Node
from operators.stores.resident import Resident, Tokenize

AT_ONCE = 2000
"""Up to so many rows are loaded by whoever asks for them."""
PIECE = 32
"""Rows loaded in one go: about 2 ms."""
ROOM = 4
"""A ``Large`` has room for so many times the rows it is made for."""
_log = logging.getLogger("ruvllm.memory")


class Kept:
    """``resident_rows`` and ``approximate_rows``: up to how many rows which is used. ``read(n)`` gives all rows of the
    table, n at a time. Any thread may search; whoever writes holds a lock."""

    def __init__(
        self,
        dim: int,
        tokenize: Tokenize,
        resident_rows: int,
        approximate_rows: int,
        read: Callable[[int], Iterator[list[Node]]],
    ) -> None:
        self._dim, self._tokenize, self._read = dim, tokenize, read
        self._resident_rows, self._approximate_rows = resident_rows, approximate_rows
        self._coming: Large | None = None
        self.rows: Resident | None = None
        self.loading: threading.Thread | None = None

    def open(self, count: int) -> None:
        """Load the table's ``count`` rows, or begin to."""
        self.close()
        if count > self._resident_rows:
            self._grow(count)
            return
        rows = Resident(self._dim, self._tokenize)
        for nodes in self._read(1024):
            rows.put(nodes)
        self.rows = rows

    def answering(self, k: int) -> Resident | None:
        """What answers a search for ``k`` nodes; ``None``: LanceDB."""
        rows = self.rows
        return None if isinstance(rows, Large) and k > NEAREST else rows

    def put(self, nodes: Sequence[Node]) -> None:
        """These were written."""
        coming, rows = self._coming, self.rows  # in this order: what came while we looked is then in ``rows``
        for held in (coming, rows):
            if held is not None:
                held.put(nodes)
        if rows is None:
            return
        most = self._approximate_rows if isinstance(rows, Large) else self._resident_rows
        if len(rows) > most or (isinstance(rows, Large) and rows.worn):
            self._grow(len(rows))

    def remove(self, node_ids: Sequence[str]) -> None:
        """These were removed."""
        coming, rows = self._coming, self.rows
        for held in (coming, rows):
            if held is not None:
                held.remove(node_ids)

    def refresh(self, count: int) -> None:
        """Another process wrote: the table has ``count`` rows now."""
        if self.rows is None or isinstance(self.rows, Large) or count > self._resident_rows:
            self.open(count)
            return
        ids: set[str] = set()
        for nodes in self._read(1024):
            self.rows.put(nodes)
            ids.update(node.node_id for node in nodes)
        self.rows.keep(ids)

    def close(self) -> None:
        """Let go of everything; loading ends soon."""
        self.rows = self._coming = None

    def _grow(self, count: int) -> None:
        """Load a ``Large`` that will replace what is there, unless one is on its way or the tenant is too large."""
        if count > self._approximate_rows:
            self.close()
        elif self._coming is None:
            self._coming = Large(self._dim, self._tokenize, ROOM * count)
            if count <= AT_ONCE:
                self._load(self._coming, rest=0)
            else:
                self.loading = threading.Thread(target=self._load, args=(self._coming, 1), name="memory", daemon=True)
                self.loading.start()

    def _load(self, large: Large, rest: float) -> None:
        """``rest``: for how long to pause after each piece, in times of its work."""
        try:
            began = time.perf_counter()
            for nodes in self._read(PIECE):
                if self._coming is not large:
                    return
                large.load(nodes)
                time.sleep(rest * (time.perf_counter() - began))
                began = time.perf_counter()
            large.ready()
        except Exception as e:  # whatever it is: LanceDB goes on answering
            if self._coming is large:
                self._coming = None
                _log.warning("memory: the index of a large tenant can't be built, searches stay slow: %s", e)
            return
        if self._coming is large:
            self.rows = large
            self._coming = None
