"""Rows that are near a vector, without looking at every row; the only file that knows ``faiss``.

Inverted lists with product quantisation, 4 bits for 4 dimensions, so that a row is 48 bytes at 384 dimensions and is
compared in registers (André et al., "Quicker ADC", 2019; faiss's ``IVF…,PQ…x4fs``). What it names is only near enough:
the caller has the real vectors and scores them. A graph (HNSW) finds as much in as much time, but takes fifty times as
long to build, and can't look only at rows that pass a filter.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from operators.records import F32

I64 = npt.NDArray[np.int64]
LOOKED = 150_000
"""About so many rows are compared with the query, by the lists nearest to it; more where a filter leaves few."""
SAMPLE = 48
"""Rows that train the index, for each of its lists."""
PIECE = 64
"""Rows added while searches wait: about 2 ms."""


class FaissIndex:
    """Numbered rows, from 0 on; rows are only ever added. Any thread may call it, one at a time may ``add``."""

    def __init__(self, sample: F32, rows: int, seed: int = 0) -> None:
        """Trained on ``sample`` float32[m, dim], for ``rows`` rows: 15 s for a million, on one thread."""
        import faiss

        self._faiss, self.planned = faiss, rows
        dim = sample.shape[1]
        quantizer = faiss.IndexFlatIP(dim)
        self._index: Any = faiss.IndexIVFPQFastScan(
            quantizer, dim, min(lists(rows), len(sample)), dim // math.gcd(dim, 4), 4, faiss.METRIC_INNER_PRODUCT
        )
        for training in (self._index.cp, self._index.pq.cp):
            training.min_points_per_centroid, training.niter, training.seed = 1, 10, seed
        faiss.omp_set_num_threads(1)  # this thread's: requests need the other cores
        self._index.train(_unit(sample))
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._index.ntotal)

    def add(self, vectors: F32) -> None:
        """``vectors`` float32[m, dim] as the next rows, in pieces, so that no search waits for long."""
        self._faiss.omp_set_num_threads(1)
        for begin in range(0, len(vectors), PIECE):
            piece = _unit(vectors[begin : begin + PIECE])
            with self._lock:
                self._index.add(piece)

    def search(self, vector: F32, k: int, passes: npt.NDArray[np.bool_] | None = None) -> I64:
        """About ``k`` of the rows nearest to ``vector`` that pass (bool[n], ``None``: all), in no order: int64[≤ k]."""
        lists, wanted, options = self._index.nlist, LOOKED / max(len(self), 1), {}
        if passes is not None:
            wanted /= math.sqrt(max(float(passes.mean()), 1 / len(passes)))
            bits = np.packbits(passes, bitorder="little")
            options["sel"] = self._faiss.IDSelectorBitmap(bits)
        probes = min(lists, math.ceil(lists * wanted))
        self._faiss.omp_set_num_threads(1)
        with self._lock:
            parameters = self._faiss.SearchParametersIVF(nprobe=probes, **options)
            _, rows = self._index.search(vector[None].astype(np.float32), k, params=parameters)
        found: I64 = rows[0][rows[0] >= 0]
        return found


def lists(rows: int) -> int:
    """How many inverted lists an index of ``rows`` rows has."""
    return max(1, min(4096, math.isqrt(rows)))


def _unit(vectors: F32) -> F32:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(length > 0, length, 1), np.float32)
