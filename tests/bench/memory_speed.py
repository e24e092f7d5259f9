"""How fast the memory searches as it grows; one size in one process, so that its memory can be measured.

    OMP_NUM_THREADS=1 PYTHONPATH=. python tests/bench/memory_speed.py ROWS [--ours]

Prints one line of JSON. ``ours`` is the store with its default settings; ``lancedb`` the same files searched by
LanceDB's own indexes; the other peers search vectors only, each set so that it finds as much as ours does. All are
asked the same queries in rounds, one after another, so a busy machine slows all alike. With ``--ours`` there are none,
whose indexes take half an hour to build at a million rows.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil

from operators.stores import fusion
from operators.stores.lance import LanceStore
from operators.stores.ports import SearchRequest
from operators.stores.resident import Resident
from tests.bench import memory_data, memory_peers

TENANT, K, PARAGRAPHS = "bench", 10, 6000
MANY = 200_000
"""Above so many rows there is one round instead of three, and no look at every row for the overlap in hybrid search."""
BEGAN = time.monotonic()
BUSY_S = 8.0
"""For how long searches are measured beside a writer, in seconds."""
Mode = Literal["hybrid", "vector", "text"]


def memory_mb() -> float:
    """Resident memory of this process, in MB."""
    return psutil.Process().memory_info().rss / 1e6


def quantiles(values: list[float]) -> dict[str, float]:
    """Median and 99 % quantile of seconds, in ms."""
    return {name: round(float(np.quantile(values, q)) * 1e3, 2) for name, q in (("p50", 0.5), ("p99", 0.99))}


def searcher(store: LanceStore, mode: Mode) -> Callable[[str, Any], list[int]]:
    """Row numbers of the ten best."""

    def search(text: str, vector: Any) -> list[int]:
        request = SearchRequest(tenant=TENANT, text=text, vector=vector, k=K, mode=mode)
        return [int(hit.node_id, 16) for hit in store.search(request).hits]

    return search


def say(text: str) -> None:
    """Progress, for whoever waits."""
    print(f"{time.monotonic() - BEGAN:6.0f} s, {memory_mb():6.0f} MB: {text}", file=sys.stderr, flush=True)


def rounds(searches: dict[str, Callable[[str, Any], list[int]]], queries: list[Any], turns: int) -> tuple[Any, Any]:
    """Seconds of every search by name, and the rows it found; all take turns."""
    took: dict[str, list[float]] = {name: [] for name in searches}
    found: dict[str, list[set[int]]] = {name: [] for name in searches}
    for turn in range(turns):
        for name, search in searches.items():
            for text, vector in queries:
                began = time.perf_counter()
                rows = search(text, vector)
                took[name].append(time.perf_counter() - began)
                if turn == 0:
                    found[name].append(set(rows))
    return took, found


def recall(found: list[set[int]], want: list[set[int]]) -> float:
    """Share of ``want`` that was found."""
    return round(sum(len(a & b) for a, b in zip(found, want, strict=True)) / max(1, sum(map(len, want))), 4)


def while_busy(work: Callable[[], Any], search: Callable[[str, Any], list[int]], queries: list[Any]) -> dict[str, Any]:
    """Searches one after another while another thread does ``work`` again and again."""
    stop, took, done = threading.Event(), [], 0

    def run() -> None:
        nonlocal done
        while not stop.is_set():
            work()
            done += 1

    worker = threading.Thread(target=run)
    worker.start()
    until = time.monotonic() + BUSY_S
    while time.monotonic() < until or not done:
        for text, vector in queries[:20]:
            began = time.perf_counter()
            search(text, vector)
            took.append(time.perf_counter() - began)
    stop.set()
    worker.join()
    return {**quantiles(took), "max": round(max(took) * 1e3, 1), "work_done": done}


def settle(store: LanceStore) -> float:
    """Seconds until the tenant is in memory."""
    began = time.monotonic()
    store.count(TENANT)
    held = store._open[TENANT].kept
    if held.loading is not None:
        held.loading.join()
    return round(time.monotonic() - began, 1)


def main(n: int, ours: bool = False) -> dict[str, Any]:
    """Measure ``n`` rows; only ``ours``, or beside the peers."""
    texts = memory_data.paragraphs(PARAGRAPHS)
    cache = Path(__file__).parents[2] / "build" / "bench" / f"vectors_{PARAGRAPHS}.npy"
    rows = memory_data.Rows(texts, memory_data.embed(texts, cache), n)
    queries, dim = rows.queries, rows.vectors.shape[1]
    say(f"{n} rows are made")
    out: dict[str, Any] = {"rows": n}
    with tempfile.TemporaryDirectory() as root:
        table = LanceStore(Path(root), dim, LanceStore.Config(resident_rows=0, approximate_rows=0, refresh_s=1e9))
        table.open()
        began = time.monotonic()
        table.replace(TENANT, rows.batches())
        out["write_s"] = round(time.monotonic() - began, 1)
        if not ours:
            say("written; LanceDB builds its index")
            began = time.monotonic()
            table.optimize(TENANT)  # HNSW from 50,000 rows on
            out["lancedb_index_s"] = round(time.monotonic() - began, 1)
        out["disk_mb"] = round(sum(file.stat().st_size for file in Path(root).rglob("*") if file.is_file()) / 1e6)
        say("opened anew")
        store = LanceStore(Path(root), dim)
        store.open()
        before = memory_mb()
        loading = threading.Thread(target=lambda: out.update(open_s=settle(store)))
        loading.start()
        out["while_opening_ms"] = _until(loading, searcher(store, "hybrid"), queries)
        out["memory_mb"] = round(memory_mb() - before)
        out["kind"] = type(store._open[TENANT].kept.rows).__name__

        say(f"loaded, {out['open_s']} s, {out['while_opening_ms']}; the exact nearest")
        want, turns = rows.nearest(K), 3 if n <= MANY else 1
        searches = {f"ours {mode}": searcher(store, mode) for mode in ("hybrid", "vector", "text")}
        if not ours:
            searches |= {f"lancedb {mode}": searcher(table, mode) for mode in ("hybrid", "vector", "text")}
        rounds(searches, queries[:10], 1)
        _, found = rounds({"ours vector": searches["ours vector"]}, queries, 1)
        reached = recall(found["ours vector"], want)
        peers = {} if ours else memory_peers.build(rows.vectors, queries, want, reached, say)
        searches |= {name: peer.search for name, peer in peers.items()}
        say(f"{len(queries)} queries, {turns} times")
        took, found = rounds(searches, queries, turns)
        exact = _exact(store, rows) if n <= MANY else None
        for name, values in took.items():
            line: dict[str, Any] = quantiles(values)
            if "vector" in name or name in peers:
                line["recall"] = recall(found[name], want)
            elif exact is not None and name.startswith("ours"):
                line["recall"] = recall(found[name], exact[name.removeprefix("ours ")])
            if name in peers:
                line |= {"build_s": round(peers[name].build_s, 1), "set": peers[name].setting}
            line["ours_over"] = round(float(np.median(values) / np.median(took[f"ours {_mode(name)}"])), 2)
            out[name] = line
            say(f"{name} {line}")  # a long run that is ended before its end has told what it knew

        fresh = iter(range(n, n + 1_000_000))
        template = rows.node(0)

        def write(count: int = 32) -> Any:
            from dataclasses import replace

            nodes = [replace(template, node_id=f"{next(fresh):032x}", text=f"fresh{i} words") for i in range(count)]
            store.upsert(TENANT, nodes)
            return nodes[-1]

        say("searches beside a writer, and beside maintenance")
        out["while_writing_ms"] = while_busy(write, searches["ours hybrid"], queries)
        out["while_optimizing_ms"] = while_busy(lambda: store.optimize(TENANT), searches["ours hybrid"], queries)
        lags = []
        for _ in range(10):
            began = time.perf_counter()
            last = write(1)
            hits = store.search(
                SearchRequest(tenant=TENANT, text="fresh0", vector=last.vector, k=500, mode="text")
            ).hits
            lags.append(time.perf_counter() - began)
            if last.node_id not in {hit.node_id for hit in hits}:
                raise AssertionError("what was written is not found")
        out["write_until_found_ms"] = quantiles(lags)
        store.close()
        table.close()
    return out


def _mode(name: str) -> str:
    return name.split()[-1] if name.split()[-1] in ("hybrid", "text") else "vector"


def _until(thread: threading.Thread, search: Callable[[str, Any], list[int]], queries: list[Any]) -> dict[str, float]:
    took = [0.0]
    while thread.is_alive():
        for text, vector in queries[:5]:
            began = time.perf_counter()
            search(text, vector)
            took.append(time.perf_counter() - began)
        thread.join(0.1)  # a busy service, but not one that does nothing else
    return {**quantiles(took[1:] or took), "max": round(max(took) * 1e3, 1)}


def _exact(store: LanceStore, rows: memory_data.Rows) -> dict[str, list[set[int]]]:
    """What a look at every row finds."""
    every = Resident(rows.vectors.shape[1], store._tokenize)
    for nodes in rows.batches():
        every.put(nodes)
    found: dict[str, list[set[int]]] = {}
    modes: tuple[Mode, ...] = ("hybrid", "text")
    for mode in modes:
        for text, vector in rows.queries:
            request = SearchRequest(tenant=TENANT, text=text, vector=vector, k=K, mode=mode)
            hits = fusion.search_resident(every, request, time.time()).hits
            found.setdefault(mode, []).append({int(hit.node_id, 16) for hit in hits})
    return found


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    print(json.dumps(main(int(sys.argv[1]), ours="--ours" in sys.argv)))
