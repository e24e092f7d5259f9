"""The last step of the ingest job: nodes to the service, files to the journal, figures to the report."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jobs.door import Door, from_ipc
from jobs.ingesting.steps import Row
from jobs.journal import Journal, Taken
from operators.errors import Reject, Retry
from operators.stores.lance_rows import schema

NODES = "/v1/admin/memory/nodes"
FILES_A_POST = 64
"""Most files in one request: a transaction costs the memory more than a node does."""
PATIENCE_S = 120.0
"""Longest time in seconds that the service may be busy or away before the job gives up."""
_NOT_THE_DATA = {401, 403, 404, 405, 415}
"""Statuses that speak of the door, not of what was handed in."""


@dataclasses.dataclass(slots=True)
class Report:
    """What came of ``files``: nodes ``added`` and already there, ``edges`` made, files ``unchanged`` since they were
    brought in, and ``refused`` ones, each with ``path`` and ``error``. ``masked``: personal values by kind, in what
    was taken."""

    files: int
    added: int = 0
    duplicates: int = 0
    edges: int = 0
    unchanged: int = 0
    refused: list[dict[str, str]] = dataclasses.field(default_factory=list)
    masked: dict[str, int] = dataclasses.field(default_factory=dict)

    def refuse(self, source: str, error: str) -> None:
        """Note a file that can't be used."""
        self.refused.append({"path": source, "error": error})


class Writer:
    """Posts the nodes of many files at a time, and notes each file once all its nodes are acknowledged.

    Args:
        advance: told how many more files are dealt with.
        encoder: what made the nodes' vectors.
        max_bytes: largest request in bytes of Arrow data.
    """

    def __init__(
        self,
        door: Door,
        tenant: str,
        journal: Journal,
        report: Report,
        advance: Callable[[int], None],
        *,
        encoder: str,
        max_bytes: int,
        patience_s: float = PATIENCE_S,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._door, self._tenant, self._journal, self._report, self._advance = door, tenant, journal, report, advance
        self._encoder, self._max_bytes, self._patience_s, self._sleep = encoder, max_bytes, patience_s, sleep
        self._rows: list[Row] = []
        self._bytes = 0

    def knock(self, dim: int) -> None:
        """Post no nodes at all, to learn at once whether the service is there, with our encoder and our key.

        Raises ``Retry``, ``Reject`` or ``Stop`` if it is not so.
        """
        try:
            self._post(schema(dim).empty_table())
        except Reject as error:
            if error.status in _NOT_THE_DATA or error.code == "bad_encoder":
                raise

    def take(self, row: Row) -> None:
        """One file as it left the workers; its nodes are written when a request is full."""
        if row["error"]:
            self._report.refuse(row["source"], row["error"])
            self._advance(1)
            return
        self._report.unchanged += not row["nodes"]  # its time is new, its bytes are those we know
        self._rows.append(row)
        self._bytes += len(row["nodes"])
        if len(self._rows) >= FILES_A_POST or self._bytes >= self._max_bytes:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        rows, self._rows, self._bytes = self._rows, [], 0
        if rows:
            self._write(rows)

    def _write(self, rows: Sequence[Row]) -> None:
        import pyarrow as pa

        tables = [from_ipc(row["nodes"]) for row in rows if row["nodes"]]
        try:
            for part in parts(pa.concat_tables(tables), self._max_bytes) if tables else ():
                answer = self._patiently(part)
                self._report.added += answer["added"]
                self._report.duplicates += answer["duplicates"]
                self._report.edges += answer["edges"]
        except Reject as error:
            if error.status in _NOT_THE_DATA or error.code == "bad_encoder":
                raise
            if len(rows) > 1:  # each by itself: one that is bad must not take the others with it
                for row in rows:
                    self._write([row])
                return
            self._report.refuse(rows[0]["source"], str(error))
        else:
            found = sum((Counter(json.loads(row["masked"])) for row in rows), Counter(self._report.masked))
            self._report.masked = dict(found)
            self._journal.put([Taken(**{field.name: row[field.name] for field in _FIELDS}) for row in rows])
        self._advance(len(rows))

    def _patiently(self, table: Any) -> Any:
        """Post, and again while the service says that it is busy. Raises the last ``Retry`` when patience ends."""
        end = time.monotonic() + self._patience_s
        while True:
            try:
                return self._post(table)
            except Retry as busy:
                if time.monotonic() + busy.retry_after_s > end:
                    raise
                self._sleep(busy.retry_after_s)

    def _post(self, table: Any) -> Any:
        return self._door.post_arrow(NODES, table, {"tenant": self._tenant, "encoder": self._encoder})


_FIELDS = dataclasses.fields(Taken)


def parts(table: Any, max_bytes: int) -> Iterator[Any]:
    """``table`` in order, in tables of at most ``max_bytes``, or of one row."""
    if table.nbytes <= max_bytes or table.num_rows == 1:
        yield table
        return
    half = table.num_rows // 2
    yield from parts(table.slice(0, half), max_bytes)
    yield from parts(table.slice(half), max_bytes)
