"""Vector indexes of others, each built on the same vectors and set so that it finds as much as it is asked to.

Those that are not installed are left out. All have one thread.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Search = Callable[[str, Any], list[int]]
SETTINGS = (16, 32, 64, 128, 256, 512)
"""Candidates that a graph search looks at, tried from the smallest on."""
MOST = 200_000
"""Building a graph of more rows takes too long to be a benchmark."""


@dataclasses.dataclass
class Peer:
    """``search`` gives the ten nearest rows; ``setting`` how many candidates it looks at."""

    search: Search
    build_s: float
    setting: int


def _usearch(vectors: Any, root: Path) -> Callable[[int], Search]:
    from usearch.index import Index

    index = Index(ndim=vectors.shape[1], metric="ip", dtype="f16", connectivity=16, expansion_add=128)
    index.add(np.arange(len(vectors)), vectors, threads=1)

    def at(setting: int) -> Search:
        def search(text: str, vector: Any) -> list[int]:
            index.expansion_search = setting
            return [int(key) for key in index.search(vector, 10, threads=1).keys]

        return search

    return at


def _hnswlib(vectors: Any, root: Path) -> Callable[[int], Search]:
    import hnswlib

    index = hnswlib.Index("ip", vectors.shape[1])
    index.init_index(len(vectors), M=16, ef_construction=128)
    index.set_num_threads(1)
    index.add_items(vectors)

    def at(setting: int) -> Search:
        def search(text: str, vector: Any) -> list[int]:
            index.set_ef(setting)
            return [int(row) for row in index.knn_query(vector, 10)[0][0]]

        return search

    return at


def _faiss(vectors: Any, root: Path) -> Callable[[int], Search]:
    import faiss

    faiss.omp_set_num_threads(1)
    index = faiss.IndexHNSWFlat(vectors.shape[1], 16, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 128
    index.add(vectors)

    def at(setting: int) -> Search:
        def search(text: str, vector: Any) -> list[int]:
            index.hnsw.efSearch = setting
            return [int(row) for row in index.search(vector[None], 10)[1][0]]

        return search

    return at


def _chromadb(vectors: Any, root: Path) -> Callable[[int], Search]:
    import chromadb

    client = chromadb.PersistentClient(str(root / "chroma"))

    collection = client.create_collection(
        "rows", configuration={"hnsw": {"space": "ip", "ef_construction": 128, "max_neighbors": 16, "ef_search": 256}}
    )
    for begin in range(0, len(vectors), 2000):
        part = vectors[begin : begin + 2000]
        collection.add(ids=[str(begin + i) for i in range(len(part))], embeddings=part)

    def at(setting: int) -> Search:  # it can't be changed later
        return lambda text, vector: [int(i) for i in collection.query(vector[None], n_results=10)["ids"][0]]

    return at


def _qdrant_client(vectors: Any, root: Path) -> Callable[[int], Search]:
    from qdrant_client import QdrantClient, models

    client = QdrantClient(path=str(root / "qdrant"))  # local mode looks at every row
    distance = models.VectorParams(size=vectors.shape[1], distance=models.Distance.DOT)
    client.create_collection("rows", vectors_config=distance)
    client.upload_collection("rows", vectors=vectors, ids=range(len(vectors)))

    def at(setting: int) -> Search:
        return lambda text, vector: [int(p.id) for p in client.query_points("rows", query=vector, limit=10).points]

    return at


PEERS = {
    "usearch": _usearch,
    "hnswlib": _hnswlib,
    "faiss": _faiss,
    "chromadb": _chromadb,
    "qdrant_client": _qdrant_client,
}


def build(vectors: Any, queries: list[Any], want: list[set[int]], reach: float, root: Path) -> dict[str, Peer]:
    """The peers that are installed, at the least setting with which they find the share ``reach`` of ``want``."""
    root.mkdir(parents=True, exist_ok=True)
    made: dict[str, Peer] = {}
    if len(vectors) > MOST:
        return made
    for name, make in PEERS.items():
        if importlib.util.find_spec(name) is None:
            continue
        began = time.monotonic()
        at = make(vectors, root)
        took = time.monotonic() - began
        for setting in SETTINGS:
            search = at(setting)
            found = [len(set(search(text, vector)) & rows) for (text, vector), rows in zip(queries, want, strict=True)]
            if sum(found) >= reach * sum(map(len, want)):
                break
        made[name] = Peer(search, took, setting)
    return made
