"""One tenant's open table: the handle, what of it is in memory, and which version that shows."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

from operators.errors import Stop
from operators.stores import lance_rows
from operators.stores.kept import Kept
from operators.stores.ports import Node
from operators.stores.resident import Tokenize

BATCH = 1024
"""Rows read at a time."""


class OpenTable:
    """``lock`` is held by whoever writes or reloads; searches take it only to look at the version.

    ``limits``: rows up to which all, or an index of all, are in memory. ``refresh_s``: seconds after which what another
    process wrote is seen at the latest.
    """

    def __init__(self, table: Any, dim: int, limits: tuple[int, int], refresh_s: float, tokenize: Tokenize) -> None:
        self.table, self.lock = table, threading.RLock()
        self._refresh_s, self._checked = refresh_s, time.monotonic()
        self.version = table.version
        self.kept = Kept(dim, tokenize, *limits, lambda size: self.read(size))
        self.kept.open(table.count_rows())

    def refresh(self, always: bool = False) -> OpenTable:
        """Take over what other processes wrote, if it is time for that, or ``always``. Returns itself."""
        if not always and time.monotonic() - self._checked < self._refresh_s:
            return self
        if not self.lock.acquire(blocking=always):
            return self  # somebody writes or tidies up: no search waits for that
        try:
            self._checked = time.monotonic()
            self.table.checkout_latest()
            version = self.table.version
            if version != self.version:
                self.kept.refresh(self.table.count_rows())
                self.version = version
        finally:
            self.lock.release()
        return self

    def written(self) -> None:
        """This process wrote, and what is in memory shows it already."""
        self.version = self.table.version

    def read(self, size: int = BATCH) -> Iterator[list[Node]]:
        """All rows, ``size`` at a time."""
        for batch in self.table.search().select(lance_rows.COLUMNS).to_batches(size):
            yield lance_rows.nodes(batch)

    def has_hnsw(self) -> bool:
        """Whether the vectors have an index."""
        return any("vector" in index.columns for index in self.table.list_indices())


def check_schema(table: Any, tenant: str, dim: int, where: str) -> None:
    """Raise ``Stop`` unless ``table`` has our columns and vectors of length ``dim``."""
    missing = set(lance_rows.COLUMNS) - set(table.schema.names)
    if missing:
        got = f"tenant {tenant!r} has no column {', '.join(sorted(missing))}: another version of RuvLLM wrote it"
        raise Stop("memory", got, f"ingest its documents anew, into another directory than {where}")
    held = table.schema.field("vector").type.list_size
    if held != dim:
        got = f"tenant {tenant!r} holds vectors of {held}, the encoder makes vectors of {dim}"
        raise Stop("memory", got, f"use the encoder it was made with, or another directory than {where}")
