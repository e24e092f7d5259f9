"""Looking up words in some rows of many: which rows hold most of them, and how often each row holds each."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from operators.records import F32
from operators.stores.resident import K1, PASSAGE_K1, B, Word

Rows = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
POSTINGS = 100_000
"""Rows looked at for the query's rarest words."""


def weigh(postings: Iterable[Any], live: Mask | None, n: int) -> tuple[list[Word], float]:
    """The words that occur, rarest first, with Lucene's idf of ``n`` rows, and the sum of all words' idf.

    ``postings``: rows, counts, times in the query; those that are not ``live`` (``None``: all are) do not count.
    """
    words: list[Word] = []
    total = 0.0
    for rows, often, count in postings:
        if live is not None:
            alive = live[rows]
            rows, often = rows[alive], often[alive]
        idf = count * math.log(1 + (n - len(rows) + 0.5) / (len(rows) + 0.5))
        total += idf
        if len(rows):
            words.append((rows, often, np.float32(idf)))
    return sorted(words, key=lambda word: len(word[0])), total


def damp(length: F32, mean: float, k1: float) -> F32:
    """What damps a word's count in rows of ``length``: k1 · (1 - b + b · length / mean)."""
    return np.asarray(k1 * (1 - B + B * length / (mean or 1)), np.float32)


def best(words: Sequence[Word], length: F32, mean: float, k: int, passes: Mask | None) -> Rows:
    """About the ``k`` rows of the highest BM25 that pass, in no order. ``length`` float32[n]: of all rows.

    The rarest words are looked up until ``POSTINGS`` rows were seen, the others only in the best of those.
    """
    sums, looked = np.zeros(len(length), np.float32), 0
    seen: list[npt.NDArray[np.int32]] = []
    for rows, often, idf in words:
        looked += len(rows)
        if seen and looked > POSTINGS:
            break
        if passes is not None:
            passing = passes[rows]
            rows, often = rows[passing], often[passing]
        tf, at = often.astype(np.float32), rows.astype(np.intp)  # as numpy indexes; it would convert three times
        sums[at] = sums.take(at) + idf * tf / (tf + damp(length.take(at), mean, K1))
        seen.append(rows)
    if not seen:
        return np.zeros(0, np.int64)
    found = _largest(np.concatenate(seen), sums, 2 * k * len(seen))  # a row stands there once for each of its words
    chosen = distinct(found)
    scores, damped = sums.take(chosen), damp(length.take(chosen), mean, K1)
    for rows, often, idf in words[len(seen) :]:
        held = times(rows, often, chosen)
        scores += idf * held / (held + damped)
    return np.asarray(chosen[np.argpartition(scores, -k)[-k:]] if len(chosen) > k else chosen, np.int64)


def _largest(rows: npt.NDArray[np.int32], scores: F32, k: int) -> npt.NDArray[np.int32]:
    if len(rows) <= k:
        return rows
    held = scores.take(rows)
    return np.asarray(rows[np.argpartition(held, len(rows) - k)[-k:]], np.int32)


def among(rising: npt.NDArray[Any], rows: Rows) -> Mask:
    """Which of ``rows`` are in ``rising``."""
    if not len(rising):
        return np.zeros(len(rows), np.bool_)
    at = np.minimum(np.searchsorted(rising, rows.astype(rising.dtype)), len(rising) - 1)
    return np.asarray(rising[at] == rows, np.bool_)


def times(rising: npt.NDArray[np.int32], often: npt.NDArray[Any], rows: npt.NDArray[Any]) -> F32:
    """How often a word is in each of ``rows``, from the word's own rows and counts."""
    at = np.minimum(np.searchsorted(rising, rows.astype(rising.dtype)), len(rising) - 1)
    return np.asarray(often[at] * (rising[at] == rows), np.float32)


def distinct(rows: npt.NDArray[Any]) -> Rows:
    """The different ones among ``rows``, rising: ``np.unique`` in a fraction of the time."""
    rising = np.sort(rows, axis=None).astype(np.int64)
    return rising[np.diff(rising, prepend=rising[:1] - 1) > 0]


def places_of(rows: Rows, n: int) -> tuple[Rows, Rows]:
    """The different ones among ``rows`` (-1 to n - 1), rising, and the place of each in them."""
    every = distinct(rows)
    place = np.empty(n + 1, np.int64)  # -1 is the last; only what is looked up is ever written
    place[every] = np.arange(len(every))
    return every, place[rows]


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """m rows with their neighbours, w places each, itself first. ``every`` are all rows that stand somewhere.

    ``every``: int64[u], rising. ``own``: int64[m] and ``around``: int64[m, w], places in ``every``. ``share``
    float32[m, w]: a neighbour's weight, 0 for none. ``length`` float32[u]: in words; ``often`` float32[words, u].
    """

    every: Rows
    own: Rows
    around: Rows
    share: F32
    length: F32
    often: F32

    def sums(self, values: F32) -> F32:
        """What stands around each row, weighted, summed: float32[…, m] from float32[…, u]."""
        total = values[..., self.around[:, 0]] * self.share[:, 0]
        for place in range(1, self.around.shape[1]):
            total += values[..., self.around[:, place]] * self.share[:, place]
        return total

    @property
    def weight(self) -> F32:
        """float32[m]: the sum of the weights, at least 1."""
        return np.asarray(np.maximum(self.share @ np.ones(self.share.shape[1], np.float32), 1), np.float32)

    def passages(self, words: Sequence[Word], mean: float) -> F32:
        """BM25 of each row together with its neighbours: float32[m]; ``mean``: the mean length of all passages."""
        held = self.sums(self.often)
        held /= held + damp(self.sums(self.length), mean, PASSAGE_K1)
        return np.asarray(np.array([idf for _, _, idf in words], np.float32) @ held * (PASSAGE_K1 + 1), np.float32)

    def says(self) -> F32:
        """``Scores.says``: how long each row is beside itself and its neighbours."""
        length = self.length[self.own]
        return np.asarray(length / np.maximum(length + self.sums(self.length) / self.weight, 1), np.float32)

    def some(self, at: Rows) -> Window:
        """The rows ``at`` alone."""
        kept, around = places_of(self.around[at], len(self.every))
        return Window(self.every[kept], around[:, 0], around, self.share[at], self.length[kept], self.often[:, kept])
