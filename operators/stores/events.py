"""The knobs of the event log: which one it is, and how it is kept. ``make.open_log`` opens it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from operators.base import Knobs
from operators.stores.kafka_config import KafkaConfig


class Events(Knobs):
    """The event log that the learning path reads."""

    kind: Literal["sqlite", "kafka"] = "sqlite"
    """Where events are kept: in a file of this machine, or on a Kafka cluster."""
    path: str = "{data_dir}/events.sqlite"
    """SQLite file of the log."""
    kafka: KafkaConfig = KafkaConfig()
    """The Kafka cluster, with ``kind: kafka``."""
    partitions: int = Field(4, ge=1, le=256)
    """Partitions of every topic. Fixed once the topics exist: keys would change their partition."""
    retention_days: float = Field(30.0, gt=0)
    """Days after which events are removed. Of a file the judge job does it, once an hour; Kafka is told so when the
    topics are created (``ruvllm topics create`` tells it again)."""
    queue: int = Field(1000, ge=1)
    """Events that may wait in memory to be written."""
    spool_path: str = "{data_dir}/spool.sqlite"
    """SQLite file in which the service's events wait while Kafka is away."""
    spool_bytes: int = Field(256 * 1024 * 1024, ge=1024 * 1024)
    """Largest size of that file in bytes."""
