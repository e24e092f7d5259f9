"""What a policy would have been worth on logged turns, three ways, with intervals and what they rest on.

With w = π(a)/p for the slot a that was taken with propensity p, cut at ``clip``, its reward r, and q̂ a belief about
every slot's reward that was learned from other sessions::

    IPS    Σ w r / n                               Horvitz & Thompson 1952
    SNIPS  Σ w r / Σ w                             Swaminathan & Joachims 2015, "The self-normalized estimator"
    DR     Σ [ Σ_k π(k) q̂(k) + w (r − q̂(a)) ] / n  Dudík, Langford & Li 2011 (arXiv:1103.4601)

A turn on which every slot that π may take is known is valued exactly by DR. Intervals are those of a bootstrap over
sessions (percentiles; Efron & Tibshirani 1993, ch. 13 and 16), because turns of one session are alike.
The effective number of turns is (Σ w)² / Σ w² (Kish 1965): with few of them no interval is to be trusted.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from operators.learning.offpolicy import TIERS, EvaluationSet, Values
from operators.records import record

RIDGE = 10.0
"""Penalty of the regression that believes in rewards; with it a hundred turns do not learn 128 features by heart."""
FEW = 8
"""Fewest turns of a slot for a regression; below it the slot's mean is believed."""


@record
class Interval:
    """A mean and the bounds of its two-sided interval."""

    mean: float
    low: float
    high: float


@record
class Worth:
    """What a policy is worth on a set. ``gain`` is DR minus what was logged, on the same turns. ``effective_turns`` and
    ``clipped``, the share of the turns whose weight was cut, say what the estimates rest on; ``largest_weight`` is that
    before cutting. ``support``: the policy's mean chance of slots that the set knows a reward of at all."""

    ips: Interval
    snips: Interval
    dr: Interval
    gain: Interval
    effective_turns: float
    clipped: float
    largest_weight: float
    support: float


class Bootstrap:
    """Draws of sessions, the same for all that is estimated on a set, so that differences are paired.

    ``sessions`` int[n]; ``confidence``: how often an interval should hold the truth; ``rounds``: draws.
    """

    def __init__(self, sessions: npt.NDArray[Any], confidence: float, rounds: int, seed: int) -> None:
        _, self._index = np.unique(sessions, return_inverse=True)
        self._n = int(self._index.max()) + 1
        self._confidence, self._rounds, self._seed = confidence, rounds, seed

    def ratio(self, above: Values, below: Values) -> Interval:
        """Σ above / Σ below, both float64[n]. With no weight at all below, it is nothing: NaN."""
        sums = [np.bincount(self._index, values, self._n) for values in (above, below)]
        random, made = np.random.default_rng(self._seed), np.empty(self._rounds)
        step = max(1, 1_000_000 // self._n)  # so many draws at once as fit into a few megabytes
        with np.errstate(invalid="ignore", divide="ignore"):
            for begin in range(0, self._rounds, step):
                drawn = random.integers(self._n, size=(min(step, self._rounds - begin), self._n))
                made[begin : begin + step] = sums[0][drawn].sum(axis=1) / sums[1][drawn].sum(axis=1)
            mean = float(above.sum() / below.sum())
        there = made[np.isfinite(made)]
        tail = (1.0 - self._confidence) / 2.0
        low, high = np.quantile(there, (tail, 1.0 - tail)) if len(there) else (np.nan, np.nan)
        return Interval(mean=mean, low=float(low), high=float(high))

    def mean(self, values: Values) -> Interval:
        """The mean of ``values`` float64[n]."""
        return self.ratio(values, np.ones(len(values)))


def logged(one: EvaluationSet) -> Values:
    """The reward of what was taken, float64[n]."""
    return one.quality[np.arange(len(one.tier)), one.tier].astype(np.float64)


def worth(chances: Values, one: EvaluationSet, believed: Values, clip: float, draws: Bootstrap) -> Worth:
    """The value of the policy that takes the slots of ``one``'s turns with ``chances`` float64[n, 4].

    ``believed`` float64[n, 4]: what each slot's reward is believed to be.
    """
    rows, reward = np.arange(len(one.tier)), logged(one)
    raw = chances[rows, one.tier] / one.propensity.astype(np.float64)
    weight = np.minimum(raw, clip)
    known = np.isfinite(one.quality)
    robust = (chances * believed).sum(axis=1) + weight * (reward - believed[rows, one.tier])
    exact = (chances * np.nan_to_num(one.quality.astype(np.float64))).sum(axis=1)
    whole = (known | (chances == 0)).all(axis=1)
    values = np.where(whole, exact, robust)
    squares = float((weight * weight).sum())
    return Worth(
        ips=draws.mean(weight * reward),
        snips=draws.ratio(weight * reward, weight),
        dr=draws.mean(values),
        gain=draws.mean(values - reward),
        effective_turns=float(weight.sum()) ** 2 / squares if squares else 0.0,
        clipped=float((raw > clip).mean()),
        largest_weight=float(raw.max()),
        support=float(chances[:, known.any(axis=0)].sum(axis=1).mean()),
    )


def believe(one: EvaluationSet, folds: int, seed: int) -> Values:
    """A belief about every slot's reward on every turn, in [0, 1], float64[n, 4].

    A ridge regression a slot on the features, for the sessions of each fold learned from those of the others, so that
    no turn has a say in what is believed of its own session. A slot that is hardly known has its mean.
    """
    x = np.column_stack((np.ones(len(one.tier)), one.features.astype(np.float64)))
    quality, made = one.quality.astype(np.float64), np.empty((len(one.tier), TIERS))
    names, session = np.unique(one.session, return_inverse=True)
    fold = np.random.default_rng(seed).permutation(len(names))[session] % folds
    for at in range(folds):
        here, others = fold == at, fold != at
        usual = np.nanmean(quality[others]) if others.any() else np.nanmean(quality)
        for slot in range(TIERS):
            rows = others & np.isfinite(quality[:, slot])
            if rows.sum() < FEW:
                made[here, slot] = quality[rows, slot].mean() if rows.any() else usual
                continue
            center = quality[rows, slot].mean()
            penalty = RIDGE * np.eye(x.shape[1])
            penalty[0, 0] = 0.0
            some = x[rows]
            fitted = np.linalg.solve(some.T @ some + penalty, some.T @ (quality[rows, slot] - center))
            made[here, slot] = center + x[here] @ fitted
    return np.clip(made, 0.0, 1.0)
