"""Which tiers' models are loaded in this process and its children, and who uses them.

A model is loaded when the first request asks for it, or before (``preload``); all who ask meanwhile wait for the same
load. Whoever has a lease can rely on its engine: what is in use or waited for never makes room for others. The budget
is in bytes, since models are not of one size; what the machine really has left counts too (``pressure``).

Ray Serve's multiplexing holds one lock while it loads and gives up models that requests still use; hence a pool of
our own.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

from operators.engines.pool import pressure
from operators.engines.pool.config import PoolConfig
from operators.engines.pool.loader import Loader
from operators.engines.pool.places import Loaded, Place
from operators.engines.pool.pressure import Room
from operators.engines.pool.view import View
from operators.engines.ports import Engine
from operators.errors import Retry, RuvError, happened
from operators.tiers import Tier


class Pool(View):
    """One pool an event loop; call it from nowhere else.

    ``make`` gives a tier's engine, not started; ``estimate`` the bytes it will take (``sizing.expected``), or raises
    ``Stop``. ``room`` says what the machine has left. ``clock`` gives seconds, ``wall`` Unix seconds. ``on_progress``
    is called with (tier, state): ``loading``, ``ready``, ``asleep``, ``absent``, ``failed``, ``unavailable: …``.
    """

    Config = PoolConfig

    def __init__(
        self,
        config: PoolConfig,
        tiers: Sequence[Tier],
        make: Callable[[Tier], Engine],
        estimate: Callable[[Tier], Awaitable[int]],
        *,
        room: Callable[[], Room] = pressure.room,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        on_progress: Callable[[str, str], None] = lambda tier, state: None,
    ) -> None:
        places = {tier.name: Place(tier) for tier in sorted(tiers, key=lambda tier: tier.slot)}
        budget = config.budget(room())
        loader = Loader(places, config, budget, make, estimate, room=room, clock=clock, on_progress=on_progress)
        super().__init__(places, loader, clock)
        self.config = config
        self._room, self._wall = room, wall
        self._probes: dict[str, asyncio.Task[None]] = {}

    async def start(self) -> None:
        """Load what is pinned, then what is to be preloaded, the smallest first, as far as the budget goes.

        A tier that fails is remembered with its reason (``status``); the others come up all the same.
        """
        for place in self._places.values():
            place.due = place.kept
            try:
                await self._loader.measure(place)
            except Exception as error:
                self._loader.failed(place, error)
        for place in sorted(self._places.values(), key=lambda place: not place.tier.pin):
            if place.due and place.state == "absent" and not self._loader.closed:
                await asyncio.wait({self._loader.begin(place)})

    # --------------------------------------------------------------------------------------------------------- using

    @contextlib.asynccontextmanager
    async def lease(self, name: str) -> AsyncGenerator[Engine, None]:
        """The tier's engine, loaded first if need be; it stays as long as the block runs, unless it dies.

        Raises:
            Retry: its last load failed a short time ago, no room was found within ``wait_s``, or it is being unloaded.
            Stop: no such tier, or it is larger than the budget.
        """
        place = self._known(name)
        loaded = await self._acquire(place)
        try:
            yield loaded.engine
        finally:
            loaded.leases -= 1
            self._used(place, loaded)

    async def _acquire(self, place: Place) -> Loaded:
        place.waiting += 1
        try:
            while True:
                if self._loader.closed:
                    raise Retry(f"tier {place.name}", "the service is ending", "ask another replica")
                if place.job is None:
                    if place.state == "ready" and place.loaded is not None:
                        place.loaded.leases += 1
                        self._used(place, place.loaded)
                        return place.loaded
                    if place.state == "draining":
                        raise Retry(f"tier {place.name}", "its model is being unloaded", "ask for another tier")
                    self._refuse(place)
                    self._loader.begin(place)
                assert place.job is not None  # noqa: S101 - begin() made one
                job = place.job
                await asyncio.wait({job})  # of which a cancelled waiter does not cancel the job
                if not job.cancelled() and (error := job.result()) is not None:
                    self._refuse(place)
                    raise _again(error)
        finally:
            place.waiting -= 1
            self._loader.notify()

    def _used(self, place: Place, loaded: Loaded) -> None:
        place.used_at, place.last_used = self._clock(), self._wall()
        if place.loaded is loaded and place.state == "ready":
            self._loader.worth.used(place.name, place.load_s)
        self._loader.notify()

    def _refuse(self, place: Place) -> None:
        """Raise while a failed tier is left alone."""
        left = place.retry_at - self._clock()
        if place.state == "failed" and left > 0:
            remedy = "ask for another tier, or mend this one and load it again"
            raise Retry(f"tier {place.name}", f"its model does not run: {place.error}", remedy, retry_after_s=left)

    def lost(self, name: str, engine: Engine, reason: str = "it takes no more work") -> None:
        """``engine``, got by a lease, is dead: close it at once, whoever uses it.

        It is loaded again for the next lease, a pinned or preloaded one now; but one that dies again within ``retry_s``
        is left alone for a while like one that fails to load.
        """
        place, now = self._known(name), self._clock()
        loaded = place.loaded
        if loaded is None or loaded.engine is not engine or place.state not in ("ready", "asleep"):
            return  # somebody else saw it first
        place.deaths += 1
        place.due = place.kept
        place.crashes = place.crashes + 1 if now - loaded.ready_at < self.config.retry_s else 0
        remedy = "it is loaded again"
        if place.crashes > 1:
            rest_s = self._loader.backoff(place.crashes - 1)
            place.retry_at = now + rest_s
            remedy = f"wait {rest_s:.0f} s, or load it now: ruvllm models load {name}"
        place.error = Retry(f"tier {name}", f"its engine died: {reason}", remedy)
        self._loader.shut(place, then="failed" if place.crashes > 1 else "absent")

    async def probe(self, name: str) -> None:
        """Ask the tier's engine, if it is ready, whether it works; what doesn't is ``lost``."""
        place = self._known(name)
        loaded = place.loaded
        if loaded is None or place.state != "ready":
            return
        try:
            async with asyncio.timeout(self.config.check_s):
                await loaded.engine.check()
        except Exception as error:  # whatever it raises, it does not say that it works
            self.lost(name, loaded.engine, happened(error))

    # ------------------------------------------------------------------------------------------------------ managing

    async def load(self, name: str) -> None:
        """Load the tier now, also one that is left alone after a failure. Raises what went wrong."""
        place = self._known(name)
        place.retry_at = self._clock()
        try:
            async with self.lease(name):
                pass
        except Retry:
            if place.state == "failed" and place.error is not None:
                raise _again(place.error) from None
            raise

    async def unload(self, name: str, wait_s: float | None = None) -> None:
        """Close the tier's engine when nobody uses it any more; meanwhile it gets no leases. The next lease loads it.

        Raises ``Retry`` if it is still in use after ``wait_s`` (the pool's, if not given); it then stays loaded.
        """
        place = self._known(name)
        while place.job is not None:
            await asyncio.wait({place.job})
        place.due = False
        loaded, before = place.loaded, place.state
        if loaded is None:
            return
        if before == "draining":
            raise Retry(f"tier {name}", "its model is being unloaded already", "wait until it is")
        place.state = "draining"
        until = self._clock() + (self.config.wait_s if wait_s is None else wait_s)
        try:
            while loaded.leases and not self._loader.closed:
                if self._clock() >= until:
                    got = f"{loaded.leases} requests still use it"
                    raise Retry(f"tier {name}", got, "unload it again later, or wait longer")
                await self._loader.news(until)
        finally:
            if place.loaded is loaded and place.job is None:
                if loaded.leases:
                    place.state = before
                else:
                    self._loader.shut(place)
                self._loader.notify()
        await self._loader.gone(place)

    async def tend(self) -> None:
        """One round of upkeep; the pool's owner calls it every ``tend_s``.

        Idle models go that nobody used for ``idle_s``, or as many as it takes to have ``headroom_bytes`` free again,
        before the kernel ends a process. In the background, engines are asked whether they work, and what should be
        loaded and isn't is tried again.
        """
        if self._loader.closed:
            return
        for place in self._places.values():
            if place.loaded is not None and place.state == "ready":
                place.loaded.bytes = place.loaded.engine.memory_bytes() or place.loaded.bytes
                place.peak = max(place.peak, place.loaded.bytes)
                unused_s = self._clock() - place.used_at
                if place.idle and 0 < self.config.idle_s <= unused_s:
                    self._loader.retire(place)
        over = self._loader.held() - self._loader.budget_bytes
        lacking = self.config.headroom_bytes - self._room().free_bytes
        await self._loader.shrink(max(over, lacking), partly=True)
        for place in self._places.values():
            untried = place.state in ("absent", "asleep", "failed") and place.job is None
            if place.due and untried and self._clock() >= place.retry_at and not self._loader.closed:
                self._loader.begin(place)
        for name in set(self.loaded()) - self._probes.keys():
            # Nobody waits for it: one that hangs must not keep the next round from making room.
            self._probes[name] = asyncio.create_task(self.probe(name))
            self._probes[name].add_done_callback(lambda _, name=name: self._probes.pop(name))  # type: ignore[misc]
        self._loader.notify()  # who waits for a deadline looks at the clock

    async def drain(self, deadline_s: float) -> int:
        """Give no more leases, wait up to ``deadline_s`` for those that run, close everything; how many were cut short.

        Loads under way end. Safe to call twice; the pool can't be used again.
        """
        self._loader.closed = True
        self._loader.notify()
        for probe in self._probes.values():
            probe.cancel()
        await asyncio.sleep(0)  # a load that was only just begun would be cancelled before it can tidy up
        for place in self._places.values():
            if place.state == "loading" and place.job is not None:
                place.job.cancel()
        until = self._clock() + deadline_s
        while (running := self._leases()) and self._clock() < until:
            await self._loader.news(until)
        await self._loader.end()
        for place in self._places.values():
            if place.loaded is not None:
                self._loader.shut(place)
        await self._loader.end()
        return running

    async def close(self) -> None:
        """``drain`` at once."""
        await self.drain(0.0)

    def _leases(self) -> int:
        return sum(place.loaded.leases for place in self._places.values() if place.loaded is not None)


def _again(error: RuvError) -> RuvError:
    """The same error anew, for each of those who waited for one load."""
    return type(error)(*error.args)
