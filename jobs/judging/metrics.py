"""How far verdicts agree with a gold set, and how far they are moved by what should not move them.

Intervals are percentiles (2.5, 97.5) of a bootstrap over facts: the items of one fact share their texts and are drawn
together. Scores and gold are float64[n] in [0, 1], facts int64[n].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float64]
Facts: TypeAlias = npt.NDArray[np.int64]
Bounds: TypeAlias = dict[str, float]
DRAWS = 1000


def auc(score: Array, gold: Array) -> float:
    """The chance that a right answer scores above one that is wholly wrong, ties as a half; no partly right ones."""
    ranks = _ranks(score[gold != 0.5])
    right = gold[gold != 0.5] == 1.0
    positive, negative = int(right.sum()), int((~right).sum())
    if not positive or not negative:
        return float("nan")
    return float((ranks[right].sum() - positive * (positive + 1) / 2) / (positive * negative))


def accuracy(score: Array, gold: Array, threshold: float) -> float:
    """The share of answers on the right side of ``threshold``: right ones from it on, all others below."""
    return float(np.mean((score >= threshold) == (gold == 1.0)))


def passed(score: Array, gold: Array, threshold: float, value: float) -> float:
    """The share from ``threshold`` on, of answers worth ``value``; NaN if there are none."""
    some = score[gold == value]
    return float(np.mean(some >= threshold)) if len(some) else float("nan")


def spearman(score: Array, gold: Array) -> float:
    """Correlation of ranks, ties at their mean rank; 0 if either is constant."""
    a, b = _ranks(score), _ranks(gold)
    return 0.0 if np.ptp(a) == 0 or np.ptp(b) == 0 else float(np.corrcoef(a, b)[0, 1])


def ece(score: Array, gold: Array, bins: int = 10) -> float:
    """Expected calibration error: |mean score − mean gold| over ten equal bins of score, weighted by their size."""
    place = np.minimum((score * bins).astype(int), bins - 1)
    return float(sum(abs(score[place == b].sum() - gold[place == b].sum()) for b in range(bins)) / len(score))


def agreement(score: Array, gold: Array, facts: Facts, threshold: float, seed: int = 0) -> dict[str, Bounds]:
    """All of them with their intervals."""
    measures: Mapping[str, Callable[[Array, Array], float]] = {
        "auc": auc,
        "accuracy": lambda s, g: accuracy(s, g, threshold),
        "right_passed": lambda s, g: passed(s, g, threshold, 1.0),
        "wrong_passed": lambda s, g: passed(s, g, threshold, 0.0),
        "spearman": spearman,
        "ece": ece,
    }
    rows = [np.flatnonzero(facts == fact) for fact in np.unique(facts)]
    chance = np.random.default_rng(seed)
    draws = [np.concatenate([rows[i] for i in chance.integers(len(rows), size=len(rows))]) for _ in range(DRAWS)]
    return {
        name: bounds(measure(score, gold), np.array([measure(score[d], gold[d]) for d in draws]))
        for name, measure in measures.items()
    }


def mean(values: Array, facts: Facts, seed: int = 0) -> Bounds:
    """The mean of ``values``, float64[n], with its interval."""
    names, place = np.unique(facts, return_inverse=True)
    sums, sizes = np.bincount(place, values), np.bincount(place)
    drawn = np.random.default_rng(seed).integers(len(names), size=(DRAWS, len(names)))
    return bounds(float(values.mean()), sums[drawn].sum(1) / sizes[drawn].sum(1))


def slope(score: Array, nuisance: Array, groups: npt.NDArray[np.int64], facts: Facts, seed: int = 0) -> Bounds:
    """How much ``score`` rises with one standard deviation of ``nuisance``, within groups of equal truth."""

    def fit(rows: npt.NDArray[np.int64]) -> float:
        x, y = nuisance[rows] / nuisance.std(), score[rows].copy()
        for group in np.unique(groups[rows]):
            some = groups[rows] == group
            x[some] -= x[some].mean()
            y[some] -= y[some].mean()
        return float(x @ y / max(float(x @ x), 1e-12))

    rows = [np.flatnonzero(facts == fact) for fact in np.unique(facts)]
    chance = np.random.default_rng(seed)
    draws = [np.concatenate([rows[i] for i in chance.integers(len(rows), size=len(rows))]) for _ in range(DRAWS // 4)]
    return bounds(fit(np.arange(len(score))), np.array([fit(draw) for draw in draws]))


def bounds(value: float, drawn: Array) -> Bounds:
    """``value`` with the interval of its bootstrap, float64[draws]."""
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return {"mean": value, "low": float(low), "high": float(high)}


def _ranks(values: Array) -> Array:
    """From 1 on, ties at their mean."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[place], np.float64)
