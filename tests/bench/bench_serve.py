"""The service: seconds a stage, requests per second and memory, by binding and plan, beside plain FastAPI on uvicorn.

Every binding runs alone on a copy of the same memory (20,000 nodes). In each round the same number of requests goes to
the peer's no-op, our no-op (``/healthz``), our path up to the engine (``/v1/route``) and whole chat completions, one
kind after another, so what the machine does meanwhile hits all alike. The engine is a mock that answers at once
(``mocked.py``): the real ones' speed is ``bench_generate``'s matter.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil

from conf.load import load
from operators.embed import Embed
from operators.stores.ports import Node
from pipeline.host import make_memory
from tests.service import ROOT, Running, free_port

NODES, TEXTS = 20_000, 400
ROUNDS, REQUESTS = 5, 40
BUDGET_MS = {"embed": 8, "search": 6, "expand": 0.2, "route": 0.05, "attend": 1.5}
"""Design budgets, p50 in milliseconds."""
WORDS = [
    "harbour",
    "lighthouse",
    "river",
    "market",
    "captain",
    "engine",
    "copper",
    "garden",
    "winter",
    "signal",
    "bridge",
    "letter",
    "forest",
    "window",
    "ladder",
    "island",
    "mirror",
    "candle",
    "farmer",
    "thunder",
    "pocket",
    "village",
    "barrel",
    "saddle",
    "anchor",
    "ribbon",
    "hammer",
    "meadow",
    "lantern",
    "pebble",
]
PEER = """
import sys, uvicorn
from fastapi import FastAPI
app = FastAPI()
@app.get("/healthz")
async def healthz() -> dict[str, str]:
    return {"status": "ok"}
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)
"""


async def fill(data_dir: Path) -> None:
    """A memory of NODES nodes: TEXTS real vectors, and copies of them moved a little."""
    settings = load("test", overrides=[f"data_dir={data_dir}", "memory.edges.similar_top=0"], env={}).settings
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, 12)) for _ in range(TEXTS)]
    data_dir.mkdir(parents=True)
    embed = Embed(settings.embed, data_dir / "cache")
    await embed.start()
    vectors = (await embed.texts(texts, query=False)).vectors
    await embed.close()
    memory = make_memory(settings)
    memory.open()
    for begin in range(0, NODES, 1000):
        nodes = []
        for i in range(begin, begin + 1000):
            moved = vectors[i % TEXTS] + 0.02 * rng.standard_normal(vectors.shape[1]).astype(np.float32)
            nodes.append(
                Node(
                    node_id=f"{i:032x}",
                    kind="document",
                    text=f"{texts[i % TEXTS]} {i}",
                    vector=moved / np.linalg.norm(moved),
                    source=f"source-{i // 20}",
                    position=i % 20,
                    tokens=16,
                    created_at=1.8e9,
                )
            )
        memory.add("default", nodes)
    memory.close()


@contextlib.contextmanager
def peer() -> Iterator[str]:
    """Plain FastAPI on uvicorn, one process."""
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", PEER, str(port)])
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


async def volley(client: aiohttp.ClientSession, url: str, bodies: list[Any], concurrency: int) -> dict[str, Any]:
    """Send every body, ``concurrency`` at a time: requests per second and each request's milliseconds."""
    gate, took, answers = asyncio.Semaphore(concurrency), [], []

    async def one(body: Any) -> None:
        async with gate:
            began = time.perf_counter()
            async with client.request("POST" if body else "GET", url, json=body) as response:
                answers.append(await response.json())
                assert response.status == 200, answers[-1]
            took.append((time.perf_counter() - began) * 1e3)

    began = time.perf_counter()
    await asyncio.gather(*(one(body) for body in bodies))
    return {"qps": len(bodies) / (time.perf_counter() - began), "ms": took, "answers": answers}


async def measure(url: str, peer_url: str) -> dict[str, Any]:
    """All rounds against one binding."""
    rng = np.random.default_rng(1)
    report: dict[str, Any] = {}
    stages: dict[str, list[float]] = {}
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=64)) as client:
        while True:  # the peer takes a moment to listen
            with contextlib.suppress(aiohttp.ClientError):
                async with client.get(f"{peer_url}/healthz"):
                    break
            await asyncio.sleep(0.1)
        for concurrency in (1, 8, 32):
            kinds: dict[str, list[dict[str, Any]]] = {
                "peer no-op": [],
                "no-op": [],
                "up to the engine": [],
                "whole request": [],
            }
            for turn in range(ROUNDS + 1):
                questions = [{"messages": [{"role": "user", "content": " ".join(rng.choice(WORDS, 8))}]}] * REQUESTS
                got = {
                    "peer no-op": await volley(client, f"{peer_url}/healthz", [None] * REQUESTS, concurrency),
                    "no-op": await volley(client, f"{url}/healthz", [None] * REQUESTS, concurrency),
                    "up to the engine": await volley(client, f"{url}/v1/route", questions, concurrency),
                    "whole request": await volley(client, f"{url}/v1/chat/completions", questions, concurrency),
                }
                if turn == 0:
                    continue  # warm-up
                for kind, result in got.items():
                    kinds[kind].append(result)
                if concurrency == 1:
                    for answer in got["up to the engine"]["answers"]:
                        for stage, seconds in answer["timings"].items():
                            stages.setdefault(stage, []).append(seconds * 1e3)
            report[f"c={concurrency}"] = {
                kind: {
                    "p50_ms": float(np.percentile([ms for r in rounds for ms in r["ms"]], 50)),
                    "p99_ms": float(np.percentile([ms for r in rounds for ms in r["ms"]], 99)),
                    "qps": statistics.median(r["qps"] for r in rounds),
                    "qps_to_peer": statistics.median(
                        r["qps"] / p["qps"] for r, p in zip(rounds, kinds["peer no-op"], strict=True)
                    ),
                }
                for kind, rounds in kinds.items()
            }
    report["stages_ms"] = {stage: statistics.median(values) for stage, values in stages.items()}
    return report


@contextlib.contextmanager
def running(module: str, *settings: Any) -> Iterator[Running]:
    """The service, started as ``python -m MODULE serve``."""
    service = Running(*settings, "judge_job.enabled=false", "http.max_queued=64", env={"PYTHONPATH": str(ROOT)})
    service.module = module
    service.start()
    try:
        yield service
    finally:
        service.stop()


def resident(service: Running) -> float:
    """Memory of all its processes in MiB, shared pages counted once (PSS)."""
    total = 0
    for process in service.family():
        with contextlib.suppress(psutil.Error):
            total += process.memory_full_info().pss
    return total / 2**20


def main() -> None:
    """Measure every binding and print tables and JSON."""
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as root:
        asyncio.run(fill(Path(root) / "filled"))
        for name, sets in {
            "inproc": ("binding=inproc", "http.port=0"),
            "serve, fused": ("binding=serve", "plan=fused"),
            "serve, one deployment a stage": ("binding=serve", "plan=per_stage"),
        }.items():
            data = Path(root) / name.replace(" ", "-").replace(",", "")
            shutil.copytree(Path(root) / "filled", data)
            ports = () if "inproc" in name else (f"http.port={free_port()}", f"ray.dashboard_port={free_port()}")
            with running("pipeline.cli", data, *sets, *ports) as service:  # as users have it
                idle = {"idle_mib": resident(service), "ready_s": service.lines[-1]["seconds"]}
            with running("tests.bench.mocked", data, *sets, *ports) as service, peer() as peer_url:
                report[name] = asyncio.run(measure(service.url, peer_url)) | idle
    print(f"milliseconds a stage, p50, {NODES} nodes, one request at a time")
    print(f"{'':32}" + "".join(f"{stage:>10}" for stage in BUDGET_MS) + f"{'over HTTP':>12}")
    print(f"{'budget':32}" + "".join(f"{budget:>10}" for budget in BUDGET_MS.values()) + f"{20:>12}")
    for name, row in report.items():
        stages = "".join(f"{row['stages_ms'][stage]:>10.2f}" for stage in BUDGET_MS)
        print(f"{name:32}{stages}{row['c=1']['up to the engine']['p50_ms']:>12.1f}")
    print("\nrequests: p50 / p99 ms, requests per second (ratio to plain FastAPI's no-op in the same round)")
    for name, row in report.items():
        print(f"{name}: {row['idle_mib']:.0f} MiB idle, ready in {row['ready_s']:.0f} s")
        for level in ("c=1", "c=8", "c=32"):
            for kind, f in row[level].items():
                ratio = f"{f['qps_to_peer']:.2f}"
                print(f"  {level:5} {kind:16} {f['p50_ms']:8.2f} /{f['p99_ms']:8.2f}  {f['qps']:8.0f}  ({ratio})")
    print(json.dumps(report))


if __name__ == "__main__":
    main()
