"""Whatever comes in whatever order: the pool keeps its budget, its leases and its engines together."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from operators.errors import Retry, Stop
from tests.operators.engines import pool_rig as rig

RECKONED = {"a": 30, "b": 40, "c": 60, "d": 90}
WEIGHS = {"a": 30, "b": 50, "c": 55, "d": 95}
BUDGET, HEADROOM = 100, 20
names, which = st.sampled_from("abcd"), st.integers(0, 9)


class Machine(RuleBasedStateMachine):
    """Users, an administrator, the upkeep, a machine that runs out of memory, and engines that fail and die."""

    @initialize(
        sleeps=st.booleans(),
        pinned=st.sampled_from(["", "a"]),
        preload=st.sets(names),
        costs=st.lists(st.sampled_from([0.1, 1.0, 20.0]), min_size=4, max_size=4),
        idle_s=st.sampled_from([0, 50]),
    )
    def begin(self, sleeps: bool, pinned: str, preload: set[str], costs: list[float], idle_s: float) -> None:
        self.loop = asyncio.new_event_loop()
        marks = {name: {"preload": name in preload, "pin": name == pinned} for name in RECKONED}
        kind = rig.Sleeper if sleeps else rig.Scripted
        knobs = {"budget_bytes": BUDGET, "headroom_bytes": HEADROOM, "idle_s": idle_s}
        self.rig = rig.Rig(RECKONED, kind, marks, **knobs)
        self.rig.weighs, self.rig.takes = dict(WEIGHS), dict(zip(RECKONED, costs, strict=True))
        self.users: list[Any] = []
        self.asked: list[asyncio.Task[None]] = []
        self.run(self.rig.pool.start())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Do ``work`` and all that follows from it."""

        async def body() -> Any:
            done = await work
            await rig.settle()
            return done

        return self.loop.run_until_complete(body())

    def ask(self, work: Coroutine[Any, Any, None]) -> None:
        """Do ``work`` beside everything else."""

        async def begin() -> None:
            self.asked.append(asyncio.create_task(work))

        self.run(begin())

    @rule(name=names)
    def lease(self, name: str) -> None:
        self.users.append(self.run(rig.use(self.rig, name)))

    @rule(some=st.lists(names, min_size=2, max_size=4))
    def lease_at_once(self, some: list[str]) -> None:
        async def all_of_them() -> None:
            self.users += [rig.User(self.rig, name) for name in some]

        self.run(all_of_them())

    @rule(i=which)
    def end(self, i: int) -> None:
        if having := [user for user in self.users if user.engine is not None]:
            self.run(having[i % len(having)].end())

    @rule(i=which)
    def cancel(self, i: int) -> None:
        async def go_away() -> None:
            self.users[i % len(self.users)].task.cancel()

        if self.users:
            self.run(go_away())

    @rule(name=names, held=st.booleans())
    def hold(self, name: str, held: bool) -> None:
        (self.rig.held.add if held else self.rig.held.discard)(name)

    @rule(name=names)
    def go(self, name: str) -> None:
        async def let_go() -> None:
            for engine in self.rig.of(name):
                engine.go.set()

        self.run(let_go())

    @rule(name=st.sampled_from([*RECKONED, "wake"]), error=st.sampled_from([None, Stop("e", "no", "mend"), OSError()]))
    def fail(self, name: str, error: Exception | None) -> None:
        self.rig.fails.pop(name, None)
        if error is not None:
            self.rig.fails[name] = error

    @rule(name=names, told=st.booleans())
    def die(self, name: str, told: bool) -> None:
        async def lost() -> None:
            for engine in self.rig.of(name)[-1:]:
                engine.dead = True
                if told:
                    self.rig.pool.lost(name, engine)

        self.run(lost())

    @rule(seconds=st.sampled_from([1.0, 10.0, 100.0]))
    def tend(self, seconds: float) -> None:
        self.rig.now += seconds
        self.run(self.rig.pool.tend())

    @rule(free=st.sampled_from([0, 20, 60, 120, rig.PLENTY]))
    def memory(self, free: int) -> None:
        self.rig.free = free

    @rule(name=names)
    def load(self, name: str) -> None:
        self.ask(self.rig.pool.load(name))

    @rule(name=names)
    def unload(self, name: str) -> None:
        self.ask(self.rig.pool.unload(name))

    @invariant()
    def it_keeps_its_promises(self) -> None:
        pool, engines = self.rig.pool, self.rig.engines
        assert pool.bytes()[0] <= BUDGET
        weight = {"running": WEIGHS, "starting": RECKONED}
        taken = sum(weight[e.state][e.tier] for e in engines if e.state in weight)
        assert taken + sum(e.rest for e in engines if e.state == "asleep") <= BUDGET
        for engine in engines:
            assert engine.closed == (engine.state == "closed")
        for user in self.users:
            assert user.engine is None or user.engine.state == "running" or user.engine.dead
        for status in pool.status():
            live = [engine for engine in self.rig.of(status.tier) if engine.state in ("running", "asleep")]
            assert len(live) <= 1
            assert status.leases == sum(user.engine in live for user in self.users)
            assert status.waiting == 0 or status.state == "loading"
            assert not status.pinned or status.evictions == 0
        for task in [user.task for user in self.users] + self.asked:
            if task.done() and not task.cancelled():
                assert isinstance(task.exception(), Retry | Stop | None)
        self.users = [user for user in self.users if not user.task.done()]
        self.asked = [task for task in self.asked if not task.done()]

    def teardown(self) -> None:
        if not hasattr(self, "rig"):
            return
        r = self.rig
        for task in [user.task for user in self.users] + self.asked:
            task.cancel()
        r.held, r.fails, r.free, r.now = set(), {}, rig.PLENTY, r.now + 1e5
        for engine in r.engines:
            engine.go.set()
            engine.dead = False
        self.run(r.pool.tend())
        for name, need in RECKONED.items():  # nothing is stuck: everything that fits can be used again
            pinned = 30 if r.status("a").pinned and name != "a" else 0
            if max(need, WEIGHS[name]) + pinned <= BUDGET:
                self.run(r.touch(name))
        assert self.run(r.pool.drain(0.0)) == 0
        assert all(engine.closed == 1 and engine.state == "closed" for engine in r.engines)
        assert r.pool.bytes()[0] == 0
        assert not asyncio.all_tasks(self.loop)
        self.loop.close()


def test_any_order_of_events() -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
