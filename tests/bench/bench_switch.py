"""How long it takes until another model answers: one is unloaded from the pool, the other one loaded, in turns.

``warm``: the file is in the page cache. ``cold``: the kernel was told to drop it, and is asked afterwards how much it
still holds; the libraries stay cached. llama.cpp maps its weights, so a cold file is read while the model loads or
while the first token is computed: the first token's time counts both.
"""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import json
import mmap
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from operators.engines.files.models import resolve
from operators.engines.make import make_engine
from operators.engines.pool import sizing
from operators.engines.pool.config import PoolConfig
from operators.engines.pool.places import Sleeps
from operators.engines.pool.pool import Pool
from operators.engines.ports import Engine
from operators.tiers import ModelFile, Tier
from tests.bench.engine_kit import arguments, greedy, interval, shown, watched
from tests.operators.engines.weights import GEMMA, SMOLLM2

TIERS = {"135M": SMOLLM2, "270M": GEMMA}
WINDOW = 2048
DROPPED = 0.05
"""Share of the file that may stay in the page cache for it to count as dropped."""


def resident(path: Path) -> float:
    """Which share of the file is in the page cache, as the kernel says (mincore)."""
    size = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE) as view:
        array = np.frombuffer(view, np.uint8)
        pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        libc = ctypes.CDLL(None, use_errno=True)
        failed = libc.mincore(ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(size), pages)
        assert not failed, os.strerror(ctypes.get_errno())
        share = float(np.mean(np.frombuffer(bytes(pages), np.uint8) & 1))
        del array  # or the map could not be closed
    return share


def drop(path: Path) -> float:
    """Have the file dropped from the page cache; which share of it is there all the same."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return resident(path)


def warm(path: Path) -> float:
    """Read the file, so that it is in the page cache; which share of it then is."""
    path.read_bytes()
    return resident(path)


def own(model: ModelFile, folder: Path) -> ModelFile:
    """A copy of the file: the kernel drops nothing that another process has mapped."""
    path = folder / f"{model.id}.gguf"
    shutil.copyfile(resolve(model, folder), path)
    with path.open("rb") as file:
        os.fsync(file.fileno())  # nor what is not yet written
    return ModelFile(id=model.id, path=str(path), sha256=model.sha256)


async def first_token(engine: Engine) -> None:
    """A prompt of some 16 tokens, one token of answer."""
    tokens = (*engine.bos(), *engine.tokenize("The harbour of the small town was rebuilt in the year 1873, and then"))
    async for _ in engine.generate(greedy(tokens, 1)):
        pass


async def measure(report: dict[str, Any], rounds: int, threads: int) -> None:
    """Every round switches to each model once with a cold and once with a warm file."""
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        common: dict[str, Any] = {"template": "smollm2", "context_tokens": WINDOW, "threads": threads, "preload": False}
        models = {name: own(model, cache) for name, model in TIERS.items()}
        paths = {name: Path(model.path) for name, model in models.items()}
        report["bytes"] = {name: path.stat().st_size for name, path in paths.items()}
        tiers = [Tier(name=name, slot=i, model=model, **common) for i, (name, model) in enumerate(models.items())]

        def make(tier: Tier) -> Engine:
            sizes: dict[str, Any] = {"context_tokens": WINDOW, "parallel": tier.parallel, "threads": threads}
            return make_engine("llama_server", tier.model, cache, **sizes)

        async def estimate(tier: Tier) -> int:
            return await sizing.expected(tier, cache)

        pool = Pool(PoolConfig(), tiers, make, estimate)
        await pool.start()
        rows: list[dict[str, Any]] = []
        with watched(report):
            for turn in range(rounds + 1):
                for kind in ("cold", "warm") if turn % 2 else ("warm", "cold"):
                    for name, other in itertools.permutations(TIERS):
                        held = {"cold": drop, "warm": warm}[kind](paths[name])
                        began = time.perf_counter()
                        await pool.unload(other)
                        states = {status.tier: status.state for status in pool.status()}
                        assert set(states.values()) == {"absent"}, f"nothing would be loaded: {states}"
                        unloaded = time.perf_counter() - began
                        async with pool.lease(name) as engine:
                            leased = time.perf_counter() - began
                            await first_token(engine)
                            first = time.perf_counter() - began
                            sleeps = isinstance(engine, Sleeps)
                        load_s = next(status.load_s for status in pool.status() if status.tier == name)
                        row = {"tier": name, "kind": kind, "in_cache": held, "sleeps": sleeps}
                        if turn:  # the first round also reads the files for their checksums
                            rows.append(
                                row | {"unload_s": unloaded, "leased_s": leased, "first_s": first, "load_s": load_s}
                            )
        await pool.close()
    report["sleeps"] = any(row["sleeps"] for row in rows)
    report["switch"] = {
        f"{name}, {kind}": {
            key: interval([row[key] for row in rows if (row["tier"], row["kind"]) == (name, kind)])
            for key in ("unload_s", "load_s", "leased_s", "first_s", "in_cache")
        }
        for name in TIERS
        for kind in ("cold", "warm")
    }


def main() -> None:
    """Print the table and, as the last line, JSON."""
    asked = arguments(__doc__, rounds=10, threads=0)
    report: dict[str, Any] = {}
    asyncio.run(measure(report, 1 if asked.quick else asked.rounds, asked.threads))
    print("\nseconds: the engine's start, until it is leased (the other one gone), until its first token")
    for name, row in report["switch"].items():
        held = row["in_cache"]["high"] if "cold" in name else row["in_cache"]["low"]
        good = held <= DROPPED if "cold" in name else held >= 1 - DROPPED
        note = "" if good else f" NOT VALID: {held:.0%} of the file in the page cache"
        print(f"{name:12} {shown(row['load_s'])}   {shown(row['leased_s'])}   {shown(row['first_s'])}{note}")
    print(f"asleep: {'measured above' if report['sleeps'] else 'these engines do not sleep, they start anew'}")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
