"""The broker hangs, is gone, comes back, and the disk is full meanwhile: a real service goes on answering, and all
that it answered is in the log afterwards. ``RUVLLM_TEST_FAULTS=all`` keeps the broker away for 30 s each time.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from operators.stores.kafka import KafkaLog
from operators.stores.topics import INTERACTIONS
from tests.broker import Broker, config, forgotten_sockets, mortal_broker
from tests.service import Running

AWAY_S = 30.0 if os.environ.get("RUVLLM_TEST_FAULTS") == "all" else 0.0
AT_ONCE = 4
SPOOL_BYTES = 1 << 20
SETTINGS = (
    "binding=inproc",
    "http.port=0",
    "events.kind=kafka",
    "events.kafka.batch_bytes=0",  # see tests/broker.py
    "events.kafka.request_timeout_s=2",
    "events.kafka.delivery_timeout_s=4",
    f"events.spool_bytes={SPOOL_BYTES}",
    # Another model and the jobs would only take time.
    *("tiers.270M.model.package=", "tiers.270M.model.file=", "tiers.270M.model.path=/nowhere"),
    *(f"{job}.enabled=false" for job in ("judge_job", "writeback", "maintain")),
)


class Asked:
    """The service, its broker, and every interaction that was answered."""

    def __init__(self, service: Running, broker: Broker) -> None:
        self.service, self.broker = service, broker
        self.ids: list[str] = []

    def ask(self) -> None:
        """Some questions at once; every one of them is answered."""
        with ThreadPoolExecutor(AT_ONCE) as pool:
            answers = list(pool.map(lambda i: self.service.ask(f"What is {i}?", max_tokens=2), range(AT_ONCE)))
        self.ids += [answer["ruvllm"]["interaction_id"] for answer in answers]

    def ask_until(self, true: Callable[[], object]) -> None:
        """Go on asking until it is so, at least for ``AWAY_S``."""
        begin = time.monotonic()
        while not true() or time.monotonic() < begin + AWAY_S:
            assert time.monotonic() < begin + 60 + 10 * AWAY_S
            self.ask()

    def metrics(self) -> dict[str, int]:
        lines = self.service.http.get("/metrics").text.splitlines()
        rows = [line.removeprefix("ruvllm_").split() for line in lines if not line.startswith("#")]
        return {name: int(value) for name, value in rows}

    def wait_drained(self) -> None:
        self.service.until(
            lambda: (now := self.metrics())["spool_events"] == 0 and now["events_waiting"] == 0, "empty spool"
        )

    def arrived(self) -> list[str]:
        with contextlib.closing(KafkaLog(config(self.broker.address, prefix=""))) as log:
            log.open()
            events = [e for p in range(log.topics()[INTERACTIONS]) for e in log.read(INTERACTIONS, p, 0, 9999)]
        return [json.loads(event.value)["interaction_id"] for event in events]

    def check(self) -> None:
        """Each answer is there; none was lost; what is there twice (a call that broke off) has the same id."""
        arrived = self.arrived()
        assert set(arrived) == set(self.ids)
        assert self.metrics()["events_lost_total"] == 0


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    with forgotten_sockets(), mortal_broker() as broker, pytest.MonkeyPatch.context() as patch:
        patch.delenv("RUVLLM_TEST_FAULTS", raising=False)  # no setting of the service's
        servers = f"events.kafka.bootstrap_servers=[{broker.address}]"
        service = Running(tmp_path_factory.mktemp("away") / "data", servers, *SETTINGS).start()
        try:
            yield Asked(service, broker)
        finally:
            broker.thaw()
            assert service.stop() == 0


@contextlib.contextmanager
def full_disk(pid: int) -> Iterator[None]:
    """The process can't make a file longer, or write at any place of one: as a quota that is used up."""
    _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, most))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (most, most))


@pytest.mark.slow
def test_a_hanging_broker_a_full_disk_and_a_dead_broker_hold_up_no_answer_and_lose_none(asked: Asked) -> None:
    asked.ask()
    asked.service.until(lambda: set(asked.arrived()) == set(asked.ids), "event in the living broker")
    before = asked.metrics()

    asked.broker.freeze()
    asked.ask()
    # The thread that writes is stuck in its first attempt; answers come all the same, and their events wait behind it.
    asked.service.until(lambda: asked.metrics()["events_waiting"] >= 1, "event that waits")
    asked.ask()
    stuck = asked.metrics()
    assert stuck["events_waiting"] >= 2
    assert stuck["spool_spooled_total"] == before["spool_spooled_total"]
    asked.ask_until(lambda: asked.metrics()["spool_events"] > 0)
    assert 0 < asked.metrics()["spool_bytes"] <= SPOOL_BYTES

    with full_disk(asked.service.process.pid):
        asked.ask()
        asked.service.until(lambda: asked.metrics()["spool_refused_total"] > 0, "event without room")
        assert asked.metrics()["events_waiting"] > 0
        ready = asked.service.http.get("/readyz")
        assert (ready.status_code, ready.json()["checks"]["events"]) == (200, False)
        asked.ask()
    asked.service.until(lambda: asked.metrics()["events_waiting"] == 0, "room for what waits")
    assert asked.service.http.get("/readyz").json()["checks"]["events"] is True

    asked.broker.kill()  # what it had received and not looked at goes with it
    asked.broker.start()
    asked.wait_drained()
    asked.check()


@pytest.mark.slow
@pytest.mark.skipif(not AWAY_S, reason="RUVLLM_TEST_FAULTS=all has it")
def test_a_spool_that_is_full_keeps_answers_coming(asked: Asked) -> None:
    """Refused connections for 30 s and for as long as it takes to fill the spool; then the queue in memory holds."""
    asked.broker.kill()
    asked.ask_until(lambda: asked.metrics()["spool_refused_total"] > 0)
    assert asked.metrics()["spool_bytes"] <= SPOOL_BYTES
    asked.broker.start()
    asked.wait_drained()
    asked.check()
