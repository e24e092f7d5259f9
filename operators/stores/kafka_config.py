"""How to reach a Kafka cluster: the knobs of ``KafkaLog``, and what they are called in kafka-python."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, SecretStr, model_validator

from operators.base import Knobs


class KafkaConfig(Knobs):
    """How to reach the Kafka cluster."""

    bootstrap_servers: tuple[str, ...] = ("127.0.0.1:9092",)
    """``host:port`` of some of the cluster's brokers; the others are learned from them."""
    prefix: str = Field("", pattern=r"^[a-zA-Z0-9._-]*$")
    """Stands before the name of every topic and group, e.g. ``staging.``; other topics are never touched."""
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """Whether the connection is encrypted (``SSL``), and whether we sign in (``SASL``)."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    """How we sign in, with ``SASL``."""
    user: str = ""
    """Who we are, with ``SASL``."""
    password: SecretStr = SecretStr("")
    """The password, with ``SASL``."""
    ca_file: str = ""
    """PEM file of the authority that signed the brokers' certificates; empty: the system's."""
    replication_factor: int | None = Field(None, ge=1)
    """Brokers that keep each new topic; null leaves it to the cluster. From 2 on, all but one of them must have an
    event before it counts as written."""
    request_timeout_s: float = Field(5.0, gt=0)
    """Longest wait in seconds for a connection or an answer; then it is tried again later."""
    delivery_timeout_s: float = Field(10.0, gt=0)
    """Longest wait in seconds for appended events to be durable, retries included. Above ``request_timeout_s``."""
    batch_bytes: int = Field(500_000, ge=0)
    """Most bytes of one partition that travel together; 0 sends every event by itself."""
    max_event_bytes: int = Field(1_000_000, ge=1000)
    """Largest event in bytes; a larger one is refused. Brokers have a limit of their own, ``message.max.bytes``."""

    @model_validator(mode="after")
    def _complete(self) -> KafkaConfig:
        if not self.bootstrap_servers:
            raise ValueError("bootstrap_servers is empty; name at least one broker as host:port")
        if self.security_protocol.startswith("SASL") and not (self.user and self.password.get_secret_value()):
            raise ValueError(f"security_protocol is {self.security_protocol} without user or password; set both")
        if self.delivery_timeout_s <= self.request_timeout_s:
            raise ValueError("delivery_timeout_s is not above request_timeout_s; one request must fit into it")
        return self

    def options(self, kind: str) -> dict[str, Any]:
        """What kafka-python's client of this ``kind`` is given: admin, consumer or producer.

        The producer waits for all replicas and repeats nothing by its own retries. The consumer has no group, commits
        nothing by itself, and sees nothing of aborted transactions.
        """
        request_ms, delivery_ms = int(self.request_timeout_s * 1000), int(self.delivery_timeout_s * 1000)
        options: dict[str, Any] = {
            "bootstrap_servers": list(self.bootstrap_servers),
            "client_id": "ruvllm",
            "security_protocol": self.security_protocol,
            "request_timeout_ms": request_ms,
            "bootstrap_timeout_ms": request_ms,
            "reconnect_backoff_max_ms": 1000,  # a broker that is back is found within a second
        }
        if self.ca_file:
            options["ssl_cafile"] = self.ca_file
        if self.security_protocol.startswith("SASL"):
            options["sasl_mechanism"] = self.sasl_mechanism
            options["sasl_plain_username"] = self.user
            options["sasl_plain_password"] = self.password.get_secret_value()
        if kind == "producer":
            options |= {
                "acks": "all",
                "enable_idempotence": True,
                "allow_auto_create_topics": False,
                "delivery_timeout_ms": delivery_ms,
                "max_block_ms": request_ms,
                "max_in_flight_requests_per_connection": 1,  # a lost batch has none of its partition behind it
                # A call's events wait for ``flush``, so those of one partition go in one batch, or fail in one.
                "linger_ms": min(1000, delivery_ms - request_ms),
                "batch_size": self.batch_bytes,
                "max_request_size": max(self.batch_bytes, self.max_event_bytes) + 100_000,
            }
        if kind == "consumer":
            options |= {
                "group_id": None,
                "enable_auto_commit": False,
                "auto_offset_reset": "none",
                "allow_auto_create_topics": False,
                "isolation_level": "read_committed",
                "fetch_max_wait_ms": min(500, request_ms // 2),
            }
        return options

    def topic_settings(self, *, compacted: bool, retention_s: float | None) -> dict[str, str]:
        """Kafka's settings of a topic: of a compacted one the last event of each key stays for good, of the others all
        for ``retention_s``, or as long as the cluster says."""
        copies = self.replication_factor or 1
        settings = {"min.insync.replicas": str(copies - 1)} if copies > 1 else {}
        if compacted:
            settings["cleanup.policy"] = "compact"
        elif retention_s is not None:
            settings |= {"cleanup.policy": "delete", "retention.ms": str(int(retention_s * 1000))}
        return settings
