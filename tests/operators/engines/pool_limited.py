"""A process with limited memory, in which a pool of real engines has to live; test_pool_real.py runs it.

``python pool_limited.py FOLDER [CGROUP]``: prints what it saw as JSON. The limit is on the address space, with engines
in this process; or that of the cgroup in the directory ``CGROUP``, which it joins, with engines in their own processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import mmap
import resource
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import gguf

from operators.engines.files.models import open_model
from operators.engines.make import make_engine, make_here
from operators.engines.pool import sizing
from operators.engines.pool.pool import Pool
from operators.engines.pool.pressure import room
from operators.engines.ports import Engine
from operators.errors import Retry
from operators.tiers import Tier

MIB = 1 << 20
HEADROOM = 64 * MIB


def beside(name: str) -> ModuleType:
    """A helper file of this folder."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


kit, tiny = beside("kit"), beside("tiny_gguf")


def limit(group: Path | None) -> None:
    """Leave ``4 · HEADROOM`` more than is taken now."""
    if group is None:
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
        resource.setrlimit(resource.RLIMIT_AS, (taken + 4 * HEADROOM, resource.RLIM_INFINITY))
        return
    new = (group / "memory.max").exists()
    used = int((group / ("memory.current" if new else "memory.usage_in_bytes")).read_text())
    (group / ("memory.max" if new else "memory.limit_in_bytes")).write_text(str(used + 4 * HEADROOM))


async def main(folder: Path, group: Path | None) -> dict[str, Any]:
    """Load three, take the memory away, look, give it back, look again."""
    if group is not None:
        (group / "cgroup.procs").write_text("0")
    files = contextlib.ExitStack()

    def make(tier: Tier) -> Engine:
        if group is not None:
            return make_engine("llama_cpp", tier.model, folder, context_tokens=tier.context_tokens, threads=1)
        opened = files.enter_context(open_model(tier.model, folder))
        return make_here("llama_cpp", opened, folder, context_tokens=tier.context_tokens, threads=1)

    tiers = [
        Tier(
            name=f"t{seed}",
            slot=seed,
            model=tiny.write(gguf, folder / f"{seed}.gguf", seed=seed),
            engine="llama_cpp",
            template="chatml",
            context_tokens=4096,
        )
        for seed in range(3)
    ]
    pool = Pool(
        Pool.Config(budget_bytes=1 << 40, headroom_bytes=HEADROOM),
        tiers,
        make,
        lambda tier: sizing.expected(tier, folder),
    )
    seen: dict[str, Any] = {}
    await pool.start()
    seen["loaded"] = pool.loaded()

    async def answer(engine: Engine) -> str:
        return str(await kit.text_of(engine, kit.request(engine, max_tokens=20)))

    async with pool.lease("t1") as engine:
        seen["answer"] = await answer(engine)
    limit(group)
    seen["limit"] = room().limit
    async with pool.lease("t0") as engine:
        first = await answer(engine)
        others, seen["freed"] = [], []
        while room().free_bytes >= HEADROOM:  # somebody else in the process takes more and more
            others.append(mmap.mmap(-1, 4 * MIB))
            others[-1].write(bytes(4 * MIB))  # a cgroup counts what was written to
            before, had = room().free_bytes, pool.loaded()
            await pool.tend()
            if pool.loaded() != had:
                seen["freed"].append(room().free_bytes - before)
        seen["shrunk"] = pool.loaded()
        seen["same"] = first == await answer(engine)
    try:
        async with pool.lease("t1"):
            seen["refused"] = ""
    except Retry as error:
        seen["refused"] = str(error)
    for other in others:
        other.close()
    async with pool.lease("t1") as engine:
        seen["again"] = await answer(engine)
    await pool.close()
    files.close()
    return seen


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None))))
