"""The topics of RuvLLM: their names, partitions and keys (design §8), dead letters, and the headers of an event."""

from __future__ import annotations

import datetime
import zlib

from operators.stores.ports import EventLog

REQUESTS = "ruvllm.requests.v1"
RESPONSES = "ruvllm.responses.v1"
INTERACTIONS = "ruvllm.interactions.v1"
FEEDBACK = "ruvllm.feedback.v1"
JUDGEMENTS = "ruvllm.judgements.v1"
WRITEBACKS = "ruvllm.writebacks.v1"
ROUTER_UPDATES = "ruvllm.router-updates.v1"

TOPICS: dict[str, int] = {
    REQUESTS: 4,
    RESPONSES: 4,
    INTERACTIONS: 4,
    FEEDBACK: 4,
    JUDGEMENTS: 4,
    WRITEBACKS: 4,
    ROUTER_UPDATES: 1,
}
"""Topic → usual number of partitions. Another number moves keys to other partitions: that needs a new topic version."""

READERS: dict[str, tuple[str, ...]] = {
    REQUESTS: ("stream",),
    INTERACTIONS: ("judge",),
    FEEDBACK: ("feedback",),
    JUDGEMENTS: ("writeback", "learn"),
}
"""Topic → groups that keep their offsets in the log."""


def dlq(topic: str) -> str:
    """The topic that takes the dead letters of ``topic``."""
    return f"{topic}.dlq"


def create_topics(log: EventLog, partitions: int = 4) -> None:
    """Create every topic and its dead-letter topic.

    ``partitions`` is for the topics keyed by session. The compacted one and the dead letters keep one: they are read as
    a whole. Raises ``Reject`` if the topics exist with other numbers.
    """
    for topic, usual in TOPICS.items():
        log.create_topic(topic, partitions if usual > 1 else 1)
        log.create_topic(dlq(topic), 1)


def session_key(tenant: str, session: str) -> str:
    """The key that keeps the events of one session in order."""
    return f"{tenant}|{session}"


def partition_of(key: str, partitions: int) -> int:
    """Stable hash of ``key``: CRC-32 of its UTF-8 bytes modulo ``partitions`` (librdkafka's consistent partitioner)."""
    return zlib.crc32(key.encode()) % partitions


def event_headers(event_id: str, topic: str, source: str, time_s: float, traceparent: str = "") -> dict[str, str]:
    """Headers of an event: CloudEvents 1.0 attributes in their Kafka binding, and W3C ``traceparent`` if there is one.

    ``topic`` is the event's type, ``source`` a URI reference such as ``/ruvllm/judge``, ``time_s`` Unix seconds.
    """
    headers = {
        "ce_id": event_id,
        "ce_type": topic,
        "ce_source": source,
        "ce_specversion": "1.0",
        "ce_time": datetime.datetime.fromtimestamp(time_s, datetime.UTC).isoformat(),
        "content-type": "application/json",
    }
    return headers | {"traceparent": traceparent} if traceparent else headers
