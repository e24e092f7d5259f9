"""A database file of Kùzu (or its fork Ladybug): opening, statements, transactions; the only file that knows ``kuzu``.

Kùzu lets one process open a file for writing and one transaction write at a time, and a connection must never be used
by two threads at once (silent corruption). So there is one connection behind one lock: callers queue up there as they
would for a writer thread, without a hop to it.
"""

from __future__ import annotations

import importlib
import importlib.util  # kuzu's COPY from arrow reads importlib.util without importing it
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from operators.base import Knobs
from operators.errors import RuvError, Stop
from operators.stores.vendor import translate

_owned: set[Path] = set()
"""Files open in this process: Kùzu's own lock does not keep a process from opening a file twice."""


class KuzuFile:
    """One open file. ``schema``: statements that make its tables if they are not there. Any thread may call it."""

    class Config(Knobs):
        """The knobs of the graph store."""

        module: Literal["kuzu", "ladybug"] = "kuzu"
        """Which implementation to use; ``ladybug`` is the maintained fork (``pip install ladybug==0.22.0``). Neither
        opens the other's files."""
        buffer_pool_bytes: int = Field(256 << 20, ge=32 << 20)
        """Memory for pages, in bytes."""
        max_bytes: int = Field(64 << 30, ge=1 << 30)
        """Largest size of the file, in bytes; so much address space is reserved. A power of two."""
        threads: int = Field(1, ge=1, le=64)
        """Threads a query may use."""

    def __init__(self, path: Path, config: Config, schema: Sequence[str]) -> None:
        self.path, self.config, self._schema = Path(path).resolve(), config, schema
        self._database: Any = None
        self._connection: Any = None
        self._lock = threading.RLock()

    def open(self) -> None:
        """Open or create. Raises ``Stop`` when another process owns it or the file can't be used."""
        try:
            with _private_symbols():
                module = importlib.import_module(self.config.module)
        except ImportError as e:
            raise Stop("graph", f"can't import {self.config.module!r}: {e}", "install it, or set module: kuzu") from e
        with self._lock:
            if self._connection is not None:
                return
            if self.path in _owned:
                raise Stop("graph", f"{self.path} is open in this process already", "share the one that has it open")
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with _private_symbols():  # ladybug loads its library only here
                    self._database = module.Database(
                        str(self.path),
                        buffer_pool_size=self.config.buffer_pool_bytes,
                        max_db_size=self.config.max_bytes,
                        max_num_threads=self.config.threads,
                    )
                self._connection = module.Connection(self._database, num_threads=self.config.threads)
                for statement in self._schema:
                    self._connection.execute(statement).close()
            except (RuntimeError, OSError) as e:
                self._release()
                if "lock on file" in str(e):
                    remedy = "let the process that has it open do the work, or end it"
                    raise Stop("graph", f"another process has {self.path} open", remedy) from e
                remedy = f"give a file that it may write, made by {self.config.module}"
                raise Stop("graph", f"can't open {self.path}: {e}", remedy) from e
            _owned.add(self.path)

    def close(self) -> None:
        """Checkpoint and release the file; safe to call twice."""
        with self._lock:
            if self._connection is None:
                return
            try:
                with self.door():
                    self.run("CHECKPOINT")
            finally:
                self._release()
                _owned.discard(self.path)

    def _release(self) -> None:
        for handle in (self._connection, self._database):
            if handle is not None:
                handle.close()
        self._connection = self._database = None

    def run(self, statement: str, **parameters: Any) -> list[list[Any]]:
        """The rows that ``statement`` gives; inside ``door``."""
        result = self._connection.execute(statement, parameters)
        try:
            rows: list[list[Any]] = result.get_all()
            return rows
        finally:
            result.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of the body's writes, or none; inside ``door``."""
        self.run("BEGIN TRANSACTION")
        try:
            yield
            self.run("COMMIT")
        except BaseException:
            # Kùzu has already rolled back after some errors of its own, and says so with an error here.
            try:
                self.run("ROLLBACK")
            except RuntimeError as e:
                if "No active transaction" not in str(e):
                    raise
            raise

    @contextmanager
    def door(self) -> Iterator[None]:
        """The lock, and the one place where Kùzu's errors become ours."""
        with self._lock:
            if self._connection is None:
                raise Stop("graph", f"{self.path} is not open", "call open() first")
            try:
                yield
            except RuvError:
                raise
            except RuntimeError as e:
                raise translate("graph", e, self.path) from e


@contextmanager
def _private_symbols() -> Iterator[None]:
    """Both load themselves with RTLD_GLOBAL for their extensions, which we don't use. Their C++ symbols would then
    stand in for those of libraries that load later: importing xllamacpp after it ends the process (bad_alloc)."""
    real = sys.setdlopenflags
    sys.setdlopenflags = lambda flags: None
    try:
        yield
    finally:
        sys.setdlopenflags = real
