"""The event log on a Kafka cluster; the only file that knows ``kafka`` (kafka-python).

What holds here, and where it differs from the embedded log:

- An append returns when all in-sync replicas have it (``acks=all``). The producer is idempotent: its own retries write
  nothing twice. A caller's repeat after ``Retry`` may, so readers drop repeats by event id.
- ``append_many`` is no transaction. What can't be sent at all is refused before anything is written; after ``Retry``
  some of it may be written. Events of one partition keep their order.
- We choose the partition (``partition_of``) and readers name theirs: nobody joins a group, so nothing rebalances.
  Offsets of groups are kept through OffsetCommit, read before they are written: one reader a group and partition. The
  cluster forgets them after ``offsets.retention.minutes`` (a week, unless set): set that longer than events are kept,
  or a reader that was idle so long begins again.
- The cluster removes old events by itself, as ``create_topic`` told it (``retention.ms``); ``retain`` does it at once.
- Compaction and other programs' transactions leave gaps between offsets; aborted events are not seen.
"""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from operators.errors import Reject, Retry, RuvError, Stop
from operators.stores.kafka_config import KafkaConfig
from operators.stores.kafka_errors import translated
from operators.stores.kafka_events import to_event, to_record
from operators.stores.ports import Event, EventLog
from operators.stores.topics import ROUTER_UPDATES


class KafkaLog:
    """``EventLog`` on Kafka; any thread may call it. Open it after ``fork``, never before.

    It connects at the first call, not in ``open``. While the cluster is away every call raises ``Retry``, appends after
    at most ``delivery_timeout_s``, the others after ``request_timeout_s``; a later call finds it again by itself.

    Args:
        retention_s: how long the topics that it creates keep events; ``None`` leaves it to the cluster.
        prepare: called after connecting, before the first call goes on, e.g. to create the topics.
        clock: gives Unix seconds, for the events' timestamps (to the millisecond) and for ``retain`` by age.
    """

    Config = KafkaConfig

    def __init__(
        self,
        config: KafkaConfig | None = None,
        *,
        retention_s: float | None = None,
        prepare: Callable[[EventLog], None] = lambda log: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", "(read|open)_text is deprecated", DeprecationWarning
            )  # its own, at import
            import kafka

        self._kafka: Any = kafka
        self.config = config or KafkaConfig()
        self._who = f"kafka {','.join(self.config.bootstrap_servers)}"
        self._retention_s = retention_s
        self._prepare = prepare
        self._clock = clock
        self._partitions: dict[str, int] = {}
        self._opened = self._prepared = False
        self._clients: dict[str, Any] = {}
        # kafka-python's consumer is not thread-safe. Appends have a lock of their own: they don't wait for readers.
        self._lock = threading.RLock()
        self._write_lock = threading.RLock()

    def open(self) -> None:
        """Ready to connect; ``Stop`` for a ``ca_file`` that isn't there. Opening an open log changes nothing."""
        if self.config.ca_file and not Path(self.config.ca_file).is_file():
            raise Stop(self._who, f"no file {self.config.ca_file}", "set events.kafka.ca_file")
        self._opened = True

    def create_topic(self, topic: str, partitions: int) -> None:
        """Create ``topic`` with its settings; ``Reject`` if it exists with other partitions, or below 1."""
        if partitions < 1:
            raise Reject(self._who, f"topic {topic} with {partitions} partitions", "ask for at least 1")
        with self._admin() as admin:
            if topic not in self._partitions and topic not in self.topics():
                copies = self.config.replication_factor or -1
                wanted = {"num_partitions": partitions, "replication_factor": copies, "configs": self._settings(topic)}
                with suppress(self._kafka.errors.TopicAlreadyExistsError):  # another process was first
                    admin.create_topics({self._name(topic): wanted}, wait_for_metadata=True)
            found = self._count(topic)
        if found != partitions:
            got = f"topic {topic} exists with {found} partitions, asked for {partitions}"
            raise Reject(self._who, got, "use its number, or a new topic version: keys would change partitions")

    def apply_settings(self, topic: str) -> None:
        """Give an existing ``topic`` the settings it would get today, e.g. after the retention was changed."""
        self._count(topic)
        if settings := self._settings(topic):
            with self._admin() as admin:
                topics = self._kafka.admin.ConfigResourceType.TOPIC
                admin.alter_configs([self._kafka.admin.ConfigResource(topics, self._name(topic), settings)])

    def topics(self) -> dict[str, int]:
        """Topic → number of partitions."""
        prefix = self.config.prefix
        with self._admin() as admin:
            found = [t for t in admin.describe_topics() if t["name"].startswith(prefix) and not t["is_internal"]]
            self._partitions = {t["name"][len(prefix) :]: len(t["partitions"]) for t in found}
            return dict(sorted(self._partitions.items()))

    def append(self, topic: str, key: str, value: bytes, headers: Mapping[str, str] | None = None) -> tuple[int, int]:
        """Durable when it returns; gives (partition, offset). An unknown topic raises ``Reject``."""
        return self.append_many(topic, [(key, value, headers or {})])[0]

    def append_many(self, topic: str, items: Sequence[tuple[str, bytes, Mapping[str, str]]]) -> list[tuple[int, int]]:
        """``append`` for many: all durable when it returns; when it raises ``Retry`` some may be (top of this file)."""
        if not items:
            return []
        partitions, now_ms = self._count(topic), int(self._clock() * 1000)
        ready = [to_record(*item, partitions) for item in items]  # all of them, before the first is sent
        if (largest := max(size for _, size in ready)) > self.config.max_event_bytes:
            got = f"an event of {largest} bytes for {topic}"
            raise Reject(self._who, got, f"send at most {self.config.max_event_bytes}", status=413)
        with self._write_lock, self._errors():
            producer = self._client("producer")
            try:
                sent = [producer.send(self._name(topic), timestamp_ms=now_ms, **event) for event, _ in ready]
                producer.flush(2 * self.config.delivery_timeout_s)
                done = [future.get(self.config.request_timeout_s) for future in sent]
            except BaseException:
                self._drop("producer")  # what it still holds must not arrive after the caller's next attempt
                raise
        return [(metadata.partition, metadata.offset) for metadata in done]

    def read(self, topic: str, partition: int, offset: int, limit: int) -> list[Event]:
        """Events from ``offset`` on, in order, at most ``limit``; empty at the end. Removed ones are skipped over.

        A key or value that its producer left out is empty.
        """
        at, events = self._at(topic, partition), list[Event]()
        with self._admin():
            end = self.end(topic, partition) if limit > 0 else 0
            if offset >= end:  # asked first: a fetch at the end waits for more to come
                return []
            consumer = self._client("consumer")
            if consumer.assignment() != {at}:
                consumer.assign([at])
                consumer.seek(at, max(offset, 0))
            elif consumer.position(at) != offset:  # else what it fetched ahead is used
                consumer.seek(at, max(offset, 0))
            deadline = time.monotonic() + self.config.request_timeout_s
            while len(events) < limit and consumer.position(at) < end:
                try:
                    found = consumer.poll(timeout_ms=100, max_records=limit - len(events)).get(at, [])
                except self._kafka.errors.OffsetOutOfRangeError:  # retention was faster
                    consumer.seek_to_beginning(at)
                    continue
                events += [to_event(topic, record) for record in found]
                if found:
                    deadline = time.monotonic() + self.config.request_timeout_s
                elif time.monotonic() > deadline:
                    got = f"no events of {topic}/{partition} from {consumer.position(at)} on, though it ends at {end}"
                    raise self._kafka.errors.KafkaTimeoutError(got)
        return events

    def end(self, topic: str, partition: int) -> int:
        """The offset the next event will get."""
        return self._offsets(topic, [partition], self._kafka.OffsetSpec.LATEST)[partition]

    def commit(self, group: str, topic: str, partition: int, offset: int) -> None:
        """Record that ``group`` has dealt with everything below ``offset``; never moves back."""
        at = self._at(topic, partition)
        with self._admin() as admin:
            if offset > self.committed(group, topic, partition):
                done = admin.alter_group_offsets(self._name(group), {at: self._kafka.OffsetAndMetadata(offset, "", -1)})
                if done[at] is not self._kafka.errors.NoError:
                    raise done[at](f"offset {offset} of {topic}/{partition} for {group}")

    def committed(self, group: str, topic: str, partition: int) -> int:
        """The offset ``group`` goes on from; 0 if it never committed."""
        at, name = self._at(topic, partition), self._name(group)
        with self._admin() as admin:
            return max(0, int(admin.list_group_offsets({name: [at]})[name][at].offset))

    def retain(self, topic: str, *, max_age_s: float | None = None, max_events: int | None = None) -> int:
        """Remove the oldest events beyond either limit in every partition (DeleteRecords); returns how many offsets."""
        partitions = range(self._count(topic))
        with self._admin() as admin:
            begins = self._offsets(topic, partitions, self._kafka.OffsetSpec.EARLIEST)
            ends = self._offsets(topic, partitions, self._kafka.OffsetSpec.LATEST)
            keep_from = dict(begins)
            if max_events is not None:
                keep_from = {p: max(keep_from[p], ends[p] - max_events) for p in partitions}
            if max_age_s is not None:
                young = self._offsets(topic, partitions, int((self._clock() - max_age_s) * 1000))
                keep_from = {p: max(keep_from[p], young[p] if young[p] >= 0 else ends[p]) for p in partitions}
            gone = {p: keep_from[p] - begins[p] for p in partitions if keep_from[p] > begins[p]}
            if gone:
                admin.delete_records({self._at(topic, p): keep_from[p] for p in gone})
        return sum(gone.values())

    def close(self) -> None:
        """Release the connections; safe to call twice."""
        with self._write_lock, self._lock:
            self._opened = False
            for kind in tuple(self._clients):
                self._drop(kind)

    # ------------------------------------------------------------------------------------------------ inside

    def _name(self, ours: str) -> str:
        return self.config.prefix + ours

    def _settings(self, topic: str) -> dict[str, str]:
        return self.config.topic_settings(compacted=topic == ROUTER_UPDATES, retention_s=self._retention_s)

    def _offsets(self, topic: str, partitions: Sequence[int], spec: int) -> dict[int, int]:
        """Offset of each partition: the first, the one after the last, or the first of a time in ms (-1: none is)."""
        asked = {self._at(topic, p): spec for p in partitions}
        with self._admin() as admin:
            found = admin.list_partition_offsets(asked, isolation_level=self._kafka.IsolationLevel.READ_COMMITTED)
            return {at.partition: int(place.offset) for at, place in found.items()}

    def _count(self, topic: str) -> int:
        """Partitions of ``topic``; they never change, so they are read once."""
        found = self._partitions.get(topic) or self.topics().get(topic)
        if found is None:
            raise Reject(self._who, f"unknown topic {topic}", "create it first", status=404)
        return found

    def _at(self, topic: str, partition: int) -> Any:
        if not 0 <= partition < self._count(topic):
            got = f"partition {partition} of {topic}"
            raise Reject(self._who, got, f"it has the partitions 0 to {self._count(topic) - 1}")
        return self._kafka.TopicPartition(self._name(topic), partition)

    @contextmanager
    def _admin(self) -> Iterator[Any]:
        with self._lock, self._errors():
            try:
                admin = self._client("admin")
                if not self._prepared:
                    self._prepared = True  # first: what it calls comes here again
                    try:
                        self._prepare(self)
                    except BaseException:
                        self._prepared = False
                        raise
                yield admin
            except RuvError:
                raise
            except Exception:  # whatever state they are in, the next call begins with new ones
                self._drop("consumer")
                self._drop("admin")
                raise

    def _client(self, kind: str) -> Any:
        """The connected admin, consumer or producer."""
        if not self._opened:
            raise Stop(self._who, "used while closed", "call open() first")
        if kind in self._clients:
            return self._clients[kind]
        make = getattr(self._kafka, {"admin": "KafkaAdminClient"}.get(kind, f"Kafka{kind.title()}"))
        nets: list[Any] = []

        def net(**options: Any) -> Any:
            nets.append(self._kafka.net.compat.KafkaNetClient(**options))
            return nets[0]

        try:
            self._clients[kind] = make(kafka_client=net, **self.config.options(kind))
        except BaseException:
            for one in nets:  # it does not end its thread when it can't connect
                one.close()
            raise
        return self._clients[kind]

    def _drop(self, kind: str) -> None:
        client = self._clients.pop(kind, None)
        if client is None:
            return
        if kind == "producer":  # close() alone can leave its thread at work, and late events would break the order
            client._sender.force_close()
            client._sender.join(self.config.request_timeout_s + 1)
        with suppress(Exception):  # it may be broken: that is why it goes
            client.close(**{"producer": {"timeout": 0}, "consumer": {"timeout_ms": 0}}.get(kind, {}))

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """The one door where Kafka's errors become ours."""
        try:
            yield
        except (self._kafka.errors.KafkaError, OSError) as e:
            ours = translated(self._who, e)
            if isinstance(ours, Retry):
                self._partitions = {}  # a topic may be gone, or another cluster may have come
            raise ours from e
