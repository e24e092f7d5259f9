"""What the event path does on a disk that fills up and has room again. Run as a process of its own; prints JSON.

python -m tests.disk_rig ROOT tmpfs|quota    ``tmpfs``: ROOT is a small file system of its own, which is filled;
                                             ``quota``: the process may write no file any more, as over its quota
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jobs.consumer import Consumer, Out
from operators.errors import RuvError, Skip, Stop
from operators.learning import rollout as changes
from operators.learning.rollout import Why
from operators.records import Interaction
from operators.stores.checkpoints import Registry
from operators.stores.ports import Event, EventLog
from operators.stores.spool import SpoolingLog
from operators.stores.sqlite_log import SqliteLog
from operators.stores.topics import INTERACTIONS, create_topics, dlq
from pipeline.emit import Emitter
from tests.broker import until

PATIENCE_S = 30.0
VALUE = b"x" * 20_000


class Disk:
    def __init__(self, root: Path, kind: str) -> None:
        self.root, self.kind = root, kind

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        if self.kind == "quota":
            most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, most))
            try:
                yield
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
            return
        ballast = os.open(self.root / "ballast", os.O_CREAT | os.O_WRONLY)
        for size in (65536, 4096):
            with contextlib.suppress(OSError):
                while True:
                    os.write(ballast, b"\0" * size)
        os.close(ballast)
        try:
            yield
        finally:
            (self.root / "ballast").unlink()


def failing(call: Callable[[int], object]) -> dict[str, Any]:
    """Call until it fails; how often it worked before, and with what it failed. What is open already has some room."""
    for done in range(10_000):
        try:
            call(done)
        except RuvError as error:
            return {"done": done, "error": type(error).__name__, "who": error.who, "remedy": error.remedy}
    raise AssertionError("the disk is not full")


def ids(log: EventLog, topic: str) -> list[int]:
    return [int(e.headers["ce_id"]) for p in range(log.topics()[topic]) for e in log.read(topic, p, 0, 99_999)]


def of_log(disk: Disk, root: Path) -> dict[str, Any]:
    log = SqliteLog(root / "events.db")
    log.open()
    log.create_topic("t", 1)
    numbers = iter(range(10_000))
    acknowledged: list[int] = []

    def append(_: int) -> None:
        number = next(numbers)
        log.append("t", "k", VALUE, {"ce_id": str(number)})
        acknowledged.append(number)

    append(0)
    with disk.full():
        failed = failing(append)
        readable = ids(log, "t") == acknowledged
    append(0)
    dense = [e.offset for e in log.read("t", 0, 0, 99_999)] == list(range(log.end("t", 0)))
    log.close()
    log.open()
    kept = ids(log, "t") == acknowledged
    log.close()
    return {**failed, "readable": readable, "dense": dense, "kept": kept}


def of_spool(disk: Disk, root: Path) -> dict[str, Any]:
    """The log behind is closed, so it takes nothing (``Stop``); in the end it is opened."""
    behind = SqliteLog(root / "behind.db")
    behind.open()
    create_topics(behind, 1)
    spool = SpoolingLog(behind, root / "spool.db", 1 << 26, again_s=0.02, report=lambda text: None)
    spool.open()
    behind.close()
    emitter = Emitter(spool, mask=str, capacity=50, report=lambda text: None)
    emitter.start()
    said: list[int] = []

    def answer(_: int) -> bool:
        one = Interaction(
            event_id=str(len(said)), interaction_id="i", tenant="t", session="s", turn=0, created_at=1.0,
            query="q", answer="x" * 20_000,
        )  # fmt: skip
        said.append(len(said))
        return emitter.emit(one)

    taken = [answer(0)]
    until(lambda: spool.waiting() == 1, PATIENCE_S)
    with disk.full():
        failed = failing(lambda i: spool.append(INTERACTIONS, "filler", VALUE, {"ce_id": str(-1 - i)}))
        taken += [answer(0) for _ in range(20)]
        until(lambda: not emitter.healthy(), PATIENCE_S)
        waits = emitter.waiting()
    flushed = asyncio.run(emitter.flush(PATIENCE_S))
    behind.open()
    until(lambda: spool.waiting() == 0, PATIENCE_S)
    found = ids(behind, INTERACTIONS)
    fillers = [-1 - i for i in range(failed["done"])]
    asyncio.run(emitter.close(1.0))
    spool.close()
    return {
        **failed, "taken": all(taken), "waits": waits, "flushed": flushed,
        "refused": spool.counts.refused, "kept": found == [said[0], *fillers, *said[1:]], "lost": emitter.counts.lost,
    }  # fmt: skip


def of_consumer(disk: Disk, root: Path) -> dict[str, Any]:
    """A job whose dead letters find no room waits, or ends and is started again; each event is dealt with."""
    log = SqliteLog(root / "jobs.db")
    log.open()
    log.create_topic("t", 1)
    log.create_topic(dlq("t"), 1)
    for i in range(30):
        log.append("t", "k", VALUE, {"ce_id": str(i)})

    async def handle(event: Event) -> Sequence[Out]:
        raise Skip("test", "it is bad", "send another")

    async def run() -> int:
        """What was committed when it was first seen to wait."""
        stop, before = asyncio.Event(), list[int]()
        with contextlib.ExitStack() as full:
            full.enter_context(disk.full())
            end = time.monotonic() + PATIENCE_S
            while not stop.is_set():
                consumer = Consumer(log, "t", "g", handle, batch=64, idle_s=0.01)
                running = asyncio.create_task(consumer.run(stop))
                while not running.done() and not stop.is_set():
                    assert time.monotonic() < end
                    await asyncio.sleep(0.01)
                    if consumer.counts.retries:
                        before.append(log.committed("g", "t", 0))
                        full.close()
                    if log.committed("g", "t", 0) == 30:
                        stop.set()
                try:
                    await running
                except Stop:  # the job's process ends, and its parent starts another
                    before.append(log.committed("g", "t", 0))
                    full.close()
        return before[0]

    before = asyncio.run(run())
    found = ids(log, dlq("t"))
    log.close()
    return {"before": before, "letters": found == list(range(30))}


def of_checkpoints(disk: Disk, root: Path) -> dict[str, Any]:
    registry = Registry(root / "checkpoints")
    why = Why("admin", 0.0, "a test")
    first = registry.publish({"weights": b"1" * 5_000})
    registry.rollouts.change(lambda now: changes.activate(changes.present(now, "router", "prior"), first, why))
    with disk.full():
        failed = failing(lambda _: registry.publish({"weights": b"2" * 500_000}))
        rolled = failing(lambda _: registry.rollouts.change(lambda now: now and changes.freeze(now, why)))
        found, now = registry.newest_good(), registry.rollouts.current()
        whole = found is not None and now is not None and (found.version, now.active) == (first, first)
        same = now is not None and not now.frozen
    second = registry.publish({"weights": b"2" * 500_000})
    registry.rollouts.change(lambda now: now and changes.activate(now, second, why))
    found, now = registry.newest_good(), registry.rollouts.current()
    later = found is not None and now is not None and (found.version, now.active) == (second, second)
    left = [path.name for path in registry.root.iterdir() if path.name.endswith(".new")]
    return {**failed, "rolled": rolled, "whole": whole, "same": same, "later": later, "left": left}


def main(root: Path, kind: str) -> None:
    disk = Disk(root, kind)
    made = {}
    for call in (of_log, of_spool, of_consumer, of_checkpoints):
        where = root / call.__name__
        where.mkdir()
        made[call.__name__] = call(disk, where)
    print(json.dumps(made))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
