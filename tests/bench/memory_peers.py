"""Vector indexes of others, each built on the same vectors and set so that it finds as much as it is asked to.

faiss is here anyway; the others are those of ``requirements/peers.lock``, which ``make peers`` puts into a directory of
its own. They are built on all cores, and search on one.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).parents[2] / "build" / "peers"))  # last: what the environment has stays in force

Search = Callable[[str, Any], list[int]]
Say = Callable[[str], None]
SETTINGS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
"""Candidates that a graph search looks at, tried from the smallest on."""
CLOSE = 0.002
"""So much less is as much: usearch's halved numbers can't tell near-ties."""
PIECE = 50_000
"""Rows between two words of progress."""


@dataclasses.dataclass
class Peer:
    """``search`` gives the ten nearest rows; ``setting`` how many candidates it looks at, 0: it looks at all rows."""

    search: Search
    build_s: float
    setting: int


def _usearch(vectors: Any, say: Say) -> Callable[[int], Search]:
    from usearch.index import Index

    everything = os.cpu_count() or 1
    index = Index(ndim=vectors.shape[1], metric="ip", dtype="f16", connectivity=16, expansion_add=128)
    for begin in range(0, len(vectors), PIECE):
        part = vectors[begin : begin + PIECE]
        index.add(np.arange(begin, begin + len(part)), part, threads=everything)
        say(f"usearch: {begin + len(part)} rows")

    def at(setting: int) -> Search:
        def search(text: str, vector: Any) -> list[int]:
            index.expansion_search = setting
            return [int(key) for key in index.search(vector, 10, threads=1).keys]

        return search

    return at


def _faiss(vectors: Any, say: Say) -> Callable[[int], Search]:
    import faiss

    faiss.omp_set_num_threads(os.cpu_count() or 1)
    index = faiss.IndexHNSWFlat(vectors.shape[1], 16, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 128
    for begin in range(0, len(vectors), PIECE):
        index.add(vectors[begin : begin + PIECE])
        say(f"faiss: {index.ntotal} rows")

    def at(setting: int) -> Search:
        def search(text: str, vector: Any) -> list[int]:
            faiss.omp_set_num_threads(1)
            index.hnsw.efSearch = setting
            return [int(row) for row in index.search(vector[None], 10)[1][0]]

        return search

    return at


def _qdrant_client(vectors: Any, say: Say) -> Callable[[int], Search]:
    from qdrant_client import QdrantClient, models

    client = QdrantClient(":memory:")  # local mode looks at every row; in a file each takes 20 ms to write
    distance = models.VectorParams(size=vectors.shape[1], distance=models.Distance.DOT)
    client.create_collection("rows", vectors_config=distance)
    with warnings.catch_warnings():  # that a server would be faster from 20,000 rows on
        warnings.simplefilter("ignore", UserWarning)
        client.upload_collection("rows", vectors=vectors, ids=range(len(vectors)))

    def at(setting: int) -> Search:
        return lambda text, vector: [int(p.id) for p in client.query_points("rows", query=vector, limit=10).points]

    return at


PEERS = {"usearch": (_usearch, 2_000_000), "faiss": (_faiss, 200_000), "qdrant_client": (_qdrant_client, 20_000)}
"""How each is built, and up to how many rows that takes no longer than a benchmark may."""
EXACT = {"qdrant_client"}


def build(vectors: Any, queries: list[Any], want: list[set[int]], reach: float, say: Say) -> dict[str, Peer]:
    """The peers that are installed, at the least setting with which they find the share ``reach`` of ``want``, or close
    to it."""
    made: dict[str, Peer] = {}
    for name, (make, most) in PEERS.items():
        if importlib.util.find_spec(name) is None:
            say(f"{name} is not installed: make peers")
        elif len(vectors) > most:
            say(f"{name} is left out: more than {most} rows")
        else:
            began = time.monotonic()
            at = make(vectors, say)
            took = time.monotonic() - began
            made[name] = _set(at, name, took, queries, want, reach)
            say(f"{name}: built in {took:.0f} s, looks at {made[name].setting or 'all'}")
    return made


def _set(
    at: Callable[[int], Search], name: str, took: float, queries: list[Any], want: list[set[int]], reach: float
) -> Peer:
    """The least setting that reaches the share ``reach``, or the largest."""
    if name in EXACT:
        return Peer(at(0), took, 0)
    for setting in SETTINGS:
        search = at(setting)
        found = [len(set(search(text, vector)) & rows) for (text, vector), rows in zip(queries, want, strict=True)]
        if sum(found) >= (reach - CLOSE) * sum(map(len, want)):
            break
    return Peer(search, took, setting)
