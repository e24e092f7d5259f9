"""The pool's upkeep: memory that ends, models nobody uses, engines that die."""

from __future__ import annotations

import asyncio

import pytest

from operators.errors import Retry
from tests.operators.engines import pool_rig as rig

Rig, settle, use = rig.Rig, rig.settle, rig.use
KEPT = {"a": {"preload": True}}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


# --------------------------------------------------------------------------------------------------------- memory, time


async def test_lack_of_memory_makes_idle_models_go_before_a_load_or_refuses_it() -> None:
    r = Rig({"a": 40, "b": 40, "c": 40}, budget_bytes=1000, headroom_bytes=50)
    r.free = 140
    await r.touch("a", "b")
    assert r.free == 60
    await r.touch("c")  # 30 are short: one of them is enough
    assert (r.pool.loaded(), r.free) == (("b", "c"), 60)
    r.free = 5
    with pytest.raises(Retry, match="kept free"):
        await r.touch("a")
    assert r.pool.loaded() == ("b", "c")  # both would free 80, and 85 are short


async def test_memory_that_a_load_has_yet_to_take_is_not_there_for_another() -> None:
    r = Rig({"a": 100, "b": 100}, budget_bytes=1000)
    r.free, r.held = 150, {"a"}
    first, second = await use(r, "a"), await use(r, "b")
    assert (r.free, r.of("b")) == (150, [])
    r.engines[0].go.set()
    await settle()
    await first.end()
    await settle()
    assert second.engine is r.of("b")[0]
    await second.end()


async def test_upkeep_shrinks_before_memory_ends() -> None:
    r = Rig({"a": 40, "b": 40, "c": 40}, budget_bytes=1000, headroom_bytes=50)
    user = await use(r, "a")
    await r.touch("b", "c")
    r.free = 49
    await r.pool.tend()
    assert (r.pool.loaded(), r.free) == (("a", "c"), 89)
    r.free = 0
    await r.pool.tend()
    assert (r.pool.loaded(), r.free) == (("a",), 40)  # not enough, and yet better than nothing
    await r.pool.tend()
    assert (r.pool.loaded(), user.engine.state) == (("a",), "running")
    await user.end()
    await r.pool.tend()
    assert r.pool.loaded() == ()


async def test_upkeep_measures_again() -> None:
    r = Rig({"a": 40, "b": 40})
    await r.touch("a", "b")
    r.weighs["b"] = 70
    await r.pool.tend()
    assert (r.pool.loaded(), r.pool.bytes()[0], r.status("b").estimate) == (("b",), 70, 70)


async def test_what_nobody_uses_goes_but_what_is_pinned() -> None:
    r = Rig({"a": 20, "b": 20, "c": 20}, idle_s=60, marks={"c": {"pin": True}})
    await r.touch("a", "b", "c")
    user = await use(r, "a")
    r.now += 59
    await r.touch("b")
    r.now += 1
    await r.pool.tend()
    assert r.pool.loaded() == ("a", "b", "c")
    await user.end()
    r.now += 59
    await r.pool.tend()
    assert r.pool.loaded() == ("a", "c")
    r.now += 1
    await r.pool.tend()
    assert r.pool.loaded() == ("c",)


# --------------------------------------------------------------------------------------------------------------- deaths


@pytest.mark.parametrize("kept", [False, True])
async def test_a_dead_engine_is_closed_and_replaced(kept: bool) -> None:
    r = Rig({"a": 40}, marks=KEPT if kept else None)
    user = await use(r, "a")
    r.engines[0].dead = True
    await r.pool.tend()
    await settle()
    assert (r.engines[0].closed, r.status("a").deaths) == (1, 1)
    assert len(r.engines) == (2 if kept else 1)
    await user.end()  # its lease was on the old one
    await r.touch("a")
    assert (len(r.engines), r.status("a").leases, r.status("a").loads) == (2, 0, 2)
    r.pool.lost("a", r.engines[0])  # known already
    assert (r.status("a").deaths, r.engines[1].closed) == (1, 0)


async def test_a_check_that_does_not_end_is_a_death() -> None:
    r = Rig({"a": 40}, check_s=1e-6)
    await r.touch("a")
    r.engines[0].check = asyncio.Event().wait
    await r.pool.probe("a")
    await settle()
    assert (r.engines[0].closed, r.status("a").deaths, "TimeoutError" in r.status("a").reason) == (1, 1, True)


async def test_a_check_that_does_not_end_keeps_nobody_from_making_room() -> None:
    before = asyncio.all_tasks()
    r = Rig({"a": 40, "b": 40}, headroom_bytes=50)
    user = await use(r, "a")
    await r.touch("b")
    asked = []
    r.engines[0].check = lambda: asked.append(1) or asyncio.Event().wait()
    await r.pool.tend()
    r.free = 49
    await r.pool.tend()
    assert (r.pool.loaded(), asked) == (("a",), [1])  # asked once: it has yet to answer
    await user.end()
    await r.pool.close()
    await settle()
    assert asyncio.all_tasks() == before


async def test_one_that_dies_again_and_again_is_left_alone_for_a_while() -> None:
    r = Rig({"a": 40}, marks=KEPT, retry_s=30)
    await r.pool.start()
    r.pool.lost("a", r.engines[0])
    await settle()
    assert r.status("a").state == "ready"
    r.pool.lost("a", r.engines[1], "ended by SIGSEGV")
    await settle()
    assert (r.status("a").state, len(r.engines)) == ("failed", 2)
    with pytest.raises(Retry, match="SIGSEGV") as caught:
        await r.touch("a")
    assert caught.value.retry_after_s == 30
    assert "died: ended by SIGSEGV; wait 30 s, or load it now" in r.status("a").reason
    r.now += 30
    await r.pool.tend()
    await settle()
    assert r.status("a").state == "ready"
    r.now += 30
    r.pool.lost("a", r.engines[2])  # lived long enough
    await settle()
    assert (r.status("a").state, r.status("a").deaths) == ("ready", 3)
