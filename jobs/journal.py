"""Which files an ingest has brought into a memory, so that the next one leaves them alone.

A SQLite file beside the memory it tells of: where the memory is removed, its journal goes too. A row is written only
after the service has acknowledged all nodes of the file, so a crash costs work, never a file.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

from operators.errors import Stop
from operators.records import record

_SCHEMA = """
CREATE TABLE IF NOT EXISTS done(
    memory TEXT, source TEXT, path TEXT, settings TEXT NOT NULL,
    size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, sha256 TEXT NOT NULL,
    PRIMARY KEY (memory, source, path)
) WITHOUT ROWID
"""


@record
class Taken:
    """A file as it was read. ``source`` is how its nodes name it, ``path`` is absolute, ``size`` in bytes."""

    source: str
    path: str
    size: int
    mtime_ns: int
    sha256: str


class Journal:
    """The files of one memory, for one way of reading them.

    Args:
        path: the SQLite file; made if it is not there.
        memory: names the memory, e.g. the service's address and the tenant.
        settings: names what decides on the nodes: the encoder, the chunking. With others every file is new.
    """

    def __init__(self, path: Path, memory: str, settings: str) -> None:
        self._key, self._path = (memory, settings), path
        with self._door():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._db = sqlite3.connect(path)
            path.chmod(0o600)  # it names what the user has
            self._db.execute(_SCHEMA)

    def known(self) -> dict[tuple[str, str], Taken]:
        """(source, path) → the file as it was when it was brought in."""
        memory, settings = self._key
        names = ("source", "path", "size", "mtime_ns", "sha256")
        with self._door():
            rows = self._db.execute(
                "SELECT source, path, size, mtime_ns, sha256 FROM done WHERE memory = ? AND settings = ?",
                (memory, settings),
            )
            return {(row[0], row[1]): Taken(**dict(zip(names, row, strict=True))) for row in rows}

    def put(self, files: Sequence[Taken]) -> None:
        """Note that ``files`` are in the memory; durable when it returns."""
        memory, settings = self._key
        with self._door(), self._db:
            self._db.executemany(
                "INSERT OR REPLACE INTO done VALUES (?, ?, ?, ?, ?, ?, ?)",
                [(memory, f.source, f.path, settings, f.size, f.mtime_ns, f.sha256) for f in files],
            )

    @contextlib.contextmanager
    def _door(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            got = f"its journal {self._path} can't be used: {error}"
            raise Stop("ingest", got, "free some space, remove it, or set data_dir") from error

    def close(self) -> None:
        """Release the file."""
        self._db.close()
