"""Real texts with real vectors, and mixtures of them, as rows for the benchmarks of the memory.

The texts are paragraphs of the docstrings of installed packages. A row mixes two paragraphs, words and vectors alike,
so that a million rows have the word counts (Zipf) and the crowded directions of real ones; clusters of random numbers
are far easier to search. Rows stand in sessions of twenty, which share one of the two.
"""

from __future__ import annotations

import ast
import asyncio
import random
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from conf.load import load
from operators.embed import Embed
from operators.stores.ports import Node

PACKAGES = ("numpy", "pandas", "torch", "ray", "pydantic", "fastapi", "hypothesis", "lancedb", "pyarrow", "aiohttp")
QUESTIONS, SESSION = 200, 20


def paragraphs(count: int) -> list[str]:
    """``count`` different paragraphs of 8 to 60 words, in an order of their own."""
    paths = sysconfig.get_paths()
    roots = [Path(paths["purelib"]) / name for name in PACKAGES] + [Path(paths["stdlib"]) / "asyncio"]
    files = [file for root in roots for file in sorted(root.rglob("*.py"))]
    random.Random(0).shuffle(files)
    found: dict[str, None] = {}
    for file in files:
        if len(found) >= count:
            break
        for doc in _docstrings(file.read_text(errors="ignore")):
            for text in re.split(r"\n\s*\n", doc):
                words = text.split()
                letters = sum(c.isalpha() or c.isspace() for c in text)
                if 8 <= len(words) <= 60 and letters > 0.85 * len(text):
                    found[" ".join(words)] = None
    if len(found) < count:
        raise RuntimeError(f"{len(found)} paragraphs found of {count}")
    return list(found)[:count]


def _docstrings(source: str) -> Iterator[str]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def embed(texts: list[str], cache: Path) -> Any:
    """Vectors by the encoder of the local profile, kept in ``cache`` for the next time: float32[n, 384]."""
    if cache.exists() and len(kept := np.load(cache)) == len(texts):
        return kept
    settings = load("local", env={}).settings

    async def run() -> Any:
        encoder = Embed(settings.embed, settings.data_dir / "cache")
        await encoder.start()
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        vectors = np.zeros((len(texts), encoder.dim), np.float32)
        for begin in range(0, len(order), 256):
            some = order[begin : begin + 256]
            vectors[some] = (await encoder.texts([texts[i] for i in some], query=False)).vectors
        await encoder.close()
        return vectors

    vectors = asyncio.run(run())
    cache.parent.mkdir(parents=True, exist_ok=True)
    np.save(cache, vectors)
    return vectors


class Rows:
    """``n`` rows made of ``texts`` and their ``vectors``; the last ``QUESTIONS`` of these are the queries."""

    def __init__(self, texts: list[str], vectors: Any, n: int) -> None:
        rng = np.random.default_rng(n)
        self._texts, held = texts[:-QUESTIONS], len(texts) - QUESTIONS
        self._own = rng.integers(0, held, n)
        self._shared = np.repeat(rng.integers(0, held, n // SESSION + 1), SESSION)[:n]
        self._share = rng.uniform(0.2, 0.8, n).astype(np.float32)
        self.vectors = np.empty((n, vectors.shape[1]), np.float32)
        for begin in range(0, n, 50_000):
            part = np.s_[begin : begin + 50_000]
            mixed = vectors[self._own[part]] + self._share[part, None] * vectors[self._shared[part]]
            mixed += rng.standard_normal(mixed.shape, dtype=np.float32) * np.float32(0.15 / mixed.shape[1] ** 0.5)
            self.vectors[part] = mixed / np.linalg.norm(mixed, axis=1, keepdims=True)
        asked = zip(texts[-QUESTIONS:], vectors[-QUESTIONS:], strict=True)
        self.queries = [(" ".join(text.split()[:9]), vector / np.linalg.norm(vector)) for text, vector in asked]

    def __len__(self) -> int:
        return len(self.vectors)

    def node(self, i: int) -> Node:
        """Row ``i``."""
        own, shared = (self._texts[j[i]].split() for j in (self._own, self._shared))
        cut = 1 + float(self._share[i])
        words = own[: max(3, int(len(own) / cut))] + shared[: int(len(shared) * (cut - 1) / cut)]
        return Node(
            node_id=f"{i:032x}",
            kind="document",
            text=" ".join(words),
            vector=self.vectors[i],
            session=f"s{i // SESSION}",
            position=i % SESSION,
            domain=f"d{i % 50}",
            created_at=float(i),
        )

    def batches(self, size: int = 5000) -> Iterator[list[Node]]:
        """All rows."""
        for begin in range(0, len(self), size):
            yield [self.node(i) for i in range(begin, min(begin + size, len(self)))]

    def nearest(self, k: int) -> list[set[int]]:
        """The ``k`` rows nearest to each query, by looking at all."""
        asked = np.stack([vector for _, vector in self.queries])
        scores, rows = np.zeros((len(asked), 0), np.float32), np.zeros((len(asked), 0), np.int64)
        for begin in range(
            0, len(self), 50_000
        ):  # of each part only what may stay: a million rows are 800 MB of scores
            part = asked @ self.vectors[begin : begin + 50_000].T
            scores = np.concatenate([scores, part], 1)
            rows = np.concatenate([rows, np.broadcast_to(np.arange(begin, begin + part.shape[1]), part.shape)], 1)
            if scores.shape[1] > k:
                best = np.argpartition(-scores, k, axis=1)[:, :k]
                scores, rows = np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)
        return [set(row.tolist()) for row in rows]
