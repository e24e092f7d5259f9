"""How models come into memory and leave it: reserve, load, measure, give up. Who may use them is ``pool``'s.

Everything happens on one event loop and between two awaits, so there is no lock; a load under way holds nothing up but
the bytes it has reserved.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping

from operators.engines.pool.config import PoolConfig
from operators.engines.pool.eviction import GreedyDual
from operators.engines.pool.places import Loaded, Place, Sleeps, State
from operators.engines.pool.pressure import Room
from operators.engines.ports import Engine
from operators.errors import Retry, RuvError, Stop
from operators.tiers import Tier

MIB = 1 << 20
DOUBLINGS = 6
"""How often the time until the next attempt doubles, at most."""
_log = logging.getLogger("ruvllm.pool")


class Loader:
    """``make`` gives an engine, not started; ``estimate`` the bytes a tier will take; ``room`` what the machine has
    left; ``clock`` seconds."""

    def __init__(
        self,
        places: Mapping[str, Place],
        config: PoolConfig,
        budget_bytes: int,
        make: Callable[[Tier], Engine],
        estimate: Callable[[Tier], Awaitable[int]],
        *,
        room: Callable[[], Room],
        clock: Callable[[], float],
        on_progress: Callable[[str, str], None],
    ) -> None:
        self.budget_bytes = budget_bytes
        self.worth = GreedyDual()
        self.closed = False
        """Once true, nothing is loaded any more."""
        self._places, self._config = places, config
        self._make, self._estimate, self._room = make, estimate, room
        self._clock, self._tell = clock, on_progress
        self._news = asyncio.Event()
        self._closings: set[asyncio.Task[None]] = set()

    def held(self) -> int:
        """Bytes of all that is loaded or being loaded."""
        return sum(place.held for place in self._places.values())

    def leaving(self) -> int:
        """Bytes of what is just being closed."""
        places = self._places.values()
        return sum(p.held for p in places if p.state == "draining" and p.job is not None)

    def misfit(self, place: Place) -> Stop | None:
        """Why the tier can't be loaded, whatever else is given up; None if it can."""
        pinned = sum(p.held for p in self._places.values() if p.tier.pin and p is not place)
        if place.need + pinned <= self.budget_bytes:
            return None
        beside = f", of which {_mib(pinned)} are pinned" if pinned else ""
        return Stop(
            f"tier {place.name}",
            f"model {place.tier.model.id} takes {_mib(place.need)}, the budget is {_mib(self.budget_bytes)}{beside}",
            "raise budget_bytes, lower the tier's context_tokens or parallel, or take a smaller file",
        )

    def notify(self) -> None:
        """Something changed: whoever waits for room or for an end of use looks again."""
        self._news.set()
        self._news = asyncio.Event()

    async def news(self, until: float | None = None) -> None:
        """Wait for ``notify``, or until the clock says ``until``."""
        news = self._news
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if until is None else max(0.0, until - self._clock())):
                await news.wait()

    # -------------------------------------------------------------------------------------------------------- coming

    def begin(self, place: Place) -> asyncio.Task[RuvError | None]:
        """Load the tier, or wake its engine. The job never raises: its result is what went wrong."""
        place.state = "loading"
        place.job = asyncio.create_task(self._come(place))
        return place.job

    async def _come(self, place: Place) -> RuvError | None:
        self._tell(place.name, "loading")
        error: RuvError | None = None
        try:
            await self.measure(place)
            error = await self._wake(place) if place.loaded else await self._load(place)
            if error is not None:
                # Nothing was tried. What is pinned comes as soon as it can, a preload only where there is room.
                place.due, place.retry_at = place.due and place.tier.pin, self._clock() + self._config.retry_s
        except Exception as e:  # also what an engine should not raise: others are not affected
            error = self.failed(place, e)
        finally:
            place.job, place.reserved, place.claimed = None, 0, 0
            if place.state == "loading":
                place.state = "asleep" if place.loaded else "absent"
            self.notify()
        self._tell(place.name, f"unavailable: {error}" if error else "ready")
        return error

    async def measure(self, place: Place) -> None:
        """Reckon what the tier will take, if that isn't known yet."""
        if place.estimate is None:
            place.estimate = await self._estimate(place.tier)

    def failed(self, place: Place, error: Exception) -> RuvError:
        """Remember why, and when to try again."""
        if not isinstance(error, RuvError):
            _log.error("tier %s: its engine raised what it should not", place.name, exc_info=error)
            error = Stop(
                f"tier {place.name}", f"{type(error).__name__}: {error}", "this is a bug in the engine; see the log"
            )
        place.failures += 1
        place.state, place.error, place.retry_at = "failed", error, self._clock() + self.backoff(place.failures)
        return error

    def backoff(self, times: int) -> float:
        """Seconds until the next attempt after so many in a row went wrong."""
        return self._config.retry_s * 2.0 ** min(times - 1, DOUBLINGS)

    async def _wake(self, place: Place) -> RuvError | None:
        assert place.loaded is not None  # noqa: S101 - the caller looked
        if (error := await self._reserve(place)) is not None:
            return error
        loaded, began = place.loaded, self._clock()
        try:
            await loaded.engine.wake()  # type: ignore[attr-defined]  # only what has wake() was ever asleep
        except Exception:
            _log.exception("tier %s does not wake, it is loaded anew", place.name)
            place.loaded = None
            place.deaths += 1
            await self._close(loaded.engine)
            place.reserved = 0
            return await self._load(place)
        self._ready(place, loaded.engine, loaded.engine.memory_bytes() or place.held, began)
        return None

    async def _load(self, place: Place) -> RuvError | None:
        while (error := await self._reserve(place)) is None:
            began = self._clock()
            engine = place.starting = self._make(place.tier)
            try:
                await engine.start()
                measured = engine.memory_bytes() or place.reserved  # one that can't measure takes what was reckoned
                place.peak = max(place.peak, measured)
                if place.wanted:
                    await self.shrink(self.held() - place.reserved + measured - self.budget_bytes)
            except BaseException:
                await self._close(engine)
                raise
            finally:
                place.starting = None
            if self.held() - place.reserved + measured <= self.budget_bytes:
                self._ready(place, engine, measured, began)
                return None
            # Larger than reckoned, and nothing idle can make room for the rest: wait for room as it is known now.
            await self._close(engine)
            place.reserved = 0
        return error

    def _ready(self, place: Place, engine: Engine, measured: int, began: float) -> None:
        now = self._clock()
        place.loaded, place.reserved = Loaded(engine=engine, bytes=measured, ready_at=now), 0
        place.state, place.error, place.failures, place.due = "ready", None, 0, False
        place.load_s, place.used_at = now - began, now
        place.loads += 1
        self.worth.used(place.name, place.load_s)

    async def _reserve(self, place: Place) -> RuvError | None:
        """Find room for the tier, in the budget and in the machine, and reserve it; say why there is none.

        Gives up idle models only where that is enough, else waits up to ``wait_s`` for others to become idle. Several
        that wait look again in the order they came, but a small one may find room before a large one.
        """
        until = self._clock() + self._config.wait_s
        others = [other for other in self._places.values() if other is not place]
        while True:
            if (misfit := self.misfit(place)) is not None:
                return misfit
            need, claimed = place.need - place.held, sum(other.claimed for other in others)
            over = self.held() + claimed + need - self.budget_bytes
            # What others have reserved they may not have taken yet.
            free = self._room().free_bytes - claimed - sum(other.reserved for other in others)
            short = max(over, need + self._config.headroom_bytes - free)
            if short <= 0:
                place.claimed, place.reserved = 0, need
                return None
            if place.wanted:
                self.evict(short - self.leaving())
            place.claimed = need if short <= self.leaving() else 0
            if place.claimed:
                await self.news()
                continue
            if not place.wanted or not any(other.busy for other in others) or self._clock() >= until:
                return self._no_room(place, need, memory=short > over, free=free)
            await self.news(until)

    def _no_room(self, place: Place, need: int, *, memory: bool, free: int) -> Retry:
        if memory:
            got = f"{_mib(need)} are needed and {_mib(self._config.headroom_bytes)} kept free, {_mib(free)} are left"
            remedy = "wait until memory is free, or give the service more"
        else:
            got = f"{_mib(need)} are needed, {_mib(self.budget_bytes - self.held())} of the budget are left"
            remedy = "try again when the other models are used less, or raise budget_bytes"
        return Retry(f"tier {place.name}", got, remedy, retry_after_s=max(1.0, self._config.wait_s))

    # --------------------------------------------------------------------------------------------------------- going

    def evict(self, need: int, *, partly: bool = False) -> None:
        """Begin to give up idle models for ``need`` bytes; none if that isn't enough, unless ``partly`` helps."""
        idle = {place.name: place.held for place in self._places.values() if place.idle}
        for name in self.worth.choose(idle, need, partly=partly):
            self.worth.evicted(name)
            self.retire(self._places[name])

    def retire(self, place: Place) -> None:
        """Begin to give up one idle model: it sleeps if it can and doesn't yet, else it is closed."""
        place.evictions += 1
        self.shut(place, sleep=True)

    async def shrink(self, need: int, *, partly: bool = False) -> None:
        """``evict``, and wait until all that is being closed is closed."""
        self.evict(need - self.leaving(), partly=partly)
        for place in self._places.values():
            await self.gone(place)

    async def gone(self, place: Place) -> None:
        """Wait until it is closed, if it is being closed."""
        while place.job is not None and place.state == "draining":
            await asyncio.wait({place.job})

    def shut(self, place: Place, *, sleep: bool = False, then: State = "absent") -> asyncio.Task[RuvError | None]:
        """Close the tier's engine, whoever uses it, or let it ``sleep``."""
        self.worth.forget(place.name)
        place.state = "draining"
        place.job = asyncio.create_task(self._go(place, sleep, then))
        return place.job

    async def _go(self, place: Place, sleep: bool, then: State) -> None:
        loaded = place.loaded
        assert loaded is not None  # noqa: S101 - only what is loaded is shut
        if not sleep or loaded.asleep or not await self._slept(loaded):
            await self._close(loaded.engine)
            place.loaded = None
        place.state, place.job = "asleep" if place.loaded else then, None
        self._tell(place.name, place.state)
        self.notify()
        if place.due and place.state == "absent" and not self.closed:
            self.begin(place)

    async def _slept(self, loaded: Loaded) -> bool:
        if not isinstance(loaded.engine, Sleeps):
            return False
        try:
            await loaded.engine.sleep()
        except Exception:
            _log.exception("%s does not sleep, it is closed", loaded.engine.model)
            return False
        loaded.asleep, loaded.bytes = True, loaded.engine.memory_bytes()
        return True

    async def _close(self, engine: Engine) -> None:
        """Close it to the end, also when whoever asked is cancelled meanwhile."""
        task = asyncio.create_task(_closed(engine))
        self._closings.add(task)
        task.add_done_callback(self._closings.discard)
        await asyncio.shield(task)

    async def end(self) -> None:
        """Wait for all that is coming or going."""
        while tasks := {*self._closings, *(p.job for p in self._places.values() if p.job is not None)}:
            await asyncio.wait(tasks)


async def _closed(engine: Engine) -> None:
    try:
        await engine.close()
    except Exception:  # it is gone from here on, whatever it says
        _log.exception("engine %s failed to close", engine.model)


def _mib(count: int) -> str:
    return f"{count / MIB:.0f} MiB"
