"""Sessions, admission and API keys: what stands between the HTTP door and the first stage."""

import asyncio
import contextlib
import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from pydantic import SecretStr

from operators.errors import Reject, Retry, Stop
from operators.records import SessionState, Verdict, encode
from operators.stores.sqlite_log import SqliteLog
from operators.stores.topics import JUDGEMENTS, create_topics
from pipeline.guard import Guard, admin_key
from pipeline.limits import Admission
from pipeline.sessions import Sessions
from pipeline.verdicts import Verdicts


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def state(turn):
    return SessionState(turn=turn, hidden=np.full(64, turn, np.float32))


def test_a_session_belongs_to_its_tenant():
    sessions = Sessions(10, 60.0, Clock())
    sessions.put("a", "s", state(3))
    assert sessions.get("a", "s").turn == 3
    assert sessions.get("b", "s").turn == 0
    assert not sessions.get("b", "s").hidden.any()


def test_sessions_are_forgotten_by_age():
    clock = Clock()
    sessions = Sessions(10, 60.0, clock)
    sessions.put("a", "s", state(3))
    clock.now = 61.0
    assert sessions.get("a", "s").turn == 0


def test_the_least_recently_used_session_goes_first():
    sessions = Sessions(2, 60.0, Clock())
    for name in ("x", "y"):
        sessions.put("a", name, state(1))
    sessions.put("a", "x", state(2))
    sessions.put("a", "z", state(1))
    assert len(sessions) == 2
    assert (sessions.get("a", "x").turn, sessions.get("a", "y").turn) == (2, 0)


def test_a_verdict_on_the_last_turn_is_known_at_the_next(tmp_path):
    def verdict(tenant, interaction, score):
        said = Verdict(
            event_id=f"v{interaction}{score}", interaction_id=interaction, tenant=tenant, session="s", created_at=1.0,
            status="judged" if score is not None else "unjudged", score=score, uncertainty=None, judge="j",
        )  # fmt: skip
        log.append(JUDGEMENTS, f"{tenant}|s", encode(said), {})

    with contextlib.closing(SqliteLog(tmp_path / "events.db")) as log:
        log.open()
        create_topics(log, 2)
        sessions = Sessions(10, 60.0, Clock())
        sessions.put("a", "s", dataclasses.replace(state(3), last_interaction="i3"))
        sessions.put("b", "s", dataclasses.replace(state(1), last_interaction="i3"))
        verdict("a", "i3", 0.1)
        follower = Verdicts(log, sessions)

        def look():
            for each in follower.read():
                follower.tell(each)
            return sessions.get("a", "s").last_verdict, sessions.get("b", "s").last_verdict

        assert look() == (None, None), "what was there before is of sessions that nobody knows"
        verdict("a", "i2", 0.2)
        log.append(JUDGEMENTS, "a|s", b"not json", {})
        verdict("a", "i3", None)
        assert look() == (None, None), "another turn's, a broken one, and one without a score"
        verdict("a", "i3", 0.9)
        verdict("c", "i3", 0.4)
        assert look() == (0.9, None)
        sessions.put("a", "s", dataclasses.replace(state(4), last_interaction="i4"))
        assert look() == (None, None)


async def test_the_line_is_bounded_and_says_when_to_come_back():
    gate = Admission(1, 1, 2.5)
    leave = asyncio.Event()

    async def hold():
        async with gate.admit():
            await leave.wait()

    tasks = [asyncio.create_task(hold()) for _ in range(2)]
    while gate.waiting != 1 or gate.active != 1:
        await asyncio.sleep(0)
    with pytest.raises(Retry, match="1 requests running and 1 waiting") as caught:
        async with gate.admit():
            pytest.fail("a third request got in")
    assert (caught.value.status, caught.value.retry_after_s) == (429, 2.5)
    leave.set()
    await asyncio.gather(*tasks)
    assert (gate.active, gate.waiting) == (0, 0)
    async with gate.admit():
        assert gate.active == 1


async def test_a_request_that_gives_up_waiting_leaves_the_line():
    gate = Admission(1, 5)
    async with gate.admit():
        waiter = asyncio.create_task(gate.admit().__aenter__())
        while gate.waiting != 1:
            await asyncio.sleep(0)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert gate.waiting == 0
    async with gate.admit():
        assert gate.active == 1


def test_without_keys_everyone_is_the_default_tenant():
    assert Guard({}, "admin").tenant(None) == "default"


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer wrong", "Basic k-one", "k-one", "Bearer k-oneX"])
def test_a_wrong_key_is_refused(header):
    with pytest.raises(Reject) as caught:
        Guard({SecretStr("k-one"): "one"}, "admin").tenant(header)
    assert caught.value.status == 401


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic k", "k", "Bearer k-one"])
def test_only_the_administrator_s_key_opens_its_door(header):
    guard = Guard({SecretStr("k-one"): "one"}, "k")
    with pytest.raises(Reject) as caught:
        guard.admin(header)
    assert (caught.value.status, caught.value.code) == (401, "invalid_admin_key")
    guard.admin("Bearer k")


def test_the_administrator_s_key_is_made_once_and_is_its_owner_s(tmp_path, monkeypatch):
    monkeypatch.delenv("RUVLLM_ADMIN_KEY", raising=False)
    with ThreadPoolExecutor(8) as pool:  # as several gateways start at once
        keys = set(pool.map(lambda _: admin_key(tmp_path), range(8)))
    assert len(keys) == 1
    (file,) = tmp_path.iterdir()
    assert file.read_text() in keys
    assert len(file.read_text()) >= 32
    assert file.stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv("RUVLLM_ADMIN_KEY", " mine ")
    assert admin_key(tmp_path) == "mine"


def test_an_empty_key_file_is_no_key_that_everyone_has(tmp_path, monkeypatch):
    monkeypatch.delenv("RUVLLM_ADMIN_KEY", raising=False)
    (tmp_path / "admin-key").touch()
    with pytest.raises(Stop, match=r"admin-key is empty; remove it"):
        admin_key(tmp_path)


def test_a_key_names_its_tenant():
    guard = Guard({SecretStr("k-one"): "one", SecretStr("k-two"): "two"}, "admin")
    assert guard.tenant("Bearer k-two") == "two"
    assert guard.tenant("bearer k-one") == "one"
