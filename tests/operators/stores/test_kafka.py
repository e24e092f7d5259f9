"""What only the Kafka log promises; that it is an event log is in ``test_event_log.py``, with the same kit as SQLite.

The broker is real, but it is not Kafka: ``tests/broker.py`` says what passing here does not show.
"""

from __future__ import annotations

import asyncio
import inspect
import pickle
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from jobs.feedback import feedback_consumer
from operators.errors import Reject, Retry, Stop
from operators.records import Feedback, Verdict, decode, encode
from operators.stores.kafka import KafkaLog
from operators.stores.kafka_config import KafkaConfig
from operators.stores.kafka_errors import MISTAKES, PASSING, TOO_LARGE, translated
from operators.stores.ports import EventLog
from operators.stores.topics import (
    FEEDBACK,
    INTERACTIONS,
    JUDGEMENTS,
    ROUTER_UPDATES,
    create_topics,
    dlq,
    event_headers,
    partition_of,
    session_key,
)
from tests.broker import Broker, broker, config, forgotten_sockets, mortal_broker
from tests.service import free_port
from tests.writeback_rig import say

SHORT = {"request_timeout_s": 0.4, "delivery_timeout_s": 0.8}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with broker() as at:
        yield at


@pytest.fixture(scope="module")
def mortal() -> Iterator[Broker]:
    with mortal_broker() as own:
        yield own


@pytest.fixture
def opened() -> Iterator[Any]:
    made: list[KafkaLog] = []

    def open_(settings: KafkaConfig, **rest: Any) -> KafkaLog:
        made.append(KafkaLog(settings, **rest))
        made[-1].open()
        return made[-1]

    yield open_
    for log in made:
        log.close()


@pytest.fixture
def failing() -> Iterator[None]:
    with forgotten_sockets():
        yield


@pytest.fixture
def faulty(failing: None, opened: Any) -> Any:
    """``opened``, for tests in which connections fail."""
    return opened


def raw_events(address: str, topic: str, partitions: int) -> list[Any]:
    """What kafka-python itself finds in ``topic``."""
    from kafka import KafkaConsumer, TopicPartition

    found: list[Any] = []
    consumer = KafkaConsumer(bootstrap_servers=address, group_id=None, auto_offset_reset="earliest")
    try:
        at = [TopicPartition(topic, p) for p in range(partitions)]
        consumer.assign(at)
        consumer.seek_to_beginning(*at)
        while batch := consumer.poll(200, max_records=9999):
            found += [record for records in batch.values() for record in records]
    finally:
        consumer.close()
    return found


# ------------------------------------------------------------------------------------------------------ errors


def kafka_errors() -> list[type[Exception]]:
    from kafka import errors

    classes = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, errors.KafkaError)]
    return sorted(set(classes), key=lambda c: c.__name__)


def raised(cls: type[Exception]) -> Exception:
    return cls({}, "x") if cls.__name__ == "LogTruncationError" else cls("x")


def test_every_error_of_the_vendor_has_its_place() -> None:
    """A release with other errors fails here, until somebody has looked at them."""
    classes = kafka_errors()
    assert len(classes) == 156, "kafka-python has other errors than those that were sorted"
    names = {c.__name__ for c in classes}
    assert names >= MISTAKES | TOO_LARGE
    assert PASSING - names == {"ConnectionError"}, "Python's own"
    for cls in classes:
        ours = translated("kafka", raised(cls))
        assert isinstance(pickle.loads(pickle.dumps(ours)), type(ours))
        if cls.__name__ in MISTAKES | TOO_LARGE:
            assert isinstance(ours, Reject), cls
        elif getattr(cls, "retriable", False) or {base.__name__ for base in cls.__mro__} & PASSING:
            assert isinstance(ours, Retry), cls
            assert 0.5 <= ours.retry_after_s <= 1.5
        else:
            assert isinstance(ours, Stop), cls


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("KafkaTimeoutError", Retry),
        ("KafkaConnectionError", Retry),
        ("NotEnoughReplicasError", Retry),
        ("OutOfOrderSequenceNumberError", Retry),
        ("UnknownTopicOrPartitionError", Retry),
        ("MessageSizeTooLargeError", Reject),
        ("InvalidTopicError", Reject),
        ("TopicAuthorizationFailedError", Stop),
        ("SaslAuthenticationFailedError", Stop),
        ("UnsupportedVersionError", Stop),
        ("KafkaConfigurationError", Stop),
    ],
)
def test_known_errors(name: str, kind: type[Exception]) -> None:
    (cls,) = (c for c in kafka_errors() if c.__name__ == name)
    assert type(translated("kafka", raised(cls))) is kind


def test_callers_are_told_to_come_back_at_different_times() -> None:
    from kafka.errors import KafkaTimeoutError

    errors = [translated("kafka", KafkaTimeoutError("x")) for _ in range(20)]
    assert len({e.retry_after_s for e in errors if isinstance(e, Retry)}) > 10


# ------------------------------------------------------------------------------------------------------ writing


def test_the_producer_waits_for_all_replicas_and_repeats_nothing(address: str, opened: Any) -> None:
    log: EventLog = opened(config(address))
    log.create_topic("t", 1)
    log.append("t", "k", b"")
    made = log._clients["producer"].config  # type: ignore[attr-defined]
    assert (made["acks"], made["enable_idempotence"], made["retries"]) == (-1, True, float("inf"))
    assert log._clients["producer"]._transaction_manager is not None  # type: ignore[attr-defined]


def test_events_lie_in_the_partition_of_their_key_as_cloud_events(address: str, opened: Any) -> None:
    settings = config(address)
    log = opened(settings, clock=lambda: 1_234.5678)
    log.create_topic("t", 3)
    headers = event_headers("id-1", "t", "/x", 0.5, "00-ab")
    for i in range(12):
        log.append("t", f"acme|s{i}", b"%d" % i, headers)
    records = raw_events(address, f"{settings.prefix}t", 3)
    assert len(records) == 12
    for record in records:
        assert record.partition == partition_of(record.key.decode(), 3)
        assert dict(record.headers) == {name: text.encode() for name, text in headers.items()}
        assert record.timestamp == 1_234_567


def test_one_calls_events_travel_together_and_in_order(address: str, opened: Any) -> None:
    settings = config(address, batch_bytes=500_000)
    log = opened(settings)
    log.create_topic("t", 2)
    items = [(f"k{i % 5}", b"%d" % i, {}) for i in range(300)]
    places = log.append_many("t", items)
    for partition in range(2):
        mine = [offset for p, offset in places if p == partition]
        assert mine == list(range(len(mine)))
    records = raw_events(address, f"{settings.prefix}t", 2)
    assert {(r.partition, r.offset): r.value for r in records} == {
        place: value for place, (_, value, _) in zip(places, items, strict=True)
    }


def test_too_large_an_event_is_refused_and_nothing_of_its_call_is_written(address: str, opened: Any) -> None:
    log = opened(config(address, max_event_bytes=1000))
    log.create_topic("t", 1)
    with pytest.raises(Reject, match="1008 bytes") as caught:
        log.append_many("t", [("k", b"good", {}), ("k", b"x" * 1000, {"a": "secret"})])
    assert caught.value.status == 413
    assert "secret" not in str(caught.value)
    assert log.end("t", 0) == 0


def test_what_other_producers_leave_out_is_empty(address: str, opened: Any) -> None:
    from kafka import KafkaProducer

    settings = config(address)
    log = opened(settings)
    log.create_topic("t", 1)
    producer = KafkaProducer(bootstrap_servers=address, allow_auto_create_topics=False)
    try:
        producer.send(f"{settings.prefix}t", key=b"k", value=None, partition=0, headers=[("h", b"\xff")]).get(10)
        producer.send(f"{settings.prefix}t", key=None, value=b"v", partition=0).get(10)
    finally:
        producer.close()
    tombstone, keyless = log.read("t", 0, 0, 9)
    assert (tombstone.key, tombstone.value, dict(tombstone.headers)) == ("k", b"", {"h": "\ufffd"})
    assert (keyless.key, keyless.value) == ("", b"v")


def test_prefixes_keep_systems_apart(address: str, opened: Any) -> None:
    one, two = opened(config(address)), opened(config(address))
    one.create_topic("t", 1)
    one.append("t", "k", b"")
    one.commit("g", "t", 0, 1)
    assert two.topics() == {}
    two.create_topic("t", 2)
    assert (two.end("t", 0), two.committed("g", "t", 0)) == (0, 0)
    assert one.topics() == {"t": 1}


def test_topics_get_the_retention_and_the_compaction_of_the_design(address: str, opened: Any) -> None:
    from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient

    settings = config(address)
    opened(settings, retention_s=3600.0, prepare=lambda log: create_topics(log, 2)).topics()
    admin = KafkaAdminClient(bootstrap_servers=address)

    def known(topic: str) -> dict[str, str]:
        resource = ConfigResource(ConfigResourceType.TOPIC, settings.prefix + topic)
        found = admin.describe_configs([resource], config_filter="all")["topic"][settings.prefix + topic]
        wanted = ("cleanup.policy", "retention.ms")
        return {name: found[name]["value"] for name in wanted if name in found}

    try:
        assert known(INTERACTIONS) == {"cleanup.policy": "delete", "retention.ms": "3600000"}
        assert known(ROUTER_UPDATES)["cleanup.policy"] == "compact"
        opened(settings, retention_s=60.0).apply_settings(INTERACTIONS)
        assert known(INTERACTIONS)["retention.ms"] == "60000"
    finally:
        admin.close()


def test_copies_decide_how_many_must_have_an_event() -> None:
    three = KafkaConfig(replication_factor=3)
    assert three.topic_settings(compacted=True, retention_s=None) == {
        "min.insync.replicas": "2",
        "cleanup.policy": "compact",
    }
    assert KafkaConfig().topic_settings(compacted=False, retention_s=None) == {}


# ------------------------------------------------------------------------------------------------------ faults


def test_a_broker_that_is_not_there_is_retry_and_leaves_nothing_behind(faulty: Any) -> None:
    log = faulty(config(f"127.0.0.1:{free_port()}", **SHORT))
    before = threading.active_count()
    for call in (log.topics, lambda: log.append("t", "k", b""), lambda: log.read("t", 0, 0, 1)):
        with pytest.raises(Retry):
            call()
    assert threading.active_count() == before, "kafka-python forgets the thread of a client that can't connect"


def test_what_was_acknowledged_before_a_brokers_death_is_there_after_it(mortal: Broker, faulty: Any) -> None:
    log = faulty(config(mortal.address, **SHORT))
    log.create_topic("t", 2)
    places = [log.append("t", f"k{i}", b"%d" % i) for i in range(10)]
    log.commit("g", "t", 0, 3)
    assert len(log.read("t", 0, 0, 99)) == log.end("t", 0)
    mortal.kill()
    with pytest.raises(Retry):
        log.append("t", "k0", b"lost")
    with pytest.raises(Retry):
        log.read("t", 0, 0, 99)
    mortal.start()
    assert log.append("t", "k0", b"10")[0] == places[0][0]
    stored = {(e.partition, e.offset): e.value for p in range(2) for e in log.read("t", p, 0, 99)}
    assert {place: stored[place] for place in places} == {place: b"%d" % i for i, place in enumerate(places)}
    assert len(stored) == 11, "the one that was refused was not written"
    assert log.committed("g", "t", 0) == 3


def test_a_broker_that_hangs_is_retry_and_repeats_at_most(mortal: Broker, faulty: Any) -> None:
    log = faulty(config(mortal.address, **SHORT))
    log.create_topic("t", 1)
    log.append("t", "k", b"before", {"ce_id": "1"})
    mortal.freeze()
    try:
        with pytest.raises(Retry):
            log.append("t", "k", b"during", {"ce_id": "2"})
    finally:
        mortal.thaw()
    log.append("t", "k", b"during", {"ce_id": "2"})
    log.append("t", "k", b"after", {"ce_id": "3"})
    ids = [e.headers["ce_id"] for e in log.read("t", 0, 0, 99)]
    assert list(dict.fromkeys(ids)) == ["1", "2", "3"]
    assert ids.count("1") == ids.count("3") == 1


def test_a_topic_that_another_cluster_does_not_have_is_noticed(mortal: Broker, faulty: Any) -> None:
    log = faulty(config(mortal.address, **SHORT))
    log.create_topic("t", 1)
    log.append("t", "k", b"")
    mortal.kill()
    kept, mortal._disk.objects = mortal._disk.objects, {}  # type: ignore[union-attr]
    mortal.start()
    try:
        with pytest.raises(Retry):  # the old connection
            log.read("t", 0, 0, 1)
        with pytest.raises(Reject, match="unknown topic"):
            log.read("t", 0, 0, 1)
    finally:
        mortal.kill()
        mortal._disk.objects = kept  # type: ignore[union-attr]
        mortal.start()


def test_who_signs_in_is_told_to_every_client_and_to_nobody_else() -> None:
    settings = config("a:1", security_protocol="SASL_SSL", user="ruv", password="open sesame")
    for kind in ("admin", "consumer", "producer"):
        options = settings.options(kind)
        named = [options[f"sasl_{name}"] for name in ("mechanism", "plain_username", "plain_password")]
        assert named == ["SCRAM-SHA-512", "ruv", "open sesame"]
    assert "sesame" not in f"{settings!r} {settings.model_dump()}"
    assert not any("sasl" in name for name in config("a:1").options("admin"))


def test_settings_that_can_not_work_are_refused(faulty: Any) -> None:
    for wrong, why in (
        ({"security_protocol": "SASL_SSL", "user": "u"}, "without user or password"),
        ({"request_timeout_s": 9.0, "delivery_timeout_s": 9.0}, "must fit"),
        ({"bootstrap_servers": ()}, "at least one broker"),
        ({"prefix": "a b"}, "pattern"),
    ):
        with pytest.raises(ValueError, match=why):
            KafkaConfig(**wrong)  # type: ignore[arg-type]
    with pytest.raises(Stop, match="no file"):
        faulty(config("127.0.0.1:1", security_protocol="SSL", ca_file="/nowhere.pem"))


# ------------------------------------------------------------------------------------------------------ a job on it


def test_a_job_reads_writes_puts_aside_and_commits(address: str, opened: Any) -> None:
    log = opened(config(address), prepare=lambda made: create_topics(made, 2))
    say(log, "q", "a", 0.1, name="i7")
    key = session_key("acme", "s")
    common = {"tenant": "acme", "session": "s", "created_at": 1.0}
    for i, name in enumerate(("i7", "nobody's")):
        given = Feedback(event_id=f"f{i}", interaction_id=name, score=1.0, **common)  # type: ignore[arg-type]
        log.append(FEEDBACK, key, encode(given))
    log.append(FEEDBACK, key, b"no JSON", {"ce_id": "bad"})
    at = partition_of(key, 2)

    async def run() -> None:
        stop = asyncio.Event()
        consumer = feedback_consumer(log, idle_s=0.01)
        running = asyncio.create_task(consumer.run(stop))
        async with asyncio.timeout(20):
            while await asyncio.to_thread(log.committed, "feedback", FEEDBACK, at) < 3:
                await asyncio.sleep(0.01)
        stop.set()
        await running
        assert (consumer.counts.events, consumer.counts.dead, consumer.lag()) == (3, 2, 0)

    asyncio.run(run())
    assert log.committed("feedback", FEEDBACK, 1 - at) == 0
    verdicts = [decode(Verdict, e.value) for e in log.read(JUDGEMENTS, at, 0, 99)]
    assert [(v.interaction_id, v.score) for v in verdicts if v.by == "user"] == [("i7", 1.0)]
    unknown, broken = log.read(dlq(FEEDBACK), 0, 0, 99)
    assert "no interaction" in unknown.headers["error.message"]
    assert (broken.value, broken.headers["src.offset"], broken.headers["error.class"]) == (b"no JSON", "2", "Skip")
