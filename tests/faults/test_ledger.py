"""A ledger of events through spool, broker and consumer, while all three are killed: lost 0, applied twice 0.

``RUVLLM_TEST_FAULTS=all`` takes 10⁵ events and kills every few thousand of them.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from operators.stores.spool_file import SpoolFile
from tests import ledger_rig as rig
from tests.broker import forgotten_sockets, mortal_broker, until

ROOT = Path(__file__).parents[2]
ALL = os.environ.get("RUVLLM_TEST_FAULTS") == "all"
TOTAL = 100_000 if ALL else 2_000
KILLS = 6 if ALL else 1
PATIENCE_S = 900.0 if ALL else 60.0


class Process:
    """A producer or consumer, and another one when it was killed."""

    def __init__(self, verb: str, root: Path, address: str) -> None:
        self.command = [sys.executable, "-m", "tests.ledger_rig", verb, str(root), str(TOTAL), address, "ledger-test."]
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self.command, cwd=ROOT, stderr=subprocess.DEVNULL)

    def kill(self) -> None:
        assert self.process.poll() is None, "it lived until now"
        self.process.kill()
        assert self.process.wait(30) == -9

    def end(self) -> None:
        assert self.process.wait(PATIENCE_S) == 0

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(30)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[rig.Ledger]:
    made = rig.Ledger(tmp_path / "ledger.db")
    yield made
    made.close()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[list[Process]]:
    made: list[Process] = []
    yield made
    for one in made:
        one.close()


def busy(root: Path, ledger: rig.Ledger, of: int) -> None:
    """Both ends are at work, in the ``of``-th part of the events: offsets and rows go on."""
    goal = (of + 1) * TOTAL // (KILLS + 2)
    until(lambda: ledger.count() >= goal, PATIENCE_S)
    assert rig.acknowledged(root) < TOTAL


def spooled(root: Path) -> int:
    """Events that wait for the broker."""
    with contextlib.closing(SpoolFile(root / "spool.db")) as file:
        file.open()
        return sum(file.waiting().values())


def check(ledger: rig.Ledger, root: Path) -> None:
    assert rig.acknowledged(root) == TOTAL
    assert (ledger.count(), ledger.twice()) == (TOTAL, 0)
    assert ledger.ids() == {f"e{n}" for n in range(TOTAL)}
    assert ledger.total() == TOTAL * (TOTAL - 1) // 2


@pytest.mark.timeout(2 * PATIENCE_S)
def test_kills_of_broker_consumer_and_producer(tmp_path: Path, ledger: rig.Ledger, run: list[Process]) -> None:
    with forgotten_sockets(), mortal_broker() as broker:
        run += [Process(verb, tmp_path, broker.address) for verb in ("produce", "consume")]
        producer, consumer = run
        for kill in range(KILLS):
            busy(tmp_path, ledger, kill)
            broker.kill()  # amid a batch of the one and of the other
            until(lambda: spooled(tmp_path) > 0, PATIENCE_S)
            if kill % 3 == 0:
                consumer.kill()
                consumer.start()
            if kill % 3 == 1 and producer.process.poll() is None:
                producer.kill()
                producer.start()
            broker.start()
        producer.end()
        consumer.end()
    check(ledger, tmp_path)


@pytest.mark.skipif(not ALL, reason="RUVLLM_TEST_FAULTS=all has it; test_log_kill and test_judge_kill kill on the file")
@pytest.mark.timeout(2 * PATIENCE_S)
def test_kills_of_consumer_and_producer_on_the_file(tmp_path: Path, ledger: rig.Ledger, run: list[Process]) -> None:
    run += [Process(verb, tmp_path, "") for verb in ("produce", "consume")]
    producer, consumer = run
    for kill in range(KILLS):
        busy(tmp_path, ledger, kill)
        consumer.kill()
        if producer.process.poll() is None:
            producer.kill()
            producer.start()
        consumer.start()
    producer.end()
    consumer.end()
    check(ledger, tmp_path)
