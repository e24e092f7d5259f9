"""An event as Kafka's record, and a record as an event."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from operators.stores.ports import Event
from operators.stores.topics import partition_of


def to_record(key: str, value: bytes, headers: Mapping[str, str], partitions: int) -> tuple[dict[str, Any], int]:
    """What kafka-python's ``send`` takes, with the partition we choose; and its size in bytes.

    Raises ``TypeError`` or ``ValueError`` for what is no text and no bytes.
    """
    named = [(name, text.encode()) for name, text in headers.items()]
    size = len(key.encode()) + memoryview(value).nbytes + sum(len(n.encode()) + len(text) for n, text in named)
    return {"key": key.encode(), "value": value, "headers": named, "partition": partition_of(key, partitions)}, size


def to_event(topic: str, record: Any) -> Event:
    """What its producer left out is empty; text that is no UTF-8 gets replacement characters."""
    return Event(
        topic=topic,
        partition=record.partition,
        offset=record.offset,
        key=(record.key or b"").decode(errors="replace"),
        value=record.value or b"",
        headers={name: (text or b"").decode(errors="replace") for name, text in record.headers},
        timestamp=record.timestamp / 1000,
    )
