"""A tier's place in the pool: what is there now, what it takes, who uses it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from operators.engines.child.sandbox import Sandbox
from operators.engines.ports import Engine
from operators.errors import RuvError
from operators.records import record
from operators.tiers import Tier

State = Literal["absent", "loading", "ready", "asleep", "draining", "failed"]
"""``draining``: it gets no more leases and goes as soon as nobody uses it. ``asleep``: given up, but quickly back."""


@runtime_checkable
class Sleeps(Protocol):
    """An engine that can give its memory back and stay, as vLLM does; the pool lets it sleep instead of closing it."""

    async def sleep(self) -> None:
        """Give the memory back; ``memory_bytes`` then says what is left."""

    async def wake(self) -> None:
        """Be as ready as after ``start``."""


@runtime_checkable
class Reports(Protocol):
    """An engine that knows how far it has come while it starts."""

    def progress(self) -> float:
        """0 to 1."""


@runtime_checkable
class Guarded(Protocol):
    """An engine whose process locks itself in."""

    sandbox: Sandbox | None


@record
class TierStatus:
    """One tier as the pool has it now."""

    tier: str
    model: str
    engine: str
    """Name of the engine in the profile."""
    state: State
    bytes: int
    """Measured; 0 when nothing is loaded."""
    estimate: int
    """What it is expected to take, at least what was measured before; 0 when the file could not be read."""
    leases: int
    """Requests that use it."""
    waiting: int
    """Requests that wait until it is loaded."""
    loads: int
    evictions: int
    """How often it had to go, for others, for lack of memory or because nobody used it."""
    deaths: int
    """How often its engine took no more work by itself."""
    last_used: float
    """Unix seconds; 0 never."""
    load_s: float
    """Seconds the last load took; 0 never."""
    reason: str
    """Why it can't be used, or what went wrong last."""
    pinned: bool
    progress: float | None
    """0 to 1 while it loads, if its engine tells."""
    unguarded: tuple[str, ...]
    """What does not hold its engine's process in, and why, where something should."""


@dataclass(slots=True, eq=False)
class Loaded:
    """A started engine; those who use it keep this, whatever takes its place meanwhile."""

    engine: Engine
    bytes: int
    ready_at: float
    leases: int = 0
    asleep: bool = False


@dataclass(slots=True, eq=False)
class Place:
    """What is remembered of one tier. Times are of the pool's clock, except ``last_used``."""

    tier: Tier
    state: State = "absent"
    loaded: Loaded | None = None
    starting: Engine | None = None
    job: asyncio.Task[RuvError | None] | None = None
    """The load or the closing under way. Never both: what wants the other one waits for it."""
    estimate: int | None = None
    peak: int = 0
    """Most bytes it was ever measured to take."""
    reserved: int = 0
    """Bytes of a load under way."""
    claimed: int = 0
    """Bytes a load waits for, which are just being freed for it."""
    waiting: int = 0
    due: bool = False
    """It should be loaded though nobody waits."""
    error: RuvError | None = None
    failures: int = 0
    """Loads that failed in a row."""
    crashes: int = 0
    """Engines that died soon after they were loaded, in a row."""
    retry_at: float = 0.0
    loads: int = 0
    evictions: int = 0
    deaths: int = 0
    used_at: float = 0.0
    last_used: float = 0.0
    load_s: float = 0.0

    @property
    def name(self) -> str:
        """The tier's."""
        return self.tier.name

    @property
    def need(self) -> int:
        """Bytes to find before it is loaded: as reckoned, or as measured if that was more."""
        return max(self.estimate or 0, self.peak)

    @property
    def held(self) -> int:
        """Bytes it takes of the budget now."""
        return self.reserved + (self.loaded.bytes if self.loaded else 0)

    @property
    def kept(self) -> bool:
        """Whether it is to be loaded again at once when it dies."""
        return self.tier.pin or self.tier.preload

    @property
    def busy(self) -> bool:
        """Whether it is in use, waited for, coming or going: what keeps it may end."""
        return self.job is not None or self.waiting > 0 or (self.loaded is not None and self.loaded.leases > 0)

    @property
    def wanted(self) -> bool:
        """Whether others may have to go for it: not for a preload that nobody waits for."""
        return self.waiting > 0 or self.tier.pin

    @property
    def idle(self) -> bool:
        """Whether it may be given up."""
        return self.state in ("ready", "asleep") and self.held > 0 and not self.busy and not self.tier.pin

    def status(self, misfit: RuvError | None) -> TierStatus:
        """As of now; ``misfit`` says why it has no place in the budget."""
        misfit = misfit if self.loaded is None else None
        error = self.error or misfit
        progress = self.starting.progress() if isinstance(self.starting, Reports) else None
        guard = self.loaded.engine.sandbox if self.loaded and isinstance(self.loaded.engine, Guarded) else None
        return TierStatus(
            tier=self.name,
            model=self.tier.model.id,
            engine=self.tier.engine,
            state="failed" if misfit and self.state == "absent" else self.state,
            bytes=self.loaded.bytes if self.loaded else 0,
            estimate=self.need,
            leases=self.loaded.leases if self.loaded else 0,
            waiting=self.waiting,
            loads=self.loads,
            evictions=self.evictions,
            deaths=self.deaths,
            last_used=self.last_used,
            load_s=self.load_s,
            reason=str(error) if error else "",
            pinned=self.tier.pin,
            progress=progress,
            unguarded=guard.missing if guard else (),
        )
