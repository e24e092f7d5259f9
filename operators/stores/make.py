"""The one place that knows which classes keep the topics and the memory of a profile."""

from __future__ import annotations

from pathlib import Path

from operators.stores.kuzu_graph import KuzuGraph
from operators.stores.lance import LanceStore
from operators.stores.memory import Memory
from operators.stores.ports import EventLog
from operators.stores.sqlite_log import SqliteLog
from operators.stores.topics import create_topics


def open_log(path: Path, partitions: int) -> EventLog:
    """The event log in the file ``path``, open, with its topics; ``partitions`` is for those keyed by session.

    Raises ``Stop`` if the file is not an event log, ``Reject`` if its topics have other numbers of partitions.
    """
    log = SqliteLog(path)
    log.open()
    create_topics(log, partitions)
    return log


def memory_in(
    root: Path, dim: int, memory: Memory.Config, vectors: LanceStore.Config, graph: KuzuGraph.Config
) -> Memory:
    """The memory in the directory ``root``, not yet opened; its vectors are float32[dim]."""
    return Memory(
        memory, LanceStore(root / "vectors", dim, vectors), KuzuGraph(root / "graph.kuzu", graph), root / "snapshots"
    )
