"""The exported programs against what serves otherwise, on one thread: embed in ONNX Runtime, route and attend in numpy.

    OMP_NUM_THREADS=1 python tests/bench/bench_executorch.py [rounds]

Exports first (a minute or two), then times both of each pair once after another in every round, so a busy machine slows
both alike; the ratio is taken a round. Also: the largest difference, and the size of each program.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: spinning threads collapse on a small machine

import numpy as np

from conf.load import load
from jobs.export_executorch import export
from operators.embed import Embed
from operators.engines.executorch.networks import AttentionProgram, RouterProgram
from operators.networks import attention
from operators.networks.acting import Active
from operators.networks.prior import prior
from operators.records import HIDDEN, RELATIONS

QUERY = ["What did the committee decide about the new harbour bridge, and when will it open?"]
TEXTS = [
    " ".join(f"Sentence {i} of paragraph {n} tells of the harbour of town {n}." for i in range(1 + n % 6))
    for n in range(24)
]
NODES = (10, 50, 100)


def neighbourhood(n: int) -> tuple[Any, ...]:
    rng = np.random.default_rng(n)
    nodes = rng.standard_normal((n, 384)).astype(np.float32)
    nodes /= np.linalg.norm(nodes, axis=1, keepdims=True)
    hop = np.sort(rng.integers(0, 3, n)).astype(np.int32)
    relation = np.where(hop == 0, attention.HIT, rng.integers(0, len(RELATIONS), n)).astype(np.int8)
    return nodes[0], nodes, relation, rng.random(n).astype(np.float32), hop


async def pairs(folder: Path) -> dict[str, tuple[int, Callable[[], Any], Callable[[], Any]]]:
    """Name → (calls a round, ours now, the program), each call giving its result."""
    weights = dataclasses.replace(attention.init(384, seed=0), trained=True)
    attention.save(weights, folder / "ranking.safetensors")
    chosen = [f"data_dir={folder}", f"attend.checkpoint={folder}/ranking.safetensors", "embed.threads=1"]
    settings = load("local", overrides=chosen, env={}).settings
    for row in export(settings, folder):
        print(f"{row['part']}: {row['bytes'] / 1e6:.2f} MB, {row['seconds']} s, differs by {row['difference']:.1e}")
    env = {"RUVLLM_CONFIG": str(folder / "settings.yaml")}
    served = load("local", overrides=chosen, env=env).settings
    cache = folder / "cache"
    now, program = Embed(settings.embed, cache), Embed(served.embed, cache)
    await now.start()
    await program.start()
    assert served.route.pte is not None
    assert served.attend.pte is not None
    plain = prior()
    compiled = RouterProgram(served.route.pte, cache).serve(Active(plain)).snapshot
    network = AttentionProgram(served.attend.pte, cache, weights)
    rng = np.random.default_rng(0)
    x, h = rng.uniform(-1, 1, 128).astype(np.float32), rng.uniform(-1, 1, HIDDEN).astype(np.float32)
    found: dict[str, Any] = {
        "route, one step": (200, lambda: plain.forward(x, h).hidden, lambda: compiled.forward(x, h).hidden)
    }
    for n in NODES:
        given = neighbourhood(n)
        found[f"attend, {n} nodes"] = (
            5,
            lambda given=given: attention.attend(weights, *given),
            lambda given=given: network.attend(weights, *given),
        )
    for name, texts in (("embed, 1 query", QUERY), ("embed, 24 texts", TEXTS)):
        found[name] = (
            1,
            lambda texts=texts: now._encoder._encode(texts).vectors,  # type: ignore[union-attr]
            lambda texts=texts: program._encoder._encode(texts).vectors,  # type: ignore[union-attr]
        )
    return found


def seconds(call: Callable[[], Any], calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - began) / calls


def main(rounds: int = 60) -> None:
    """Print the table and, as the last line, JSON: microseconds, and how many times as fast the program is."""
    with tempfile.TemporaryDirectory() as folder:
        found = asyncio.run(pairs(Path(folder)))
        report: dict[str, Any] = {}
        for name, (calls, ours, theirs) in found.items():
            differs = float(np.abs(ours() - theirs()).max())
            times = np.array([(seconds(ours, calls), seconds(theirs, calls)) for _ in range(rounds + 3)][3:])
            low, ratio, high = np.quantile(times[:, 0] / times[:, 1], [0.05, 0.5, 0.95]).round(3).tolist()
            us, program_us = (np.median(times, axis=0) * 1e6).round(1).tolist()
            report[name] = {"us": us, "executorch_us": program_us, "speedup": [ratio, low, high], "differs": differs}
            print(f"{name:<18} {us:10.1f} µs, ExecuTorch {program_us:10.1f} µs: {ratio:.2f} ({low:.2f} to {high:.2f})")
    print(json.dumps(report))


if __name__ == "__main__":
    if not importlib.util.find_spec("executorch"):
        sys.exit("executorch is not installed: make executorch")
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60)
