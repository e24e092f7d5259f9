"""The one place that knows which class keeps the topics of a profile."""

from __future__ import annotations

from pathlib import Path

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
