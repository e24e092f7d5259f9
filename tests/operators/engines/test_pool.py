"""The pool's promises, one by one, on scripted engines and a clock the test holds."""

from __future__ import annotations

import asyncio

import pytest

from operators.engines.pool.pool import Pool
from operators.engines.pool.pressure import Room
from operators.errors import Retry, Stop
from tests.operators.engines import pool_rig as rig

Rig, settle, use = rig.Rig, rig.settle, rig.use


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


# -------------------------------------------------------------------------------------------------------------- loading


async def test_all_who_ask_wait_for_one_load_and_a_cancelled_one_disturbs_nobody() -> None:
    r = Rig({"a": 40})
    r.held = {"a"}
    users = [await use(r, "a") for _ in range(3)]
    assert (r.status("a").state, r.status("a").waiting, len(r.engines)) == ("loading", 3, 1)
    users[0].task.cancel()
    await settle()
    assert (r.status("a").waiting, users[0].task.cancelled()) == (2, True)
    r.engines[0].go.set()
    await settle()
    assert [user.engine for user in users[1:]] == [r.engines[0]] * 2
    status = r.status("a")
    assert (status.state, status.leases, status.loads, status.load_s) == ("ready", 2, 1, 1.0)
    assert status.last_used == r.now + 1e9
    assert r.told == [("a", "loading"), ("a", "ready")]
    for user in users[1:]:
        await user.end()
    assert r.status("a").leases == 0


async def test_a_load_holds_no_other_load_up() -> None:
    r = Rig({"a": 40, "b": 40})
    r.held = {"a"}
    slow, quick = await use(r, "a"), await use(r, "b")
    assert (slow.engine, r.status("b").leases) == (None, 1)
    r.engines[0].go.set()
    await slow.end()
    await quick.end()


async def test_what_is_larger_than_the_budget_is_refused_and_not_tried() -> None:
    r = Rig({"a": 40, "b": 101})
    await r.pool.start()
    assert r.pool.available() == {"a": True, "b": False}
    with pytest.raises(Stop, match=r"tier b: model model-b takes .* the budget is .*; raise budget_bytes"):
        await r.touch("b")
    with pytest.raises(Stop):
        await r.pool.load("b")
    assert r.engines == []
    assert (r.status("b").state, "budget" in r.status("b").reason) == ("failed", True)


async def test_the_budget_follows_from_the_machine_if_none_is_given() -> None:
    assert Pool.Config().budget(Room(total_bytes=1000, free_bytes=1, limit="rig")) == 500
    assert Pool.Config(budget_bytes=7).budget(Room(total_bytes=1000, free_bytes=1, limit="rig")) == 7


async def test_what_was_measured_counts_once_it_is_loaded() -> None:
    r = Rig({"a": 60, "b": 60})
    r.weighs = {"a": 30, "b": 60}
    await r.touch("a", "b")
    assert r.pool.bytes() == (90, 100)
    assert (r.status("a").bytes, r.status("a").estimate) == (30, 60)


async def test_one_that_is_larger_than_reckoned_makes_others_go_or_waits_like_them() -> None:
    r = Rig({"a": 50, "b": 50})
    r.weighs["b"] = 70
    await r.touch("a", "b")
    assert r.pool.loaded() == ("b",)
    await r.touch("a")
    user = await use(r, "a")
    other = await use(r, "b")
    assert (other.engine, r.pool.loaded(), len(r.of("b"))) == (None, ("a",), 1)  # 70 are asked for from now on
    await user.end()
    await settle()
    assert other.engine is r.of("b")[1]
    await other.end()


async def test_one_that_turns_out_larger_beside_what_is_in_use_is_closed_and_waits() -> None:
    r = Rig({"a": 50, "b": 50})
    r.weighs["b"] = 70
    user = await use(r, "a")
    other = await use(r, "b")
    assert [engine.state for engine in r.of("b")] == ["closed"]
    assert (r.pool.bytes()[0], r.status("b").state) == (50, "loading")
    await user.end()
    await settle()
    assert (other.engine.state, r.pool.bytes()[0]) == ("running", 70)
    await other.end()


# ---------------------------------------------------------------------------------------------------------- making room


async def test_the_least_used_goes_and_no_more_than_needed() -> None:
    r = Rig({"a": 30, "b": 30, "c": 30, "d": 30})
    await r.touch("a", "b", "c", "a")
    await r.touch("d")
    assert r.pool.loaded() == ("a", "c", "d")
    assert (r.of("b")[0].closed, r.status("b").evictions) == (1, 1)


@pytest.mark.parametrize(("takes", "loaded"), [(60.0, ("a", "c")), (2.5, ("b", "c"))])
async def test_what_takes_long_to_load_stays_longer_but_not_for_ever(takes: float, loaded: tuple[str, ...]) -> None:
    r = Rig({"a": 40, "b": 40, "c": 40})
    r.takes = {"a": takes}
    await r.touch("a", "b", "c", "b", "c")
    assert r.pool.loaded() == loaded


async def test_what_is_in_use_stays_until_the_deadline_refuses_the_other() -> None:
    r = Rig({"a": 60, "b": 60}, wait_s=1000)
    user, other = await use(r, "a"), await use(r, "b")
    r.now += 999.9
    await r.pool.tend()
    await settle()
    assert (other.task.done(), r.of("b"), r.of("a")[0].closed) == (False, [], 0)
    r.now += 0.1
    await r.pool.tend()
    with pytest.raises(Retry, match="of the budget are left") as caught:
        await other.task
    assert (caught.value.retry_after_s, caught.value.status) == (1000.0, 503)
    assert r.status("b").state == "absent"
    await user.end()


async def test_the_end_of_a_lease_makes_room_for_who_waits() -> None:
    r = Rig({"a": 60, "b": 60})
    user, other = await use(r, "a"), await use(r, "b")
    await user.end()
    await settle()
    assert (r.of("a")[0].closed, other.engine) == (1, r.of("b")[0])
    await other.end()


async def test_nobody_has_to_go_for_one_who_no_longer_waits() -> None:
    r = Rig({"a": 60, "b": 60})
    user, other = await use(r, "a"), await use(r, "b")
    other.task.cancel()
    await settle()
    assert r.status("b").state == "absent"
    await user.end()
    await settle()
    assert (r.pool.loaded(), r.of("b")) == (("a",), [])


async def test_nothing_goes_where_that_would_not_be_enough() -> None:
    r = Rig({"a": 50, "b": 30, "c": 80})
    await r.touch("b")
    user, other = await use(r, "a"), await use(r, "c")
    assert r.pool.loaded() == ("a", "b")
    other.task.cancel()
    await user.end()


async def test_room_that_is_just_being_made_is_not_taken_twice() -> None:
    r = Rig({"a": 50, "b": 50, "c": 50, "d": 50})
    await r.touch("a", "b")
    users = [rig.User(r, "c"), rig.User(r, "d")]  # both look for room before anything is closed
    await settle()
    assert [user.engine.tier for user in users] == ["c", "d"]
    assert [r.of(name)[0].closed for name in "abcd"] == [1, 1, 0, 0]
    for user in users:
        await user.end()


async def test_room_that_is_being_made_for_one_is_not_taken_by_a_smaller_one() -> None:
    r = Rig({"a": 60, "b": 80, "c": 30})
    await r.touch("a")
    large, small = rig.User(r, "b"), rig.User(r, "c")  # while a is closed, 40 are free
    await settle()
    assert (large.engine, small.engine) == (r.of("b")[0], None)
    await large.end()
    await settle()
    await small.end()


async def test_what_was_loaded_for_somebody_stays_until_he_had_it() -> None:
    r = Rig({"a": 60, "b": 60})
    r.held = {"a"}
    first, second = await use(r, "a"), await use(r, "b")
    r.engines[0].go.set()  # from here on b could have a's room, but for the one who waits for a
    await settle()
    assert (first.engine, second.engine, len(r.engines)) == (r.engines[0], None, 1)
    await first.end()
    await settle()
    await second.end()


async def test_what_is_being_closed_is_loaded_anew_for_who_asks_meanwhile() -> None:
    r = Rig({"a": 60, "b": 60})
    await r.touch("a")
    first = rig.User(r, "b")
    while r.status("a").state != "draining":
        await asyncio.sleep(0)
    second = rig.User(r, "a")
    await settle()
    await first.end()
    await settle()
    assert second.engine is r.of("a")[1]
    await second.end()
