"""The maintenance job over a memory on its real stores: rounds, the lock, and the eye on the disk."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conf.jobs import MaintainJob
from conf.load import load
from jobs.maintain import MAINTAIN, TENANTS, Maintainer, serve
from operators.errors import Reject, Retry, Stop
from operators.stores import removal
from operators.stores.memory import Memory
from pipeline.management import CALLS
from tests.operators.stores.memory_kit import NODES, NOW, SECRET, SECRETS, build, files_with, node, unit

MIB = 1 << 20


class Owner:
    """The service's door, in this process: ``fails`` says what a call raises, by tenant, ``""`` for all."""

    def __init__(self, memory: Memory) -> None:
        self.memory, self.asked, self.fails = memory, [], {}  # type: ignore[var-annotated]

    def get_json(self, path: str) -> Any:
        assert path == TENANTS
        self._fail("")
        return CALLS["tenants"](self.memory)

    def post_json(self, path: str, body: Any) -> Any:
        assert path == MAINTAIN
        self.asked.append(body["tenant"])
        self._fail(body["tenant"])
        return CALLS["maintain"](self.memory, body["tenant"])

    def _fail(self, tenant: str) -> None:
        if error := self.fails.get(tenant):
            raise error


class World:
    """A memory of two tenants, a maintainer, and what time it is and how much is free."""

    def __init__(self, root: Path) -> None:
        self.now, self.free, self.said = NOW, 100 * MIB, []  # type: ignore[var-annotated]
        self.memory = build(root / "memory", clock=lambda: self.now, purge_after_s=50)
        for tenant in ("acme", "umbra"):
            self.memory.add(tenant, [*NODES, node("x", "gone soon", unit(0, 0, 0, 0, 1), expires_at=NOW + 5)])
        self.owner = Owner(self.memory)
        self.root = root

    def job(self) -> Maintainer:
        config = MaintainJob(every_s=10, min_free_bytes=10 * MIB)
        return Maintainer(
            self.owner, config, self.root, clock=lambda: self.now, free=lambda path: self.free, say=self.said.append
        )


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.memory.close()


def test_every_tenant_is_maintained_in_turn_when_it_is_time(world: World) -> None:
    job = world.job()
    assert not job.look(), "the first look begins to count"
    world.now += 9.9
    assert not job.look()
    assert world.owner.asked == []
    world.now += 0.1
    assert job.look()
    assert world.owner.asked == ["acme", "umbra"]
    for tenant in ("acme", "umbra"):
        assert world.memory.vectors.count(tenant) == len(NODES)
        assert [one.reason for one in removal.receipts(world.memory, tenant)] == ["expired"]
    assert not world.job().look(), "another process knows of that round"
    world.now += 10
    assert world.job().look()
    assert world.said == []


def test_removed_texts_leave_the_files_in_time(world: World) -> None:
    removal.remove(world.memory, "acme", SECRETS, "asked to")
    job = world.job()
    assert job.round()["acme"] == {"expired": 0, "purged": 0, "nodes": len(NODES) - 1}
    assert [path for path in files_with(world.root, SECRET) if "umbra" not in path]
    world.now += 50
    assert job.round()["acme"] == {"expired": 1, "purged": 1, "nodes": len(NODES) - 2}
    assert [path for path in files_with(world.root, SECRET) if "umbra" not in path] == []


def test_a_tenant_that_fails_holds_up_no_other(world: World) -> None:
    world.owner.fails = {"acme": Stop("service (500)", "broken", "see the log")}
    assert list(world.job().round()) == ["umbra"]
    assert world.said == ["tenant acme: service (500): broken; see the log"]
    world.owner.fails = {"acme": Reject("service (400)", "odd", "change it")}
    assert list(world.job().round()) == ["umbra"]


def test_while_the_service_is_away_nothing_counts_as_done(world: World) -> None:
    job = world.job()
    job.look()
    world.now += 10
    for where in ("", "acme"):
        world.owner.fails = {where: Retry("service", "no service listens there", "start it")}
        assert not job.look()
    assert len(world.said) == 1
    world.owner.fails = {}
    assert job.look()


def test_told_to_stop_it_ends_after_the_tenant_under_way(world: World) -> None:
    job = world.job()
    job.stopping.set()
    assert job.round() == {}
    assert world.owner.asked == []


def test_the_alarm_is_raised_once_and_ends(world: World) -> None:
    job = world.job()
    for free in (100, 10, 9, 5, 11, 12, 3):
        world.free = free * MIB
        assert job.watch_disk() == (free >= 10)
    low = f"ALARM: only {{}} MiB are free in {world.root}, less than 10 MiB (maintain.min_free_bytes); free some space"
    assert world.said == [low.format(9), f"11 MiB are free in {world.root} again", low.format(3)]


HOLDER = """
import sys
from pathlib import Path
from jobs.maintain import Lock
with Lock(Path(sys.argv[1])).held():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_job_works_on_a_data_directory(world: World) -> None:
    job, command = world.job(), [sys.executable, "-c", HOLDER, str(world.root / "maintain.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(Stop, match="another job holds"), job.lock.held():
            pytest.fail("two hold it")
        other.kill()
        other.wait(10)
        with job.lock.held():
            job.lock.done(5.0)
            assert job.lock.last() == 5.0


async def test_the_process_ends_when_it_is_told(tmp_path: Path) -> None:
    settings = load("test", overrides=[f"data_dir={tmp_path}", "http.port=0", "maintain.nice=0"], env={}).settings
    stop = asyncio.Event()
    running = asyncio.create_task(serve(settings, stop))
    async with asyncio.timeout(20):
        while not (tmp_path / "maintain.lock").exists() or not (tmp_path / "maintain.lock").read_text():
            await asyncio.sleep(0.01)
        stop.set()
        await running
