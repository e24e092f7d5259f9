"""The one place that knows which classes keep the topics and the memory of a profile."""

from __future__ import annotations

from pathlib import Path

from operators.stores.events import Events
from operators.stores.kafka import KafkaLog
from operators.stores.kuzu_graph import KuzuGraph
from operators.stores.lance import LanceStore
from operators.stores.memory import Memory
from operators.stores.ports import EventLog
from operators.stores.spool import SpoolingLog
from operators.stores.sqlite_log import SqliteLog
from operators.stores.topics import create_topics


def open_log(events: Events, *, spool: bool = False) -> EventLog:
    """The open event log with its topics.

    A Kafka log connects, and creates what topics are missing, at the first call; until it can, calls raise ``Retry``.
    With ``spool`` appends then wait on disk: that is for those who can't wait themselves. The file of ``kind: sqlite``
    is always there, so it has no spool.

    Raises ``Stop`` if a file is not an event log, ``Reject`` if its topics have other numbers of partitions.
    """
    if events.kind == "sqlite":
        log: EventLog = SqliteLog(Path(events.path))
        log.open()
        create_topics(log, events.partitions)
        return log
    log = kafka_log(events)
    if spool:
        log = SpoolingLog(log, Path(events.spool_path), events.spool_bytes)
    log.open()
    return log


def kafka_log(events: Events) -> KafkaLog:
    """The Kafka log of the profile, not yet open."""
    return KafkaLog(
        events.kafka,
        retention_s=events.retention_days * 86400,
        prepare=lambda log: create_topics(log, events.partitions),
    )


def memory_in(
    root: Path, dim: int, memory: Memory.Config, vectors: LanceStore.Config, graph: KuzuGraph.Config
) -> Memory:
    """The memory in the directory ``root``, not yet opened; its vectors are float32[dim]."""
    return Memory(
        memory, LanceStore(root / "vectors", dim, vectors), KuzuGraph(root / "graph.kuzu", graph), root / "snapshots"
    )
