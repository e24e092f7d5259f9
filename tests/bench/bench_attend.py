"""attend: the absorbed network against the direct form, and the whole stage, at 100 nodes, 384-d, 3 layers, 8 heads.

    OMP_NUM_THREADS=1 python tests/bench/bench_attend.py [rounds]

Every round times all variants once after another, so a busy machine slows all alike; the ratio is taken a round. The
direct forms are numpy and torch (its own fused attention), both with keys and values projected per node.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy: spinning threads collapse on a small machine

import numpy as np

from operators.attend import Attend, AttendInput
from operators.networks import attention
from operators.records import HIDDEN, RELATIONS, Embedded, Neighbourhood, Query, Route

N, D, HITS, EDGES, CALLS = 100, 384, 20, 300, 5
WORDS = [
    f"{a}{b}" for a in ("ro", "ta", "mi", "ne", "lo", "ku", "sa", "vi") for b in ("ran", "ter", "mos", "lin", "del")
]


def direct(weights: attention.AttentionWeights, query: Any, nodes: Any, relation: Any, weight: Any, hop: Any) -> Any:
    """The same network with keys and values projected for every node."""
    heads, size, state = weights.heads, weights.dim // weights.heads, query
    bias = attention.edge_bias(weights, relation, weight, hop)
    alphas = []
    for layer in range(weights.layers):
        asked = (weights.query[layer] @ state).reshape(heads, 1, size) * np.float32(size**-0.5)
        keys = (nodes @ weights.key[layer].T).reshape(-1, heads, size).transpose(1, 2, 0)
        alphas.append(attention.softmax((asked @ keys)[:, 0] + bias[layer]))
        if layer + 1 < weights.layers:
            values = (nodes @ weights.value[layer].T).reshape(-1, heads, size).transpose(1, 0, 2)
            read = (alphas[-1][:, None] @ values).reshape(weights.dim)
            state = state + weights.output[layer] @ read
            state = attention.layer_norm(state, weights.gain[layer], weights.shift[layer])
    return np.stack(alphas)


def torch_direct(weights: attention.AttentionWeights) -> Callable[..., Any]:
    """The same work in torch: projections per node and ``scaled_dot_product_attention`` (it keeps no α)."""
    import torch
    from torch.nn import functional

    torch.set_num_threads(1)
    w = {name: torch.from_numpy(array.copy()) for name, array in weights.arrays().items()}
    heads, size = weights.heads, weights.dim // weights.heads

    @torch.inference_mode()
    def run(query: Any, nodes: Any, relation: Any, weight: Any, hop: Any) -> Any:
        bias = torch.from_numpy(attention.edge_bias(weights, relation, weight, hop))[:, :, None]
        x, state = torch.from_numpy(nodes), torch.from_numpy(query)
        inner = weights.layers - 1
        for layer in range(weights.layers):
            q = (w["query"][layer] @ state).view(heads, 1, size)
            k = (x @ w["key"][layer].T).view(-1, heads, size).transpose(0, 1)
            v = (x @ w["value"][layer].T).view(-1, heads, size).transpose(0, 1) if layer < inner else k
            read = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias[layer]).reshape(-1)
            if layer < inner:
                state = state + w["output"][layer] @ read
                state = functional.layer_norm(state, (weights.dim,), w["gain"][layer], w["shift"][layer], 1e-6)
        return read

    return run


def neighbourhood(rng: np.random.Generator, copies: bool) -> tuple[Any, Neighbourhood]:
    """A query and 100 nodes of 150 words: 20 hits, 40 one hop away, 40 two; or with near-copies alone."""
    nodes = rng.standard_normal((N, D)) + 1.5 * rng.standard_normal(D)
    nodes = (nodes / np.linalg.norm(nodes, axis=1, keepdims=True)).astype(np.float32)
    query = nodes[3] + 0.3 * nodes[30]
    query /= np.linalg.norm(query)
    text = [". ".join(" ".join(rng.choice(WORDS, 15)).capitalize() for _ in range(10)) + "." for _ in range(N)]
    if copies:
        text = [f"{text[0]} Copy {i}." for i in range(N)]
    hop = np.repeat([0, 1, 2], [HITS, 40, 40]).astype(np.int32)
    return query, Neighbourhood(
        node_ids=tuple(f"n{i}" for i in range(N)),
        kinds=("document",) * N,
        texts=tuple(text),
        sources=("bench",) * N,
        vectors=nodes,
        hop=hop,
        score=np.where(hop == 0, 1 / (61 + np.arange(N)), 0).astype(np.float32),
        similarity=nodes @ query,
        tokens=np.full(N, 180, np.int32),
        edge_from=rng.integers(0, N, EDGES).astype(np.int32),
        edge_to=rng.integers(0, N, EDGES).astype(np.int32),
        edge_relation=rng.integers(0, len(RELATIONS), EDGES).astype(np.int8),
        edge_weight=rng.random(EDGES).astype(np.float32),
        snapshot=1,
        truncated=False,
    )


def item(rng: np.random.Generator, copies: bool = False) -> AttendInput:
    """What the stage gets."""
    vector, near = neighbourhood(rng, copies)
    text = "what did rotan say about the milin and the sadel"
    return AttendInput(
        query=Query(interaction_id="i", tenant="t", session="s", text=text, messages=(), created_at=0.0),
        embedded=Embedded(vector=vector, tokens=12, truncated=False, encoder="bench"),
        neighbourhood=near,
        route=Route(
            tier="350M",
            context_tokens=2048,
            temperature=0.0,
            top_p=1.0,
            confidence=1.0,
            probabilities={},
            propensity=1.0,
            propensities={},
            checkpoint="",
            reason="router",
            hidden=np.zeros(HIDDEN, np.float32),
            features=np.zeros(128, np.float32),
        ),
    )


def stage(weights: attention.AttentionWeights | None, given: AttendInput, **knobs: Any) -> Callable[[], Any]:
    """One call of the stage on ``given``, without the event loop around it."""
    made = Attend(Attend.Config(**knobs))
    made.weights = weights

    def call() -> Any:
        running = made.run([given])
        try:
            running.send(None)
        except StopIteration as done:
            return done.value
        raise AssertionError("attend waited for something")

    return call


def interval(values: list[float]) -> dict[str, float]:
    """Median and the 5th and 95th percentile."""
    low, middle, high = np.percentile(values, [5, 50, 95])
    return {"median": round(float(middle), 4), "p5": round(float(low), 4), "p95": round(float(high), 4)}


def main(rounds: int = 200) -> dict[str, Any]:
    """Print the table, return the figures: milliseconds a call, and ratios to the absorbed network."""
    rng = np.random.default_rng(0)
    weights = dataclasses.replace(attention.init(D, seed=0), trained=True)
    given, copies = item(rng), item(rng, copies=True)
    near = given.neighbourhood
    inputs = (
        given.embedded.vector,
        near.vectors,
        np.where(near.hop == 0, attention.HIT, 0).astype(np.int8),
        rng.random(N).astype(np.float32),
        near.hop,
    )
    difference = float(np.abs(attention.attend(weights, *inputs) - direct(weights, *inputs)).max())
    assert difference < 1e-5, difference
    by_torch = torch_direct(weights)
    wide = {"max_passages": 8, "min_relative": 0.0, "min_similarity": -1.0}
    variants: dict[str, Callable[[], Any]] = {
        "network absorbed": lambda: attention.attend(weights, *inputs),
        "network direct, numpy": lambda: direct(weights, *inputs),
        "network direct, torch": lambda: by_torch(*inputs),
        "stage, attention": stage(weights, given),
        "stage, similarity": stage(None, given),
        "stage, nothing relevant": stage(None, given, min_similarity=1.0),
        "stage, 100 near-copies": stage(None, copies, **wide),
    }
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + 5):
        for name, call in variants.items():
            began = time.perf_counter()
            for _ in range(CALLS):
                call()
            if turn >= 5:
                times[name].append((time.perf_counter() - began) / CALLS * 1e3)
    base = times["network absorbed"]
    result: dict[str, Any] = {"nodes": N, "dim": D, "layers": 3, "heads": 8, "rounds": rounds, "difference": difference}
    result["variants"] = {
        name: {"ms": interval(taken), "ratio": interval([t / b for t, b in zip(taken, base, strict=True)])}
        for name, taken in times.items()
    }
    print(f"{'variant':26}{'ms (p5 … p95)':>28}{'× absorbed':>28}")
    for name, row in result["variants"].items():
        cells = [f"{row[k]['median']:.3f} ({row[k]['p5']:.3f} … {row[k]['p95']:.3f})" for k in ("ms", "ratio")]
        print(f"{name:26}{cells[0]:>28}{cells[1]:>28}")
    return result


if __name__ == "__main__":
    print(json.dumps(main(*map(int, sys.argv[1:2]))))
