"""The pool with real engines: more models than room, and a process whose memory ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import pytest

from operators.engines.files.models import open_model
from operators.engines.make import make_engine, make_here
from operators.engines.pool import pressure, sizing
from operators.engines.pool.pool import Pool
from operators.engines.ports import Engine
from operators.tiers import Tier
from tests.operators.engines import kit
from tests.operators.engines import tiny_gguf as tiny

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


async def answer(engine: Engine) -> str:
    return str(await kit.text_of(engine, kit.request(engine, max_tokens=20)))


@pytest.mark.slow
async def test_three_models_in_room_for_two(tmp_path: Path) -> None:
    def make(tier: Tier) -> Engine:
        return make_engine(tier.engine, tier.model, tmp_path, context_tokens=tier.context_tokens, threads=1)

    tiers = [
        Tier(
            name=f"t{seed}",
            slot=seed,
            model=tiny.write(gguf, tmp_path / f"{seed}.gguf", seed=seed),
            engine="llama_cpp",
            template="chatml",
            context_tokens=256,
            preload=False,
        )
        for seed in range(3)
    ]
    right = {}
    for tier in tiers:
        with open_model(tier.model, tmp_path) as opened:
            alone = make_here("llama_cpp", opened, tmp_path, context_tokens=256, threads=1)
            await alone.start()
            right[tier.name] = await answer(alone)
            await alone.close()
    assert len(set(right.values())) == 3
    one = make(tiers[0])
    await one.start()
    measured = one.memory_bytes()
    await one.close()
    need = max(measured, await sizing.expected(tiers[0], tmp_path))
    budget, most = 2 * measured + need // 2, 0

    def watch(tier: str, state: str) -> None:
        nonlocal most
        most = max(most, pool.bytes()[0])

    config = Pool.Config(budget_bytes=budget, headroom_bytes=0, wait_s=120)
    pool = Pool(config, tiers, make, lambda tier: sizing.expected(tier, tmp_path), on_progress=watch)
    await pool.start()

    async def ask(name: str) -> tuple[str, str]:
        async with pool.lease(name) as engine:
            return name, await answer(engine)

    try:
        answers = await asyncio.gather(*(ask(tier.name) for tier in tiers * 3))
        assert [text == right[name] for name, text in answers] == [True] * 9
        status = {one.tier: one for one in pool.status()}
        gone = [name for name, one in status.items() if one.evictions]
        assert gone
        assert len(pool.loaded()) == 2
        assert await ask(gone[0]) == (gone[0], right[gone[0]])
        assert all(one.leases == one.waiting == one.deaths == 0 for one in pool.status())
        async with pool.lease(gone[0]) as engine:
            os.kill(engine.pid, signal.SIGKILL)  # type: ignore[attr-defined]
            await pool.probe(gone[0])
        assert await ask(gone[0]) == (gone[0], right[gone[0]])
        assert {one.tier: one.deaths for one in pool.status()}[gone[0]] == 1
        assert 0 < most <= budget
    finally:
        await pool.close()
    assert pool.bytes()[0] == 0


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup for memory of our own, in ours; skips where we can't make one."""
    root, mount = Path("/"), Path("/sys/fs/cgroup")
    ours = [*pressure._groups(root, mount / "memory", "memory"), *pressure._groups(root, mount, "")]
    group = ours[0] / f"ruvllm-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made: {error}")
    try:
        if not any((group / name).exists() for name in ("memory.max", "memory.limit_in_bytes")):
            pytest.skip("the cgroup has no limit of memory")
        yield group
    finally:
        group.rmdir()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["address space", "cgroup"])
def test_a_process_that_runs_out_of_memory_shrinks_instead_of_dying(
    tmp_path: Path, kind: str, request: pytest.FixtureRequest
) -> None:
    script = Path(__file__).with_name("pool_limited.py")
    group = [str(request.getfixturevalue("cgroup"))] if kind == "cgroup" else []
    # One arena: by default each thread of malloc's reserves 64 MiB of addresses, and the limit counts addresses.
    env = {**os.environ, "PYTHONPATH": str(ROOT), "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), *group], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["loaded"] == ["t0", "t1", "t2"]
    assert seen["limit"] == (f"cgroup {group[0]}" if group else "RLIMIT_AS")
    assert seen["shrunk"] == ["t0"]  # which was in use, and answers as before
    assert seen["same"]
    assert len(seen["freed"]) == 2  # one after the other, each when memory ended
    assert min(seen["freed"]) > 4 << 20
    assert "kept free" in seen["refused"]
    assert seen["again"] == seen["answer"] != ""
