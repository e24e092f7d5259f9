"""A pool of scripted engines: the test says when a load ends, what it weighs, and what the clock shows."""

from __future__ import annotations

import asyncio
from typing import Any

from operators.engines.pool.pool import Pool
from operators.engines.pool.pressure import Room
from operators.errors import Retry, Stop
from operators.tiers import ModelFile, Tier

PLENTY = 1 << 40


class Scripted:
    """An engine that starts, when ``go`` is set if its tier is ``held``, or raises what ``fails`` says."""

    def __init__(self, rig: Rig, tier: Tier) -> None:
        self.rig, self.tier, self.model = rig, tier.name, tier.model.id
        self.go = asyncio.Event()
        self.state = "new"
        self.dead = False
        self.closed = 0

    async def start(self) -> None:
        rig = self.rig
        assert not any(e.tier == self.tier and e.state in ("starting", "running") for e in rig.engines if e is not self)
        self.state = "starting"
        if self.tier in rig.held:
            await self.go.wait()
        rig.now += rig.takes.get(self.tier, 1.0)
        self.fail(self.tier)
        self.state = "running"
        rig.free -= self.memory_bytes()

    def fail(self, at: str) -> None:
        """Raise what this test wants to fail, anew each time."""
        if (error := self.rig.fails.get(at)) is not None:
            raise type(error)(*error.args)

    async def check(self) -> None:
        if self.dead:
            raise Retry(self.model, "ended by SIGKILL", "try again")

    def memory_bytes(self) -> int:
        return self.rig.weighs[self.tier] if self.state == "running" else 0

    def queue(self) -> int:
        return 0

    async def close(self) -> None:
        self.closed += 1
        for _ in range(5):
            await asyncio.sleep(0)
        self.rig.free += self.memory_bytes()
        self.state = "closed"


class Sleeper(Scripted):
    """One that offers to sleep; ``rest`` bytes stay."""

    rest = 10

    async def sleep(self) -> None:
        self.rig.free += self.memory_bytes() - self.rest
        self.state = "asleep"

    async def wake(self) -> None:
        self.rig.now += 0.1
        self.fail("wake")
        self.state = "running"
        self.rig.free -= self.memory_bytes() - self.rest

    def memory_bytes(self) -> int:
        return self.rest if self.state == "asleep" else super().memory_bytes()


class Rig:
    """``sizes``: tier → bytes; the tiers are in slots 0, 1, 2, … . ``marks``: tier → its knobs."""

    def __init__(self, sizes: dict[str, int], kind: type[Scripted] = Scripted, marks: Any = None, **knobs: Any) -> None:
        self.now, self.free = 1000.0, PLENTY
        self.kind = kind
        self.weighs, self.reckoned = dict(sizes), dict(sizes)
        self.held: set[str] = set()
        """Tiers whose engines start only when their ``go`` is set."""
        self.fails: dict[str, Exception] = {}
        self.takes: dict[str, float] = {}
        """Seconds a load takes by the rig's clock; 1 if not given."""
        self.engines: list[Any] = []
        self.told: list[tuple[str, str]] = []
        tiers = [
            Tier(
                name=name,
                slot=slot,
                model=ModelFile(id=f"model-{name}", path="/none", sha256="unchecked"),
                template="chatml",
                **({"preload": False} | (marks or {}).get(name, {})),
            )
            for slot, name in enumerate(sizes)
        ]
        config = Pool.Config(**({"budget_bytes": 100, "headroom_bytes": 0} | knobs))
        self.pool = Pool(
            config,
            tiers,
            self.make,
            self.estimate,
            room=lambda: Room(total_bytes=PLENTY, free_bytes=self.free, limit="rig"),
            clock=lambda: self.now,
            wall=lambda: self.now + 1e9,
            on_progress=lambda tier, state: self.told.append((tier, state)),
        )

    def make(self, tier: Tier) -> Any:
        self.engines.append(self.kind(self, tier))
        return self.engines[-1]

    async def estimate(self, tier: Tier) -> int:
        if self.reckoned[tier.name] < 0:
            raise Stop(f"model {tier.model.id}", "no file", "fetch it")
        return self.reckoned[tier.name]

    def of(self, name: str) -> list[Any]:
        """Every engine there was of a tier, the newest last."""
        return [engine for engine in self.engines if engine.tier == name]

    def status(self, name: str) -> Any:
        return next(one for one in self.pool.status() if one.tier == name)

    async def touch(self, *names: str) -> None:
        """Use the tiers one after another."""
        for name in names:
            async with self.pool.lease(name):
                pass


class User:
    """A request that takes a lease and keeps it until it is told to ``end``."""

    def __init__(self, rig: Rig, name: str) -> None:
        self.rig, self.name = rig, name
        self.engine: Any = None
        self._end = asyncio.Event()
        self.task = asyncio.create_task(self._use())

    async def _use(self) -> None:
        async with self.rig.pool.lease(self.name) as engine:
            assert engine.state == "running"
            self.engine = engine
            try:
                await self._end.wait()
            finally:
                self.engine = None

    async def end(self) -> None:
        self._end.set()
        await self.task


async def settle() -> None:
    """Let everything run that can run: nothing here waits for the real clock, so a fixed number of turns is enough."""
    for _ in range(60):
        await asyncio.sleep(0)


async def use(rig: Rig, name: str) -> User:
    user = User(rig, name)
    await settle()
    return user
