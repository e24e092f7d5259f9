"""Which domain a text belongs to, by the nearest centroid of texts whose domain somebody named.

A centroid is the mean direction of a domain's vectors, kept up as they come. What was guessed teaches nothing: else one
wrong guess would draw others after it.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from pydantic import Field

from operators.base import Knobs
from operators.records import F32
from operators.stores.ports import Node

GUESSED = "domain_guessed"
"""Key of a node's metadata: its domain is a guess, with this cosine."""


class Domains:
    """The centroids of one tenant. One thread at a time."""

    class Config(Knobs):
        """The knobs of guessing a domain."""

        min_similarity: float = Field(0.3, ge=-1, le=1)
        """Least cosine to the nearest centroid; below it a text has no domain."""
        min_named: int = Field(3, ge=1)
        """Texts that must carry a domain before it is guessed for others."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._sum: dict[str, F32] = {}
        self._count: dict[str, int] = {}

    def learn(self, nodes: Iterable[Node], sign: int = 1) -> None:
        """Take in the nodes whose domain was named; ``sign`` -1 takes them out again."""
        for node in nodes:
            if node.domain and GUESSED not in (node.metadata or {}):
                zero = np.zeros_like(node.vector)
                self._sum[node.domain] = self._sum.get(node.domain, zero) + np.float32(sign) * node.vector
                self._count[node.domain] = self._count.get(node.domain, 0) + sign

    def nearest(self, vector: F32) -> tuple[str, float]:
        """The domain nearest to ``vector`` (float32[dim], L2-normalised), and its cosine; ``("", 0)``: none is near."""
        known = [name for name, count in self._count.items() if count >= self.config.min_named]
        if not known:
            return "", 0.0
        centroids = np.stack([self._sum[name] for name in known])
        length = np.maximum(np.linalg.norm(centroids, axis=1), np.float32(1e-12))
        cosines = centroids @ vector / length
        best = int(np.argmax(cosines))
        if cosines[best] < self.config.min_similarity:
            return "", 0.0
        return known[best], float(cosines[best])
