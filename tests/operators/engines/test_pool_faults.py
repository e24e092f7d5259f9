"""The pool when loads fail and engines die, and what its owner can ask of it."""

from __future__ import annotations

import asyncio

import pytest

from operators.errors import Retry, Stop
from tests.operators.engines import pool_rig as rig

Rig, Sleeper, settle, use = rig.Rig, rig.Sleeper, rig.settle, rig.use
DAMAGED = Stop("model model-a", "checksum differs", "download it again")
KEPT = {"a": {"preload": True}}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


# ------------------------------------------------------------------------------------------------------------- failures


async def test_a_failed_load_is_remembered_left_alone_and_tried_again() -> None:
    r = Rig({"a": 40, "b": 40}, retry_s=30)
    r.fails["a"], r.held = DAMAGED, {"a"}
    users = [await use(r, "a") for _ in range(2)]
    r.engines[0].go.set()
    for user in users:
        with pytest.raises(Retry, match="checksum differs") as caught:
            await user.task
        assert caught.value.retry_after_s == 30
    assert (r.engines[0].closed, r.status("a").state, r.pool.bytes()[0]) == (1, "failed", 0)
    assert "download it again" in r.status("a").reason
    r.held = set()
    await r.touch("b")
    r.now += 10
    with pytest.raises(Retry) as caught:
        await r.touch("a")
    assert (caught.value.retry_after_s, len(r.of("a"))) == (19.0, 1)  # b took a second
    assert r.pool.available() == {"a": False, "b": True}
    r.now += 19
    assert r.pool.available() == {"a": True, "b": True}
    with pytest.raises(Retry) as caught:
        await r.touch("a")
    assert (caught.value.retry_after_s, len(r.of("a"))) == (60, 2)  # doubled
    with pytest.raises(Stop, match="checksum differs"):
        await r.pool.load("a")  # asked for, so at once
    del r.fails["a"]
    await r.pool.load("a")
    assert (r.status("a").state, r.status("a").reason, [e.closed for e in r.of("a")]) == ("ready", "", [1, 1, 1, 0])
    await r.pool.close()


async def test_an_engine_that_raises_what_it_should_not_fails_alone() -> None:
    r = Rig({"a": 40, "b": 40})
    r.fails["a"] = ZeroDivisionError("by zero")
    with pytest.raises(Retry, match="ZeroDivisionError: by zero"):
        await r.touch("a")
    await r.touch("b")


async def test_a_file_that_is_missing_is_a_failed_load_and_upkeep_looks_again() -> None:
    r = Rig({"a": 40, "b": 40}, marks=KEPT | {"b": {"preload": True}}, retry_s=30)
    r.reckoned["a"] = -1
    await r.pool.start()
    assert (r.pool.loaded(), r.pool.available()) == (("b",), {"a": False, "b": True})
    assert "fetch it" in r.status("a").reason
    r.reckoned["a"] = 40
    await r.pool.tend()
    await settle()
    assert r.pool.loaded() == ("b",)
    r.now += 30
    await r.pool.tend()
    await settle()
    assert r.pool.loaded() == ("a", "b")


# ------------------------------------------------------------------------------------------------------- start and ends


async def test_the_start_loads_what_is_pinned_first_and_makes_nobody_go() -> None:
    marks = {"a": {"preload": True}, "b": {"preload": True}, "c": {"pin": True}}
    r = Rig({"a": 40, "b": 40, "c": 50, "d": 10}, marks=marks)
    await r.pool.start()
    assert [engine.tier for engine in r.engines] == ["c", "a"]
    assert (r.pool.loaded(), r.pool.available()["b"]) == (("a", "c"), True)
    await r.pool.tend()
    await settle()
    assert len(r.engines) == 2
    await r.touch("b")
    assert r.pool.loaded() == ("b", "c")


async def test_beside_what_is_pinned_there_may_be_no_place() -> None:
    r = Rig({"a": 60, "b": 50}, marks={"a": {"pin": True}})
    await r.pool.start()
    with pytest.raises(Stop, match="are pinned"):
        await r.touch("b")
    assert r.pool.available() == {"a": True, "b": False}


async def test_unload_waits_for_the_last_lease_or_gives_up() -> None:
    r = Rig({"a": 40, "b": 40})
    user = await use(r, "a")
    unloading = asyncio.create_task(r.pool.unload("a", 5))
    await settle()
    assert (r.status("a").state, r.pool.available()["a"]) == ("draining", False)
    with pytest.raises(Retry, match="unloaded"):
        await r.touch("a")
    r.now += 5
    await r.pool.tend()
    with pytest.raises(Retry, match="1 requests still use it"):
        await unloading
    assert r.status("a").state == "ready"
    unloading = asyncio.create_task(r.pool.unload("a", 5))
    await settle()
    await user.end()
    await unloading
    assert (r.engines[0].closed, r.status("a").state) == (1, "absent")
    await r.touch("a")
    assert len(r.engines) == 2
    await r.pool.unload("b")  # is not loaded
    with pytest.raises(Stop, match="tier 'z'"):
        await r.pool.unload("z")


async def test_a_cancelled_unload_leaves_the_model_in_use() -> None:
    r = Rig({"a": 40})
    user = await use(r, "a")
    unloading = asyncio.create_task(r.pool.unload("a", 5))
    await settle()
    unloading.cancel()
    await settle()
    assert r.status("a").state == "ready"
    await user.end()
    assert r.engines[0].closed == 0


async def test_drain_lets_requests_end_and_closes_everything() -> None:
    r = Rig({"a": 20, "b": 20, "c": 20}, marks=KEPT)
    r.held = {"c"}
    await r.touch("b")
    user, loading = await use(r, "a"), await use(r, "c")
    draining = asyncio.create_task(r.pool.drain(60))
    await settle()
    with pytest.raises(Retry, match="ending"):
        await r.touch("b")
    with pytest.raises(Retry, match="ending"):
        await loading.task
    assert (draining.done(), user.engine.state, r.of("c")[0].closed) == (False, "running", 1)
    await user.end()
    assert await draining == 0
    assert [engine.closed for engine in r.engines] == [1, 1, 1]
    await r.pool.tend()
    await r.pool.close()
    assert (len(r.engines), r.pool.available(), r.pool.bytes()[0]) == (3, dict.fromkeys("abc", False), 0)


async def test_drain_has_a_deadline() -> None:
    r = Rig({"a": 20})
    user = await use(r, "a")
    assert await r.pool.drain(0) == 1
    assert r.engines[0].closed == 1
    await user.end()


async def test_a_load_that_was_only_just_asked_for_ends_with_the_pool() -> None:
    r = Rig({"a": 20})
    r.held = {"a"}
    user = rig.User(r, "a")
    await asyncio.sleep(0)
    await r.pool.close()
    with pytest.raises(Retry, match="ending"):
        await user.task
    assert [engine.closed for engine in r.engines] == [1]


@pytest.mark.parametrize("wakes", [False, True])
async def test_the_pool_may_end_while_an_engine_that_failed_is_closed(wakes: bool) -> None:
    r = Rig({"a": 60, "b": 60}, kind=Sleeper)
    if wakes:
        await r.touch("a", "b")
    r.fails = {"a": DAMAGED, "wake": DAMAGED}
    user = rig.User(r, "a")
    while not (r.of("a") and r.of("a")[0].closed):
        await asyncio.sleep(0)
    assert r.of("a")[0].state != "closed"
    await r.pool.close()
    assert [(engine.closed, engine.state) for engine in r.engines] == [(1, "closed")] * len(r.engines)
    with pytest.raises(Retry):
        await user.task


# ------------------------------------------------------------------------------------------------------------- sleeping


async def test_an_engine_that_can_sleep_sleeps_and_wakes() -> None:
    r = Rig({"a": 60, "b": 60}, kind=Sleeper)
    await r.touch("a", "b")
    assert (r.status("a").state, r.status("a").bytes, r.pool.bytes()[0]) == ("asleep", 10, 70)
    assert (r.pool.loaded(), r.pool.available()["a"]) == (("b",), True)
    await r.touch("a")
    assert (r.of("a")[0].state, len(r.engines), r.status("b").state) == ("running", 2, "asleep")
    assert r.status("a").load_s == pytest.approx(0.1)
    await r.pool.close()
    assert [engine.closed for engine in r.engines] == [1, 1]


async def test_what_sleeps_is_closed_if_its_rest_is_needed() -> None:
    r = Rig({"a": 60, "b": 60, "c": 85}, kind=Sleeper)
    await r.touch("a", "b", "c")
    assert [r.status(name).state for name in "abc"] == ["absent", "asleep", "ready"]
    assert (r.of("a")[0].closed, r.pool.bytes()[0]) == (1, 95)


async def test_one_that_does_not_wake_is_loaded_anew() -> None:
    r = Rig({"a": 60, "b": 60}, kind=Sleeper)
    await r.touch("a", "b")
    r.fails["wake"] = OSError("no GPU")
    await r.touch("a")
    assert ([engine.closed for engine in r.of("a")], r.status("a").deaths, r.pool.bytes()[0]) == ([1, 0], 1, 70)


# -------------------------------------------------------------------------------------------------------------- telling


async def test_who_stands_in_for_whom() -> None:
    r = Rig({"a": 20, "b": 20, "c": 20, "d": 20})
    assert r.pool.fallback("b") == ()  # nothing has been reckoned yet
    await r.pool.start()
    assert r.pool.fallback("b") == ("a", "c", "d")  # none is loaded: those that could be
    await r.touch("a", "b", "d")
    assert r.pool.fallback("c") == ("b", "a", "d")
    assert r.pool.fallback("d") == ("b", "a")
    assert r.pool.fallback("a") == ("b", "d")
    assert r.pool.queues() == dict.fromkeys("abcd", 0)


async def test_an_engine_that_reports_its_progress_is_heard() -> None:
    r = Rig({"a": 20})
    r.held = {"a"}
    user = await use(r, "a")
    assert r.status("a").progress is None
    r.engines[0].progress = lambda: 0.25
    assert r.status("a").progress == 0.25
    assert r.pool.queues() == {"a": 1}
    r.engines[0].go.set()
    await user.end()
    assert r.status("a").progress is None
