"""The router's forward pass: the fused numpy snapshot against the same network in eager torch, one thread each.

Rounds of the two are interleaved; reported are the median time, the median ratio of a round with the 95 % interval of
the median (bootstrap), and the distance to the memory limit: the bytes of the fused weights over a measured copy
bandwidth. The time of a whole decision and of its parts stands beside it, to hold against the 50 µs of design §13.
"""

import argparse
import asyncio
import json
import time
from pathlib import Path

import numpy as np
import torch

from operators.networks import reading
from operators.networks.fastgrnn_torch import FastGRNN
from operators.networks.prior import prior
from operators.records import Embedded, Hit, Hits, Load, Message, Neighbourhood, Query, SessionState, TierLoad
from operators.route import RouteInput, Router
from operators.tiers import ModelFile, Tier


def a_turn(hits: int = 8, nodes: int = 64) -> RouteInput:
    """A usual turn: 8 hits, a neighbourhood of 64 nodes and 256 edges, a 384-dimensional embedding."""
    rng = np.random.default_rng(0)
    found = tuple(
        Hit(
            node_id=str(i), kind="document", text="", source=str(i % 3), domain="d", created_at=0.0, quality=0.9,
            tokens=120, score=1 / (60 + i), similarity=0.7 - 0.06 * i, text_score=4.0,
        )
        for i in range(hits)
    )  # fmt: skip
    edges = 4 * nodes
    near = Neighbourhood(
        node_ids=tuple(map(str, range(nodes))), kinds=("document",) * nodes, texts=("",) * nodes,
        sources=("",) * nodes, vectors=np.zeros((nodes, 384), np.float32),
        hop=np.array([0] * hits + [1] * 20 + [2] * (nodes - hits - 20), np.int32), score=np.zeros(nodes, np.float32),
        similarity=rng.uniform(0, 0.7, nodes).astype(np.float32), tokens=np.full(nodes, 120, np.int32),
        edge_from=rng.integers(0, nodes, edges, np.int32), edge_to=rng.integers(0, nodes, edges, np.int32),
        edge_relation=rng.integers(0, 5, edges, np.int8), edge_weight=rng.random(edges, np.float32),
        snapshot=1, truncated=False,
    )  # fmt: skip
    vector = rng.standard_normal(384).astype(np.float32)
    text = "How does the second design recover when the broker restarts?"
    return RouteInput(
        query=Query(
            interaction_id="0", tenant="t", session="s", text=text, created_at=1e6,
            messages=(Message(role="user", content=text),),
        ),
        session=SessionState(turn=2, hidden=rng.uniform(-0.5, 0.5, 64).astype(np.float32), last_verdict=0.8),
        load=Load(tiers=tuple(TierLoad(tier=f"tier{k}", queue=k) for k in range(4))),
        embedded=Embedded(vector=vector / np.linalg.norm(vector), tokens=13, truncated=False, encoder="e"),
        hits=Hits(hits=found, vectors=np.zeros((hits, 384), np.float32), mode="hybrid"),
        neighbourhood=near,
    )  # fmt: skip


def tiers():
    model = ModelFile(id="m", sha256="0" * 64)
    return [Tier(name=f"tier{k}", slot=k, model=model, template="chatml", cost=1.0 + k) for k in range(4)]


def seconds(call, n):
    began = time.perf_counter()
    for _ in range(n):
        call()
    return (time.perf_counter() - began) / n


def median_interval(values, rng):
    medians = np.median(rng.choice(values, (2000, len(values))), axis=1)
    return float(np.median(values)), *(float(x) for x in np.percentile(medians, [2.5, 97.5]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--calls", type=int, default=200)
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)

    item, router = a_turn(), Router(Router.Config(), tiers())
    asyncio.run(router.start())
    snapshot, module = prior(), FastGRNN(prior()).eval()
    x, h = router.decide(item).features, item.session.hidden
    tx, th = torch.from_numpy(x), torch.from_numpy(h)
    slots = reading.slots({f"tier{k}": k for k in range(4)}, {})

    def eager():
        with torch.inference_mode():
            module(tx, th)

    def read():
        reading.read(item.query, item.session, item.load, item.embedded, item.hits, item.neighbourhood, slots)

    calls = {
        "numpy fused": lambda: snapshot.forward(x, h), "torch eager": eager,
        "read 128 features": read, "whole decision": lambda: router.decide(item),
    }  # fmt: skip
    for call in calls.values():
        seconds(call, args.calls)
    rounds = np.array([[seconds(call, args.calls) for call in calls.values()] for _ in range(args.rounds)])

    weights = sum(getattr(snapshot, name).nbytes for name in ("_mix", "_bias", "_heads", "_heads_bias"))
    block = np.ones(32 << 20, np.uint8)
    bandwidth = 2 * block.nbytes / min(seconds(block.copy, 1) for _ in range(10))
    rng = np.random.default_rng(0)
    result = {
        "median_us": {name: float(np.median(rounds[:, i]) * 1e6) for i, name in enumerate(calls)},
        "torch_over_numpy": median_interval(rounds[:, 1] / rounds[:, 0], rng),
        "numpy_over_memory_limit": float(np.median(rounds[:, 0]) / (weights / bandwidth)),
        "weights_bytes": weights,
        "rounds": args.rounds,
        "calls": args.calls,
    }
    for name, us in result["median_us"].items():
        print(f"{name:20} {us:8.1f} µs")
    ratio, low, high = result["torch_over_numpy"]
    print(f"torch / numpy        {ratio:8.2f}    [{low:.2f}, {high:.2f}]")
    print(f"numpy / memory limit {result['numpy_over_memory_limit']:8.2f}")
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
