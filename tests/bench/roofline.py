"""How fast this machine's memory is read, in this run, and how many bytes a model reads for one token.

A loop counts only if its time follows its work: over twice the memory it must take twice the time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

SIZE = 256 << 20
"""Bytes of the array; the largest cache of the machines we know has 32 MB."""
TIMES = 5
WORK: dict[str, Callable[[Any], Any]] = {"sum": np.sum, "dot": lambda part: part @ part}


def weight_bytes(path: Path) -> int:
    """Bytes of weights that one token needs of a dense GGUF: all of them, but of an input embedding that isn't the
    output's as well only a row. What is cached of earlier tokens comes on top and is left out."""
    from gguf import GGUFReader

    sizes = {tensor.name: int(tensor.n_bytes) for tensor in GGUFReader(path).tensors}
    return sum(sizes.values()) - (sizes.get("token_embd.weight", 0) if "output.weight" in sizes else 0)


class Memory:
    """Reads an array with ``threads`` threads. One look takes a third of a second, between other measurements: other
    guests of the same host take their share of the memory now and then."""

    def __init__(self, threads: int, size: int = SIZE) -> None:
        self._ones = np.ones(2 * size // 8)  # of which half is read, then all
        self._size, self._threads = size, threads
        self._pool = ThreadPoolExecutor(threads)
        self._speeds: dict[str, list[float]] = {kind: [] for kind in WORK}
        self._doubled: dict[str, list[float]] = {kind: [] for kind in WORK}

    def look(self) -> float:
        """Bytes per second now, the better of two loops."""
        found = []
        for kind in WORK:
            times = [(self._read(kind, 1), self._read(kind, 2)) for _ in range(TIMES)]
            once, twice = (statistics.median(column) for column in zip(*times, strict=True))
            self._speeds[kind].append(self._size / once)
            self._doubled[kind].append(twice / once)
            found.append(self._size / once)
        return float(max(found))

    def _read(self, kind: str, share: int) -> float:
        """Seconds to go once through half of it, or all; the result is looked at."""
        parts = np.array_split(self._ones[: share * len(self._ones) // 2], self._threads)
        work = WORK[kind]
        began = time.perf_counter()
        found = sum(self._pool.map(work, parts))
        took = time.perf_counter() - began
        assert found == sum(len(part) for part in parts), "an array of ones"
        return took

    def told(self) -> dict[str, Any]:
        """``bytes_per_s``, the median of the better loop; ``doubled``, how much longer that one took over twice the
        memory, and ``valid``, whether that is near 2."""
        best = max(WORK, key=lambda kind: statistics.median(self._speeds[kind]))
        doubled = statistics.median(self._doubled[best])
        speeds = {"bytes_per_s": statistics.median(self._speeds[best]), "best_bytes_per_s": max(self._speeds[best])}
        return {"loop": best, **speeds, "doubled": doubled, "valid": bool(1.8 <= doubled <= 2.2)}
